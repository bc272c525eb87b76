"""A draw among the likeliest tokens is the draw among all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oneroof.engine.draws import Draw, likeliest
from oneroof.engine.request import SamplingParams

CPU = torch.device("cpu")
KINDS = [
    SamplingParams(top_k=20, top_p=0.8, temperature=0.7),
    SamplingParams(top_k=1),
    SamplingParams(top_k=95, min_p=0.001),
    SamplingParams(top_k=300, top_p=0.95),
    SamplingParams(top_p=0.9, temperature=0.6),
    SamplingParams(top_p=0.999, temperature=2.0),  # more tokens than are looked at
    SamplingParams(min_p=0.05),
    SamplingParams(min_p=1e-9),
    SamplingParams(min_p=0.05, top_p=0.9),
    SamplingParams(min_p=0.001, top_p=0.9, temperature=1.5),
    SamplingParams(top_k=2000, top_p=0.9),
    SamplingParams(top_p=1e-46),
    SamplingParams(),
]


def logits(rows: int, vocabulary: int, *, coarse: bool, seed: int = 0) -> Tensor:
    """Every other row is flat: many tokens are left, whatever the setting."""
    steep = torch.where(torch.arange(rows) % 2 == 0, 4.0, 0.5)[:, None]
    drawn = steep * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    return drawn.bfloat16().float() if coarse else drawn


@pytest.mark.parametrize("vocabulary", [150, 3000, 4096, 20_001])
@pytest.mark.parametrize("coarse", [False, True])  # rounded to 16 bits there are many ties
def test_the_likeliest_are_enough(vocabulary: int, coarse: bool) -> None:
    rows = logits(40, vocabulary, coarse=coarse)
    lengths = torch.arange(40)
    for params in KINDS:
        (draw,) = Draw.each([params] * 40, range(40), vocabulary=vocabulary, device=CPU)
        whole = replace(draw, width=vocabulary)
        assert torch.equal(draw.tokens(rows, lengths), whole.tokens(rows, lengths)), params


def test_rows_of_all_kinds_together_get_what_they_get_alone() -> None:
    rows = logits(len(KINDS), 4096, coarse=True, seed=1)
    lengths = torch.arange(len(KINDS)) + 5
    draws = Draw.each(KINDS, range(len(KINDS)), vocabulary=4096, device=CPU)
    assert sorted(d.width for d in draws) == [128, 1024, 4096]
    found: dict[int, int] = {}
    for draw in draws:
        assert draw.rows is not None
        found |= zip(
            draw.rows.tolist(), draw.tokens(rows[draw.rows], lengths[draw.rows]).tolist(), strict=True
        )
    for i, params in enumerate(KINDS):
        (alone,) = Draw.each([params], [i], vocabulary=4096, device=CPU)
        assert int(alone.tokens(rows[i : i + 1], lengths[i : i + 1])) == found[i]


@pytest.mark.parametrize("vocabulary", [64 * 300, 8 * 301, 20_001, 128])
def test_the_largest_are_those_of_topk(vocabulary: int) -> None:
    rows = logits(7, vocabulary, coarse=True)
    values, places = likeliest(rows, 100)
    assert torch.equal(values, rows.topk(100).values)
    assert torch.equal(rows.gather(1, places), values)
    assert all(len(set(row)) == 100 for row in places.tolist())


def test_ties_at_the_border_that_were_not_looked_at_are_not_lost() -> None:
    """500 tokens are as likely as the twentieth: all of them stay, as the definition by threshold says."""
    row = torch.full((1, 4096), -20.0)
    row[0, :19] = 5.0
    row[0, 1000:1500] = 4.0
    many = 3000
    (draw,) = Draw.each([SamplingParams(top_k=20)] * many, range(many), vocabulary=4096, device=CPU)
    found = set(draw.tokens(row.expand(many, -1), torch.zeros(many, dtype=torch.int64)).tolist())
    assert len(found & set(range(1000, 1500))) > 400 and max(found) < 1500
