"""One completion: its text is never taken back, and it ends for the right reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneroof.engine.answer import BAD, Answer
from oneroof.engine.request import Completion, Request, SamplingParams
from oneroof.text.tokenizer import Tokenizer, load_tokenizer

END = 300


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Callable[..., Path]) -> Tokenizer:
    return load_tokenizer(checkpoint("qwen2"))


def write(
    tokenizer: Tokenizer | None, tokens: list[int], limit: int = 1000, **options: object
) -> tuple[str, Completion]:
    """The emitted pieces joined, and the completion, of `tokens` until the answer ends."""
    params = SamplingParams(**options)  # type: ignore[arg-type]
    ends = frozenset() if params.ignore_eos else frozenset({END})
    answer = Answer(Request(0, None, (1,), params, ends, 5, limit), 0, tokenizer)
    pieces = ""
    for token in tokens:
        pieces += answer.add(token)
        if answer.finish_reason is not None:
            break
    return pieces, answer.completion()


def test_ends_at_the_models_end_which_is_not_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello")
    text, done = write(tokenizer, [*ids, END, *ids])
    assert (text, done.text, done.token_ids) == ("hello", "hello", (*ids, END))
    assert (done.finish_reason, done.stop_reason) == ("stop", None)


def test_writes_on_past_the_end_if_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello")
    _, done = write(tokenizer, [*ids, END, *ids], limit=2 * len(ids) + 1, ignore_eos=True)
    assert (len(done.token_ids), done.finish_reason) == (2 * len(ids) + 1, "length")


def test_ends_at_a_stop_token_even_if_the_models_end_is_ignored(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello")
    _, done = write(tokenizer, [*ids, END], stop_token_ids=[END], ignore_eos=True)
    assert (done.text, done.finish_reason, done.stop_reason) == ("hello", "stop", END)


def test_held_back_text_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab<")
    for tokens, limit in (([*ids, END], 99), (ids, len(ids))):
        text, done = write(tokenizer, tokens, limit, stop="<end>")
        assert text == done.text == "ab<"


def test_a_character_that_never_came_whole_is_still_told(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é")
    assert len(ids) == 2
    text, done = write(tokenizer, ids[:1], limit=1)
    assert text == done.text == "�"
    text, done = write(tokenizer, ids[:1], limit=1, stop="�")
    assert (text, done.finish_reason, done.stop_reason) == ("", "stop", "�")


def test_a_row_without_numbers_ends_with_what_there_is(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab<")
    text, done = write(tokenizer, [*ids, BAD], stop="<end>")
    assert (text, done.text, done.token_ids, done.finish_reason) == ("ab<", "ab<", tuple(ids), "error")


def test_without_a_tokenizer_there_are_only_tokens() -> None:
    text, done = write(None, [3, 4, 5], limit=3)
    assert (text, done.text, done.token_ids, done.finish_reason) == ("", "", (3, 4, 5), "length")


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="ab<eé中🙂 ", max_size=20),
    st.text(alphabet="b<é中🙂", min_size=1, max_size=3),
    st.data(),
)
def test_pieces_join_to_the_text_before_the_stop(
    tokenizer: Tokenizer, text: str, stop: str, data: st.DataObject
) -> None:
    ids = tokenizer.encode(text)
    limit = data.draw(st.integers(1, len(ids) + 1))
    pieces, done = write(tokenizer, [*ids, END], limit, stop=stop)
    assert pieces == done.text
    whole = tokenizer.decode(ids[:limit])
    assert done.text == whole.split(stop)[0]
    assert done.stop_reason == (stop if stop in whole else None)
