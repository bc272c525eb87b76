"""A conversation: what stays of it when an answer is ended early, is empty or fails."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oneroof.cli.talk import Talk
from oneroof.engine.llm import LLM
from oneroof.engine.request import Completion, Output, Piece, SamplingParams
from oneroof.errors import UserError

GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[..., Path]) -> LLM:
    return LLM(checkpoint("qwen2", max_position_embeddings=512), device="cpu", dtype="float32")


def talk(llm: LLM, notes: list[str], params: SamplingParams = GREEDY) -> Talk:
    return Talk(llm, params, system=None, switches={}, tell=notes.append)


def said(talk: Talk, text: str, *, pieces: int | None = None) -> str:
    """The answer, ended after so many pieces."""
    count = itertools.count(1)
    return "".join(talk.ask(text, stopped=lambda: next(count) == pieces))


def test_an_answer_that_was_ended_stays_as_far_as_it_came(llm: LLM) -> None:
    notes: list[str] = []
    broken, whole = talk(llm, notes), talk(llm, notes)
    beginning = said(broken, "the quick fox", pieces=5)
    assert said(whole, "the quick fox").startswith(beginning) and beginning
    assert llm.stats().running == llm.stats().waiting == 0  # nothing goes on behind it
    messages = [
        {"role": "user", "content": "the quick fox"},
        {"role": "assistant", "content": beginning},
        {"role": "user", "content": "the dog"},
    ]
    assert said(broken, "the dog") == llm.chat(messages, GREEDY)[0].text
    assert notes == ["cut after 20 tokens; --max-tokens allows more"] * 2


def test_the_oldest_turns_go_when_the_context_is_full(checkpoint: Callable[..., Path]) -> None:
    notes: list[str] = []
    messages = [{"role": "system", "content": "Be brief."}]
    with LLM(checkpoint("qwen2"), device="cpu", dtype="float32", max_model_len=120) as llm:
        one = talk(llm, notes, replace(GREEDY, max_tokens=8))
        one.instruct("Be brief.")
        for text in ("the quick fox", "the lazy dog", "the king sang", "the sun"):
            messages.append({"role": "user", "content": text})
            answer = said(one, text)
            gone = sum(int(n) for note in notes for n in re.findall(r"the oldest (\d) messages", note))
            kept = [messages[0], *messages[1 + gone :]]
            assert answer == llm.chat(kept, replace(GREEDY, max_tokens=8))[0].text
            assert llm.loaded.template is not None
            assert len(llm.loaded.template.tokens(kept)) <= 120 - 8
            messages.append({"role": "assistant", "content": answer})
    assert 0 < gone < 6
    assert notes[-2].startswith("the context of 120 tokens is full: the oldest ")


def test_an_answer_that_runs_into_the_end_of_the_context_says_so(llm: LLM) -> None:
    notes: list[str] = []
    long = talk(llm, notes, replace(GREEDY, max_tokens=500))
    said(long, "fox " * 60)
    assert notes == ["cut: the context of 512 tokens is full"]


def test_each_turn_draws_anew_and_each_chat_the_same(llm: LLM) -> None:
    hot = replace(GREEDY, temperature=5.0, seed=3)
    first, again = talk(llm, [], hot), talk(llm, [], hot)
    texts = [said(first, "a")]
    first.reset()
    texts.append(said(first, "a"))
    assert texts[0] != texts[1]
    assert said(again, "a") == texts[0]


def pretending(monkeypatch: pytest.MonkeyPatch, llm: LLM, text: str, reason: str, error: str | None) -> None:
    """Let `llm` answer `text` and nothing else."""
    done = Completion(text, (5,), reason, None, None, error)
    piece = Piece(0, 0, text, (5,), reason, Output(0, None, (1,), (done,), None))

    def stream(*_: object, **__: object) -> Iterator[Piece]:
        return iter([piece])

    monkeypatch.setattr(llm, "stream", stream)


def test_a_message_without_an_answer_is_taken_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    one = talk(llm, notes)
    with monkeypatch.context() as patch:
        pretending(patch, llm, "", "stop", None)
        assert said(one, "a") == ""
    assert notes == ["nothing was written; the message is taken back"]
    assert said(one, "b") == llm.chat([{"role": "user", "content": "b"}], GREEDY)[0].text


def test_a_message_whose_answer_fails_is_taken_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    one = talk(llm, [])
    with monkeypatch.context() as patch:
        pretending(patch, llm, "half an ans", "error", "the moon is full")
        with pytest.raises(UserError, match="the moon is full; the message is taken back"):
            said(one, "a")
    assert said(one, "b") == llm.chat([{"role": "user", "content": "b"}], GREEDY)[0].text


def test_the_window_of_a_model_is_kept_to_aloud(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a folder without a template names a window, turns would be dropped in silence below it."""
    notes: list[str] = []
    one = talk(llm, notes)
    monkeypatch.setitem(llm.loaded.generation, "max_window_size", 60)
    for text in ("the quick fox", "the lazy dog", "the king sang"):
        said(one, text)
    assert any("the oldest 2 messages are left out" in note for note in notes)
