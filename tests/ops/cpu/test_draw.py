"""Tokens drawn by the native kernel: those of the reference, but where two are as good as each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import threads, with_kernels
from torch import Tensor

from oneroof import ops
from oneroof.ops.cpu import pointwise
from oneroof.ops.noise import gumbel

pytestmark = [with_kernels, pytest.mark.usefixtures("variant")]


def drawn(x: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    found = pointwise.draw(x, temperature, seeds, positions)
    assert isinstance(found, Tensor)
    return found


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 2, 5]),
    width=st.sampled_from([1, 15, 16, 100, 5003, 70000]),
    gap=st.sampled_from([0, 7]),
    seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**40),
    masked=st.booleans(),
)
def test_the_same_token_as_the_reference(
    rows: int, width: int, gap: int, seed: int, position: int, masked: bool
) -> None:
    x = torch.randn(rows, width + gap)[:, :width] * 3
    if masked:
        x[:, ::2] = -torch.inf
    temperature = torch.rand(rows) + 0.5
    seeds = torch.full((rows,), seed) ^ torch.arange(rows)
    positions = torch.full((rows,), position) + torch.arange(rows)
    found = drawn(x, temperature, seeds, positions)
    noisy = x / temperature[:, None] + gumbel(seeds, positions, torch.arange(width))
    if rows and not (masked and width == 1):
        chosen = noisy.gather(1, found[:, None])[:, 0]
        torch.testing.assert_close(chosen, noisy.amax(-1), rtol=0, atol=4e-6)
    with threads(3):
        assert torch.equal(drawn(x, temperature, seeds, positions), found)
    for row in range(rows):
        one = slice(row, row + 1)
        assert torch.equal(drawn(x[one], temperature[one], seeds[one], positions[one]), found[one])


def test_tokens_come_by_their_probabilities() -> None:
    p = torch.tensor([0.5, 0.25, 0.15, 0.0, 0.1])
    count = 40_000
    x, one = p.log().expand(count, -1).contiguous(), torch.ones(count)
    found = drawn(x, one, torch.full((count,), 7), torch.arange(count))
    shares = torch.bincount(found, minlength=5) / count
    assert ((shares - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()


def test_noise_far_out() -> None:
    """Where all logits are equal, the token with the largest noise, which is made of the least hashes."""
    seeds, positions = torch.arange(64), torch.arange(64) * 1000
    noise = gumbel(seeds, positions, torch.arange(150_000))
    found = drawn(torch.zeros(64, 150_000), torch.ones(64), seeds, positions)
    chosen = noise.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(chosen, noise.amax(-1), rtol=1e-6, atol=0)
    assert chosen.max() > 14


def test_what_is_no_number_is_passed_over() -> None:
    x = torch.tensor([[torch.nan, 1.0, torch.nan], [-torch.inf, -torch.inf, 0.0], [torch.nan] * 3])
    found = drawn(x, torch.ones(3), torch.arange(3), torch.arange(3))
    assert found[:2].tolist() == [1, 2] and 0 <= int(found[2]) < 3


def test_what_is_not_served_is_declined() -> None:
    x, one, whole = torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    assert pointwise.draw(x.double(), one, whole, whole) is NotImplemented
    assert pointwise.draw(x, one.double(), whole, whole) is NotImplemented
    assert pointwise.draw(x, one, whole.int(), whole) is NotImplemented
    assert pointwise.draw(x[:, :0], one, whole, whole) is NotImplemented
    assert int(ops.draw.reference(x, one, whole, whole)) in range(4)
