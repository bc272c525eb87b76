"""Windows: what is joined from tiles is what lay there, whatever the tiles and whatever is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oneroof.layout import Span
from oneroof.tensorfile import DTYPES
from oneroof.weights.window import Tile, Window, joined, meet, moved, shape_of, slabs, through, whole

SHAPES = st.lists(st.integers(1, 7), min_size=0, max_size=3)


@st.composite
def tiled(draw: st.DrawFn) -> tuple[list[int], list[Window], Window]:
    """A shape, windows that make it up, and one that is asked for."""
    shape = draw(SHAPES)
    axes: list[list[Span]] = []
    for size in shape:
        ends = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))})
        axes.append([Span(a, b) for a, b in itertools.pairwise(ends)])
    wanted = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        wanted.append(Span(start, draw(st.integers(start + 1, size))))
    return shape, list(itertools.product(*axes)), tuple(wanted)


def numbers(shape: Sequence[int]) -> Tensor:
    tensor = torch.empty(shape)
    return torch.arange(tensor.numel(), dtype=torch.float32).view(tuple(shape))


@given(tiled())
def test_what_is_joined_is_what_lay_there(case: tuple[list[int], list[Window], Window]) -> None:
    shape, windows, wanted = case
    tensor = numbers(shape)
    parts = [through(tensor, window).clone() for window in windows]
    tiles = [Tile(window, whole(shape_of(window)), i) for i, window in enumerate(windows)]
    reads: list[int] = []

    def read(source: int, window: Window) -> Tensor:
        reads.append(source)
        return through(parts[source], window)

    found = joined(wanted, [*tiles, *tiles], tensor.dtype, read)
    assert torch.equal(found, through(tensor, wanted))
    assert reads == [i for i, window in enumerate(windows) if meet(window, wanted) is not None]
    if len(reads) == 1:
        assert found.untyped_storage().data_ptr() == parts[reads[0]].untyped_storage().data_ptr()


@given(tiled(), st.integers(1, 40))
def test_slabs_are_the_window_in_the_order_of_memory(
    case: tuple[list[int], list[Window], Window], limit: int
) -> None:
    shape, _, window = case
    tensor = numbers(shape)
    parts = [through(tensor, slab) for slab in slabs(window, limit)]
    assert torch.equal(torch.cat([x.reshape(-1) for x in parts]), through(tensor, window).reshape(-1))
    assert all(part.numel() <= limit for part in parts)


def test_a_window_moves_with_what_it_lies_in() -> None:
    assert moved((Span(5, 7),), (Span(4, 9),), (Span(0, 5),)) == (Span(1, 3),)
    assert meet((Span(0, 2), Span(0, 2)), (Span(1, 3), Span(2, 3))) is None
    assert meet((), ()) == ()


def test_of_what_is_empty_nothing_is_read() -> None:
    def read(source: int, window: Window) -> Tensor:
        raise AssertionError(source)

    found = joined(whole((0, 4)), [Tile(whole((0, 4)), whole((0, 4)))], torch.int8, read)
    assert found.shape == (0, 4)


@pytest.mark.parametrize("word", DTYPES)
def test_every_dtype_is_joined_bit_for_bit(word: str) -> None:
    size = DTYPES[word].itemsize
    high = 2 if word == "BOOL" else 256
    raw = torch.randint(0, high, (6, 4 * size), dtype=torch.uint8)
    tensor = raw.view(DTYPES[word])
    cuts = (Span(0, 1), Span(1, 4))
    tiles = [Tile((Span(0, 6), x), whole((6, len(x))), i) for i, x in enumerate(cuts)]
    parts = [through(tensor, tile.there).clone() for tile in tiles]
    found = joined(whole((6, 4)), tiles, tensor.dtype, lambda i, window: through(parts[i], window))
    assert torch.equal(found.view(torch.uint8), raw)
