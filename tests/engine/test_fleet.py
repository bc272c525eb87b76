"""Engines side by side write what one writes, in order, and a death of one is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oneroof import LLM, SamplingParams
from oneroof.engine.fleet import Fleet
from oneroof.errors import RankLost, UserError

PROMPTS = [[5, 9, 11 + i] * (1 + i % 4) for i in range(11)]
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


def llm_of(folder: Path, **options: object) -> LLM:
    facts: dict[str, object] = {"dtype": "float32", "device": "cpu", "bind_cpu": False, "max_model_len": 64}
    return LLM(folder, **(facts | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def two(checkpoint: Callable[..., Path]) -> Iterator[LLM]:
    with llm_of(checkpoint("qwen2"), dp=2, max_batch=2, seed=1) as llm:
        yield llm


def test_two_engines_write_what_one_writes_in_order(two: LLM, checkpoint: Callable[..., Path]) -> None:
    drawn = SamplingParams(max_tokens=6, temperature=0.9, ignore_eos=True)
    with llm_of(checkpoint("qwen2"), max_batch=2, seed=1) as one:
        for params in (GREEDY, drawn):
            expected = [output.token_ids for output in one.generate(PROMPTS, params)]
            assert [output.token_ids for output in two.generate(PROMPTS, params)] == expected
        assert two.embed(["a b", "c"]) == one.embed(["a b", "c"])
        assert two.context == one.context
        assert two.front.config == one.front.config
    assert two.stats().finished >= 2 * len(PROMPTS)


def test_both_engines_work(two: LLM) -> None:
    fleet = two._runs
    assert isinstance(fleet, Fleet)
    before = [engine.stats().finished for engine in fleet._engines]
    two.generate(PROMPTS, GREEDY)
    assert all(engine.stats().finished > b for engine, b in zip(fleet._engines, before, strict=True))


def test_what_cannot_be_served_is_refused_and_the_fleet_goes_on(two: LLM) -> None:
    with pytest.raises(UserError, match="prompt 1 has 90 tokens"):
        two.generate([[5], [5] * 90], GREEDY)
    with pytest.raises(UserError, match="the weights are in other processes"):
        _ = two.loaded
    assert len(two.generate([[5]], GREEDY)) == 1


def test_who_leaves_early_does_not_keep_the_others_from_going_on(two: LLM) -> None:
    pieces = two.stream(PROMPTS, GREEDY)
    next(pieces)
    del pieces
    assert [output.index for output in two.generate(PROMPTS, GREEDY)] == list(range(len(PROMPTS)))


def test_an_engine_that_is_killed_is_named(checkpoint: Callable[..., Path]) -> None:
    with llm_of(checkpoint("qwen2"), dp=2) as llm:
        fleet = llm._runs
        assert isinstance(fleet, Fleet)
        os.kill(fleet._engines[1].pid, signal.SIGKILL)
        with pytest.raises(RankLost, match="was killed by SIGKILL"):
            llm.generate(PROMPTS, GREEDY)
