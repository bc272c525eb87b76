"""A stream never cuts a character, and what it gives, joined, is the text: at every split, of any ids."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import vocabularies
from hypothesis import given
from hypothesis import strategies as st

from oneroof.text.stream import TextStream
from oneroof.text.tokenizer import Tokenizer, load_tokenizer

FORMS = {
    "json": vocabularies.write_json,
    "tiktoken": vocabularies.write_tiktoken,
    "sentencepiece": vocabularies.write_sentencepiece,
}
WHOLE = "né 你好 😀👩\u200d👩\u200d👧 \ufffd end"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    found = {}
    for name, write in FORMS.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        found[name] = load_tokenizer(folder)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("skip", [False, True])
@given(data=st.data())
def test_pieces_join_to_the_text_at_every_split(
    loaded: dict[str, Tokenizer], form: str, skip: bool, data: st.DataObject
) -> None:
    tokenizer = loaded[form]
    ids = data.draw(st.lists(st.integers(-1, tokenizer.size), max_size=30))
    expected = tokenizer.decode(ids, skip_special=skip)
    for split in range(len(ids) + 1):
        stream = tokenizer.stream(skip_special=skip)
        assert stream.push(ids[:split]) + stream.push(ids[split:]) + stream.finish() == expected
    stream = tokenizer.stream(skip_special=skip)
    assert "".join(stream.push([i]) for i in ids) + stream.finish() == expected


@pytest.mark.parametrize("form", FORMS)
@given(text=st.text(max_size=20))
def test_no_half_character_is_ever_shown(loaded: dict[str, Tokenizer], form: str, text: str) -> None:
    tokenizer = loaded[form]
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids, skip_special=False)
    stream = tokenizer.stream(skip_special=False)
    shown = ""
    for i in ids:
        shown += stream.push([i])
        assert whole.startswith(shown)
    assert shown == whole
    assert stream.finish() == ""


@pytest.mark.parametrize("form", FORMS)
def test_an_unfinished_character_waits_and_ends_as_a_replacement(
    loaded: dict[str, Tokenizer], form: str
) -> None:
    tokenizer = loaded[form]
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert stream.push(ids[:-1]).strip() == ""
    assert stream.finish() == "\ufffd"
    assert tokenizer.decode(ids[:-1]).strip() == "\ufffd"


def test_a_decoder_that_drops_the_first_space_drops_one() -> None:
    spell = {0: b" ", 1: b"a", 2: b"  b", 3: b"<s>"}.__getitem__
    for ids, text in (([2, 1], " ba"), ([0, 1], "a"), ([1, 0], "a "), ([3, 0, 1], "a"), ([], "")):
        stream = TextStream(spell, {3}, leading_space=True)
        assert "".join(stream.push([i]) for i in ids) + stream.finish() == text


def test_time_is_linear(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["json"]
    ids = tokenizer.encode(WHOLE) * 20_000
    began = time.process_time()
    stream = tokenizer.stream()
    text = "".join(stream.push([i]) for i in ids) + stream.finish()
    assert text == WHOLE * 20_000
    assert (
        time.process_time() - began < 5
    )  # of some 700,000 tokens; re-decoding what went before would take hours


def test_the_folder_of_a_path_may_be_a_string(tmp_path: Path) -> None:
    vocabularies.write_json(tmp_path)
    assert load_tokenizer(str(tmp_path)).size  # type: ignore[arg-type]
