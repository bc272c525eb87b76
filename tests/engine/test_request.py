"""Sampling parameters that cannot be are refused when they are made, with what is allowed."""

from __future__ import annotations

import math

import pytest

from oneroof.engine.request import SamplingParams, defaults
from oneroof.errors import UserError

WRONG = [
    {"max_tokens": 0},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"max_tokens": "8"},
    {"temperature": -0.1},
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"temperature": "hot"},
    {"temperature": None},
    {"top_p": 0.0},
    {"top_p": 1.01},
    {"top_k": -2},
    {"top_k": 3.0},
    {"min_p": -0.1},
    {"min_p": 1.1},
    {"repetition_penalty": 0},
    {"repetition_penalty": math.nan},
    {"presence_penalty": 2.5},
    {"frequency_penalty": -2.5},
    {"seed": 2**63},
    {"seed": 1.0},
    {"stop": ""},
    {"stop": ["a", ""]},
    {"stop": 5},
    {"stop": [5]},
    {"stop_token_ids": [-1]},
    {"stop_token_ids": "12"},
    {"stop_token_ids": 12},
    {"ignore_eos": 1},
    {"logprobs": -1},
    {"prompt_logprobs": 2.0},
    {"n": 0},
    {"adapter": 3},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_cannot_be_is_refused_in_one_line(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="allowed") as caught:
        SamplingParams(**wrong)  # type: ignore[arg-type]
    assert next(iter(wrong)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_edges_are_allowed() -> None:
    SamplingParams(max_tokens=None, temperature=0, top_p=1, top_k=-1, min_p=1, seed=-(2**63), logprobs=0, n=3)
    assert SamplingParams(stop="x").stops == ("x",)
    assert SamplingParams(stop=["x", "y"], stop_token_ids=[1]).stop_token_ids == (1,)


def test_greedy_and_penalized() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1e-7).greedy
    assert not SamplingParams(temperature=0.01).greedy
    assert not SamplingParams().penalized
    assert SamplingParams(frequency_penalty=0.1).penalized
    assert SamplingParams(repetition_penalty=1.1).penalized


def test_the_authors_recommendations_are_read() -> None:
    found = defaults(
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    )
    wanted = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    assert found == wanted
    assert defaults({"do_sample": False, "max_new_tokens": 2048}).greedy
    assert defaults({}) == SamplingParams()
    with pytest.raises(UserError, match=r"generation_config\.json: top_p"):
        defaults({"top_p": 7})
