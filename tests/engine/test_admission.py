"""What cannot be served is refused before anything runs, with the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oneroof.config import ModelConfig
from oneroof.engine.admission import admit, context_of, end_tokens
from oneroof.engine.request import Request, SamplingParams
from oneroof.errors import UserError
from oneroof.models import read_config


@pytest.fixture(scope="session")
def config(checkpoint: Callable[..., Path]) -> ModelConfig:
    return read_config(checkpoint("qwen2"))


def ask(config: ModelConfig, ids: list[int], context: int = 20, **options: object) -> Request:
    params = SamplingParams(**options)  # type: ignore[arg-type]
    return admit(2, "text", ids, params, config=config, context=context, ends=frozenset({7}), seed=77)


def test_the_limit_is_what_was_asked_or_what_is_left(config: ModelConfig) -> None:
    assert ask(config, [1] * 5, max_tokens=7).limit == 7
    assert ask(config, [1] * 15, max_tokens=7).limit == 5
    assert ask(config, [1] * 19, max_tokens=None).limit == 1


def test_a_seed_of_its_own_wins(config: ModelConfig) -> None:
    assert ask(config, [1]).seed == 77
    assert ask(config, [1], seed=0).seed == 0


def test_ends_are_ignored_if_asked(config: ModelConfig) -> None:
    assert ask(config, [1]).ends == {7}
    assert ask(config, [1], ignore_eos=True).ends == frozenset()


@pytest.mark.parametrize(
    ("ids", "options", "said"),
    [
        ([], {}, "prompt 2 has no tokens"),
        ([1] * 20, {}, "prompt 2 has 20 tokens; at most 19"),
        ([1, 352], {}, "352; whole numbers 0 to 351"),
        ([-1], {}, "-1"),
        ([1], {"stop_token_ids": [400]}, "stop_token_ids has 400"),
        ([1], {"adapter": "poet"}, "poet"),
    ],
)
def test_one_line_says_why_not(
    config: ModelConfig, ids: list[int], options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=r"allowed|none is loaded") as caught:
        ask(config, ids, **options)
    assert said in str(caught.value)


def test_the_context_is_the_models_or_less(config: ModelConfig) -> None:
    assert context_of(config, None) == config.max_positions
    assert context_of(config, 50) == 50
    for wrong in (1, config.max_positions + 1):
        with pytest.raises(UserError, match=f"{wrong} was asked"):
            context_of(config, wrong)
    stretched = replace(config, rope=replace(config.rope, kind="dynamic"))
    assert context_of(stretched, config.max_positions + 1) == config.max_positions + 1


def test_ends_are_those_of_both_files(config: ModelConfig) -> None:
    own = frozenset(config.eos)
    assert end_tokens(config, {}) == own
    assert end_tokens(config, {"eos_token_id": 7}) == own | {7}
    assert end_tokens(config, {"eos_token_id": [7, 8]}) == own | {7, 8}
