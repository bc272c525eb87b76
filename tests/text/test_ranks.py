"""Qwen-1's rank file, against the tiktoken library used directly as Qwen's own tokenizer does."""

from __future__ import annotations

import base64
import json
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import tiktoken
import vocabularies
from hypothesis import given
from hypothesis import strategies as st

from oneroof.text.tokenizer import Tokenizer, load_tokenizer


@cache
def _pair(folder: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    lines = (folder / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special = dict(zip(names, range(len(ranks), len(ranks) + 208), strict=True))
    direct = tiktoken.Encoding(
        "direct", pat_str=vocabularies.SPLIT, mergeable_ranks=ranks, special_tokens=special
    )
    return load_tokenizer(folder), direct


def _check(folder: Path, text: str) -> None:
    ours, direct = _pair(folder)
    folded = unicodedata.normalize("NFC", text)
    assert ours.encode(text) == direct.encode(folded, disallowed_special=())
    assert ours.encode(text, special=True) == direct.encode(folded, allowed_special="all")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    vocabularies.write_tiktoken(folder)
    return folder


MIXED = st.text(max_size=60) | st.lists(
    st.sampled_from(["<|im_start|>", "<|extra_7|>", "the", " 你好", "\n\n", "  ", "e\u0301", "'ll", "42"])
).map("".join)


@given(text=MIXED)
def test_a_tiny_rank_file_agrees(tiny: Path, text: str) -> None:
    _check(tiny, text)


@given(text=MIXED)
def test_random_text_agrees(shared: Path, text: str) -> None:
    _check(shared / "data/tokenizers/qwen1", text)


def test_corpora_agree(shared: Path) -> None:
    folder = shared / "data/tokenizers/qwen1"
    ours, _ = _pair(folder)
    for name in ("zh_d2l", "zh_classics", "en_books.valid"):
        with (shared / f"data/corpora/{name}.jsonl").open(encoding="utf-8") as lines:
            text = "\n".join(json.loads(line)["text"] for line, _ in zip(lines, range(40), strict=False))[
                :200_000
            ]
        _check(folder, text)
        assert ours.decode(ours.encode(text)) == unicodedata.normalize("NFC", text)


def test_its_ids_are_those_of_the_model(shared: Path) -> None:
    ours, _ = _pair(shared / "data/tokenizers/qwen1")
    assert ours.special["<|endoftext|>"] == ours.eos == 151643
    assert ours.special["<|im_end|>"] == 151645
    assert ours.special["<|extra_204|>"] == 151850
    assert ours.size == 151851
