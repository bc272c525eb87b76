"""Each setting does what its definition and transformers' code say, row by row, whatever neighbours want."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as judge

from oneroof.engine.answer import BAD
from oneroof.engine.penalties import Penalties, penalize
from oneroof.engine.request import SamplingParams
from oneroof.engine.sampler import Settings, sample
from oneroof.ops.noise import gumbel

V = 60


def settings(
    params: list[SamplingParams], seeds: list[int] | None = None, prompts: list[int] | None = None
) -> Settings:
    count = len(params)
    device = torch.device("cpu")
    return Settings.of(
        params, seeds or list(range(count)), prompts or [3] * count, vocabulary=V, device=device
    )


def logits(rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def allowed(params: SamplingParams, row: Tensor) -> set[int]:
    """The tokens that come out of many draws of one row."""
    many = 4000
    chosen = Settings.of([params] * many, range(many), [1] * many, vocabulary=V, device=torch.device("cpu"))
    drawn = sample(row.expand(many, V), chosen, torch.zeros(many, dtype=torch.int64), None)
    return set(drawn.tolist())


def judged(params: SamplingParams, row: Tensor) -> Tensor:
    """Logits after transformers' own processors, in the order that is ours."""
    scores, none = row[None].clone(), torch.zeros(1, 0, dtype=torch.int64)
    scores = judge.TemperatureLogitsWarper(float(params.temperature))(none, scores)
    if params.min_p:
        scores = judge.MinPLogitsWarper(params.min_p)(none, scores)
    if params.top_k > 0:
        scores = judge.TopKLogitsWarper(params.top_k)(none, scores)
    if params.top_p < 1:
        scores = judge.TopPLogitsWarper(params.top_p)(none, scores)
    return scores[0]


FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.8},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.5, "top_k": 9, "top_p": 0.9},
    {"temperature": 2.0, "min_p": 0.05, "top_p": 0.7},
    {"temperature": 1.5, "min_p": 0.02, "top_p": 0.95, "top_k": 12},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_draws_are_those_that_the_judges_processors_leave(options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **options})
    for seed in range(20):
        row = logits(1, seed)[0]
        scores = judged(params, row)
        lengths = torch.tensor([seed])
        expected = (scores + gumbel(torch.tensor([4]), lengths, torch.arange(V))[0]).argmax()
        assert int(sample(row[None], settings([params], [4]), lengths, None)) == int(expected)


@pytest.mark.parametrize("options", FILTERS[1:], ids=str)
def test_no_token_outside_the_filters_is_ever_drawn(options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **options})
    row = logits(1, 3)[0]
    kept = set(judged(params, row).isfinite().nonzero()[:, 0].tolist())
    drawn = allowed(params, row)
    assert drawn <= kept
    likely = {t for t in kept if float(judged(params, row).softmax(-1)[t]) > 0.01}
    assert likely <= drawn


def test_every_row_gets_what_it_would_get_alone() -> None:
    params = [SamplingParams(**{"temperature": 1.0, **options}) for options in FILTERS]
    params += [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, repetition_penalty=1.5),
        SamplingParams(temperature=0.8, presence_penalty=1.0, frequency_penalty=0.5),
    ]
    count = len(params)
    generator = torch.Generator().manual_seed(1)
    history = torch.randint(0, V, (count, 12), generator=generator)
    lengths = torch.randint(4, 13, (count,), generator=generator)
    rows = logits(count, 5)
    together = sample(rows, settings(params), lengths, history)
    for i in range(count):
        alone = sample(
            rows[i : i + 1], settings(params[i : i + 1], [i]), lengths[i : i + 1], history[i : i + 1]
        )
        assert int(alone) == int(together[i])


def test_equal_logits_stay_or_go_together() -> None:
    row = torch.full((V,), -5.0)
    row[[3, 17, 40]] = 2.0
    assert allowed(SamplingParams(top_k=2), row) == {3, 17, 40}
    assert allowed(SamplingParams(top_p=0.4), row) == {3, 17, 40}


def test_greedy_takes_the_likeliest() -> None:
    rows = logits(5)
    greedy = settings([SamplingParams(temperature=0.0, top_k=3, top_p=0.1)] * 5)
    assert not greedy.draws  # no sorting and no noise
    assert torch.equal(sample(rows, greedy, torch.ones(5, dtype=torch.int64), None), rows.argmax(-1))


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1}]
)
def test_a_row_that_is_no_numbers_fails_alone(wrong: float, options: dict[str, Any]) -> None:
    rows = logits(3)
    params = settings([SamplingParams(**options)] * 3)
    lengths = torch.ones(3, dtype=torch.int64)
    sound = sample(rows, params, lengths, None)
    rows[1, :] = wrong
    assert sample(rows, params, lengths, None).tolist() == [int(sound[0]), BAD, int(sound[2])]
    rows[1] = logits(1)[0]
    rows[1, 7] = wrong
    found = int(sample(rows, params, lengths, None)[1])
    assert found == BAD if wrong != -math.inf else found >= 0


def test_the_callers_logits_are_not_changed() -> None:
    rows = logits(2)
    before = rows.clone()
    params = SamplingParams(top_k=4, top_p=0.5, min_p=0.2, repetition_penalty=1.3)
    sample(rows, settings([params] * 2), torch.tensor([3, 3]), torch.ones(2, 5, dtype=torch.int64))
    assert torch.equal(rows, before)


def penalties(repetition: float, presence: float, frequency: float, prompt: int) -> Penalties:
    one = torch.ones(1)
    rows = torch.tensor([0])
    return Penalties(rows, repetition * one, presence * one, frequency * one, torch.tensor([prompt]))


def test_penalties_are_those_of_the_definition() -> None:
    for seed in range(20):
        row = logits(1, seed)
        tokens = torch.randint(0, 12, (1, 14), generator=torch.Generator().manual_seed(seed))
        length, prompt = 4 + seed % 10, 1 + seed % 4
        expected = row.clone()
        for token in set(tokens[0, :length].tolist()):
            expected[0, token] = row[0, token] / 1.3 if row[0, token] > 0 else row[0, token] * 1.3
        output = tokens[0, prompt:length].tolist()
        for token in set(output):
            expected[0, token] -= 0.7 + 0.2 * output.count(token)
        found = penalize(row, penalties(1.3, 0.7, 0.2, prompt), tokens, torch.tensor([length]))
        torch.testing.assert_close(found, expected)


def test_repetition_is_that_of_the_judge() -> None:
    row, tokens = logits(1), torch.tensor([[5, 9, 5, 30]])
    expected = judge.RepetitionPenaltyLogitsProcessor(1.4)(tokens, row.clone())
    torch.testing.assert_close(penalize(row, penalties(1.4, 0, 0, 2), tokens, torch.tensor([4])), expected)


def test_rows_without_penalties_keep_every_bit_beside_one_that_has_them() -> None:
    rows = logits(2)
    strengths = torch.tensor([1.0, 1.7]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.3])
    mixed = Penalties(torch.tensor([0, 1]), *strengths, torch.tensor([2, 2]))
    found = penalize(rows, mixed, torch.randint(0, V, (2, 9)), torch.tensor([9, 4]))
    assert torch.equal(found[0], rows[0])
    assert not torch.equal(found[1], rows[1])
