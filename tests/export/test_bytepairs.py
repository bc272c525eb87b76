"""`tokenizer.json` from tiktoken ranks says what tiktoken says, for a small vocabulary and the real one."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import vocabularies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from oneroof.errors import UserError
from oneroof.export.bytepairs import merges, tokenizer_json
from oneroof.text.huggingface import SPLIT
from oneroof.text.ranks import SPECIAL, load_ranks

OLD = [chr(c) for c in range(32, 0x20000) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]


def judge(ranks: dict[bytes, int]) -> Callable[[str], list[int]]:
    """Qwen-1's own tokenizer, as its code has it: NFC, then tiktoken with every special token allowed."""
    special = {text: len(ranks) + i for i, text in enumerate(SPECIAL)}
    encoding = tiktoken.Encoding("judge", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)
    return lambda text: encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")


def ours(ranks: dict[bytes, int]) -> Callable[[str], list[int]]:
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(ranks)))
    return lambda text: tokenizer.encode(text).ids


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, int]:
    folder = tmp_path_factory.mktemp("small")
    vocabularies.write_tiktoken(folder)
    return load_ranks(folder)


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[bytes, int]:
    return load_ranks(shared / "data" / "tokenizers" / "qwen1")


def test_the_merges_of_a_trained_vocabulary_are_recovered(small: dict[bytes, int], tmp_path: Path) -> None:
    vocabularies.write_vocab(tmp_path)
    made = tokenizer_json(small)["model"]
    assert isinstance(made, dict)
    assert made["vocab"] == json.loads((tmp_path / "vocab.json").read_text())
    assert made["merges"] == (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(OLD), st.sampled_from(["the", " 你好", "\r\n", "  ", *SPECIAL[:5]])))
)
@example(["e\u0301 \u1100\u1161 <|im_start|>x<|extra_204|><|extra_205|>"])
def test_any_text_is_split_as_tiktoken_splits_it(small: dict[bytes, int], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert ours(small)(text) == judge(small)(text)


def test_the_published_vocabulary_has_the_published_merges(published: dict[bytes, int], shared: Path) -> None:
    folder = shared / "data" / "tokenizers" / "qwen2"
    made = tokenizer_json(published)["model"]
    assert isinstance(made, dict)
    assert made["vocab"] == json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    assert made["merges"] == [line for line in lines if line and not line.startswith("#version")]


def test_the_published_vocabulary_on_random_text_and_corpora(
    published: dict[bytes, int], shared: Path
) -> None:
    encode, want, draw = ours(published), judge(published), random.Random(0)
    texts = ["".join(draw.choices(OLD, k=draw.randrange(60))) for _ in range(1000)]
    texts += ["".join(draw.choices(OLD[:5000] + ["\n", "\r", " ", "  "] * 500, k=60)) for _ in range(1000)]
    for name in ("zh_classics.jsonl", "zh_d2l.jsonl", "en_books.valid.jsonl"):
        lines = (shared / "data" / "corpora" / name).read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)["text"] for line in lines[:200]]
    assert [text for text in texts if encode(text) != want(text)] == []


def test_special_tokens_follow_the_ranks(small: dict[bytes, int]) -> None:
    assert len(SPECIAL) == 208
    text = "<|endoftext|><|im_start|><|im_end|><|extra_0|><|extra_204|>"
    assert ours(small)(text) == [len(small) + i for i in (0, 1, 2, 3, 207)]


def test_a_token_that_no_pair_makes_is_named() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"abc": 256}
    with pytest.raises(UserError, match="token 256"):
        merges(ranks)
