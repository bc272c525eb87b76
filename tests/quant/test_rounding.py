"""Whole numbers and scales are near what they stand for, in every group, and tell of what is no number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneroof.quant.rounding import to_int4, to_int4_with_zeros, to_int8

shapes = st.tuples(st.sampled_from([1, 3, 16]), st.sampled_from([1, 7, 8, 40, 65, 130]))
groups = st.sampled_from([0, 8, 16, 128])
sizes = st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30])


def drawn(shape: tuple[int, int], size: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def by_input(by_group: Tensor, group: int, dim: int) -> Tensor:
    return by_group.repeat_interleave(group or dim, dim=1)[:, :dim].double()


@settings(max_examples=120, deadline=None)
@given(shape=shapes, group=groups, size=sizes, seed=st.integers(0, 9))
def test_int8_is_within_half_a_step(shape: tuple[int, int], group: int, size: float, seed: int) -> None:
    rows = drawn(shape, size, seed)
    whole, scales = to_int8(rows, group)
    assert whole.dtype == torch.int8 and whole.shape == rows.shape and scales.dtype == torch.float32
    assert scales.shape == (shape[0], -(-shape[1] // (group or shape[1])))
    assert whole.abs().max() == 127  # the largest is hit, and -128 is none
    step = by_input(scales, group, shape[1])
    assert ((whole.double() * step - rows.double()).abs() <= step * (0.5 + 1e-4)).all()


@settings(max_examples=120, deadline=None)
@given(shape=shapes, group=groups, size=sizes, seed=st.integers(0, 9))
def test_int4_is_within_a_step(shape: tuple[int, int], group: int, size: float, seed: int) -> None:
    """Half of one but at the end of the range that the largest is not at."""
    rows = drawn(shape, size, seed)
    whole, scales = to_int4(rows, group)
    assert whole.dtype == torch.uint8 and whole.max() <= 15
    step = by_input(scales, group, shape[1])
    off = ((whole.double() - 8) * step - rows.double()).abs() / step.abs()
    assert (off <= 1 + 1e-4).all() and (off[(whole > 0) & (whole < 15)] <= 0.5 + 1e-4).all()
    assert (whole == 0).any(1).all()  # the largest of a row is -8 steps


@settings(max_examples=120, deadline=None)
@given(
    shape=shapes, group=groups, size=sizes, seed=st.integers(0, 9), shift=st.sampled_from([0.0, 3.0, -3.0])
)
def test_int4_with_zero_points_covers_each_range(
    shape: tuple[int, int], group: int, size: float, seed: int, shift: float
) -> None:
    rows = drawn(shape, size, seed) + shift * size
    whole, scales, zeros = to_int4_with_zeros(rows, group)
    assert whole.dtype == zeros.dtype == torch.uint8 and max(whole.max(), zeros.max()) <= 15
    step, zero = by_input(scales, group, shape[1]), by_input(zeros, group, shape[1])
    assert (((whole.double() - zero) * step - rows.double()).abs() <= step * (1 + 1e-4)).all()


def test_zero_is_zero_in_every_format() -> None:
    """Also where a row is nothing else, and beside a range that lies on one side of it."""
    rows = torch.tensor([[0.0] * 8, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
    for kind in (to_int8, to_int4):
        whole, scales = kind(rows, 0)
        point = 8 if kind is to_int4 else 0
        assert not ((whole.int() - point) * scales)[rows == 0].any()
    whole, scales, zeros = to_int4_with_zeros(rows, 0)
    assert not ((whole.int() - zeros.int()) * scales)[rows == 0].any()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_group_that_is_not_finite_says_so_and_others_are_not_touched(wrong: float) -> None:
    rows = drawn((3, 32), 1.0, 0)
    expected = to_int8(rows, 16)
    rows[1, 20] = wrong
    whole, scales = to_int8(rows, 16)
    assert not scales[1, 1].isfinite()
    assert torch.equal(
        scales[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]], expected[1][[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]]
    )
    assert torch.equal(whole[[0, 2]], expected[0][[0, 2]]) and torch.equal(whole[1, :16], expected[0][1, :16])
    assert not (whole[1, 16:] * scales[1, 1]).isfinite().any()


def test_numbers_below_any_scale_are_zero() -> None:
    for kind in (to_int8, to_int4):
        whole, scales = kind(torch.full((2, 8), 1e-45), 0)
        point = 8 if kind is to_int4 else 0
        assert ((whole.int() - point) * scales).abs().max() <= 1e-44


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_as_the_floats_they_are(dtype: torch.dtype) -> None:
    rows = drawn((5, 48), 1.0, 1, dtype)
    for found, expected in zip(to_int8(rows, 16), to_int8(rows.float(), 16), strict=True):
        assert torch.equal(found, expected)
