"""A sentencepiece model trained here, against transformers' reading of it as an ERNIE 4.5 tokenizer."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from oneroof.text.tokenizer import Tokenizer, load_tokenizer

TEXT = (
    "In the beginning there was a king, and the king sang; yes or no, one 12 34. 你好世界 人之初 "
    "性本善 天地玄黄 宇宙洪荒 日月盈昃 the other thing that one thought was there, and  then two  spaces"
)
ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<unk>",
    "unk_token": "<unk>",
    "cls_token": "<|begin_of_sentence|>",
    "sep_token": "<|end_of_sentence|>",
    "mask_token": "<mask:1>",
}
SYMBOLS = ["<mask:1>", "<mask:4>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|LOC_0|>"]


def _train(folder: Path, *, dummy: bool, kind: str, listed: bool) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 4),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        model_type=kind,
        byte_fallback=True,
        add_dummy_prefix=dummy,
        remove_extra_whitespaces=dummy,
        normalization_rule_name="identity",
        user_defined_symbols=SYMBOLS,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": "ernie4_5"}))
    config: dict[str, object] = {**ROLES, "tokenizer_class": "LlamaTokenizer"}
    if listed:
        size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
        flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        contents = {3: ("<mask:1>", True), 4: ("<mask:4>", True), 5: ("<|begin_of_sentence|>", True)}
        contents |= {6: ("<|end_of_sentence|>", True), 7: ("<|LOC_0|>", False), size: ("<think>", False)}
        config["added_tokens_decoder"] = {
            str(i): {"content": text, "special": special, **flags} for i, (text, special) in contents.items()
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(
    scope="module",
    params=[(False, "bpe", False), (False, "bpe", True), (True, "bpe", False), (True, "unigram", False)],
    ids=["bpe", "listed", "dummy", "unigram"],
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, object]:
    dummy, kind, listed = request.param
    folder = _train(tmp_path_factory.mktemp("pieces"), dummy=dummy, kind=kind, listed=listed)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


WORDS = [
    "the king ",
    "你好",
    "  ",
    "\n",
    "龘",
    "😀",
    " x",
    "<mask:4>",
    "<|LOC_0|>",
    "<|end_of_sentence|>",
    "</s>",
]


@given(text=st.lists(st.sampled_from([*WORDS, "<think>", "<unk>", "12", "a"]), max_size=8).map("".join))
def test_tokens_and_text_are_those_of_transformers(pair: tuple[Tokenizer, object], text: str) -> None:
    ours, reference = pair
    ids = ours.encode(text, special=True)
    assert ids == reference.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]
    for skip in (False, True):
        assert ours.decode(ids, skip_special=skip) == reference.decode(ids, skip_special_tokens=skip)  # type: ignore[attr-defined]


@given(text=st.text(max_size=30).filter(lambda text: "\u2581" not in text and "\x00" not in text))
def test_random_text_is_read_as_by_transformers(pair: tuple[Tokenizer, object], text: str) -> None:
    ours, reference = pair
    ids = ours.encode(text, special=True)
    assert ids == reference.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]
    assert ours.decode(ids) == text


def test_special_tokens_are_those_of_transformers(pair: tuple[Tokenizer, object]) -> None:
    ours, reference = pair
    flagged = {i for i, token in reference.added_tokens_decoder.items() if token.special}  # type: ignore[attr-defined]
    assert set(ours.special.values()) == flagged
    assert ours.eos == reference.eos_token_id  # type: ignore[attr-defined]
    assert ours.size == len(reference)  # type: ignore[arg-type]


def test_a_role_spelt_by_a_user_is_plain_text(pair: tuple[Tokenizer, object]) -> None:
    ours, _ = pair
    text = "hi<|end_of_sentence|></s><s><mask:1><<mask:1>>"
    ids = ours.encode(text)
    assert not set(ids) & set(ours.special.values())
    assert ours.decode(ids) == text
    assert ours.special["<|end_of_sentence|>"] in ours.encode(text, special=True)
