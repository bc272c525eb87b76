"""A matrix gives back what was written, in either layout, and both layouts mean the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import CPU, filled, values

from oneroof.ops.cpu.library import native
from oneroof.ops.matrix import KINDS, LANES, Layout, empty

kinds = st.sampled_from(KINDS)
heights = st.sampled_from([1, 5, 16, 17, 31, 48])
widths = st.sampled_from([1, 2, 3, 7, 8, 9, 30, 33, 64, 131])
groups = st.sampled_from([0, 8, 24, 64])


@pytest.fixture(params=["rows", "panels"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """Panels are the native library's."""
    name: Layout = request.param
    if name == "panels" and native() is None:
        pytest.skip("no native kernels")
    return name


@settings(max_examples=150, deadline=None)
@given(
    kind=kinds, rows=heights, dim=widths, group=groups, experts=st.sampled_from([1, 3]), zeros=st.booleans()
)
@pytest.mark.parametrize("place", ["rows", "panels"])
def test_what_is_written_is_read(
    place: Layout, kind: str, rows: int, dim: int, group: int, experts: int, zeros: bool
) -> None:
    if place == "panels" and native() is None:
        pytest.skip("no native kernels")
    matrix = filled(kind, (experts, rows, dim), place, group=group, zeros=zeros)
    every = values(kind, (experts, rows, dim))
    for e in range(experts):
        assert torch.equal(matrix.read(e, 0, rows), every[e])
        first = rows // 2
        assert torch.equal(matrix.read(e, first, rows - first), every[e, first:])


@settings(max_examples=150, deadline=None)
@given(
    kind=kinds, rows=heights, dim=widths, group=groups, experts=st.sampled_from([1, 3]), zeros=st.booleans()
)
def test_both_layouts_mean_the_same_numbers_to_the_bit(
    kind: str, rows: int, dim: int, group: int, experts: int, zeros: bool
) -> None:
    if native() is None:
        pytest.skip("no native kernels")
    shape = (experts, rows, dim)
    plain, packed = (filled(kind, shape, each, group=group, zeros=zeros) for each in ("rows", "panels"))
    grouped = kind.startswith("int") and 0 < group < dim
    assert plain.groups == packed.groups == (-(-dim // group) if grouped else 1)
    for e in range(experts):
        assert torch.equal(plain.dense(e), packed.dense(e))
        assert torch.equal(plain.dense(e, rows // 3, 1), packed.dense(e)[rows // 3 :][:1])
        assert torch.equal(plain.dense(e, dtype=torch.bfloat16), packed.dense(e).bfloat16())


def test_numbers_are_what_scales_and_zero_points_make_of_them(layout: Layout) -> None:
    matrix = empty("int4", 2, 12, layout=layout, device=CPU, group=8, zeros=True)
    whole = torch.arange(24, dtype=torch.uint8).view(2, 12) % 16
    scales = torch.tensor([[0.5, 2.0], [1.0, -3.0]])
    zeros = torch.tensor([[0, 4], [15, 8]], dtype=torch.uint8)
    matrix.write(0, 0, whole, scales, zeros)
    expected = torch.cat(
        [
            (whole[:, :8].float() - zeros[:, :1]) * scales[:, :1],
            (whole[:, 8:].float() - zeros[:, 1:]) * scales[:, 1:],
        ],
        dim=1,
    )
    assert torch.equal(matrix.dense(0), expected)
    without = empty("int4", 2, 12, layout=layout, device=CPU, group=8)
    without.write(0, 0, whole, scales)
    assert torch.equal(without.dense(0)[:, :8], (whole[:, :8].float() - 8) * scales[:, :1])


def test_rows_may_come_with_gaps_between_them(layout: Layout) -> None:
    wide = values("bfloat16", (20, 40))
    for held in (wide[:, 3:36], wide.t()[:20, :20]):
        matrix = empty("bfloat16", *held.shape, layout=layout, device=CPU)
        matrix.write(0, 0, held)
        assert torch.equal(matrix.read(0, 0, held.shape[0]), held)


def test_what_it_takes_is_told(layout: Layout) -> None:
    matrix = empty("int8", 32, 64, layout=layout, device=CPU, experts=2, group=16)
    assert matrix.nbytes == 2 * 32 * 64 + 2 * 32 * 4 * 4
    assert empty("int4", 32, 64, layout=layout, device=CPU).nbytes == 32 * 32 + 32 * 4


def test_panels_begin_where_a_cache_line_does_and_what_no_row_fills_is_zero() -> None:
    if native() is None:
        pytest.skip("no native kernels")
    matrix = empty("float32", 17, 5, layout="panels", device=CPU)
    assert matrix.values.data_ptr() % 64 == 0
    matrix.write(0, 0, torch.ones(17, 5))
    second = matrix.values[0, 1].view(torch.float32).view(5, LANES)
    assert second[:, 0].tolist() == [1.0] * 5 and not second[:, 1:].any()
