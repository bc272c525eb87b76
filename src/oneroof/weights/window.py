"""Windows: boxes in a tensor, one span for each of its axes, as pure numbers, and what is joined from them.

A rank's slice of a stored tensor is one window or several, so is what is asked for, and reading is where they
meet. A tensor without axes has the window ``()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneroof.layout import Span

Window = tuple[Span, ...]


@dataclass(frozen=True)
class Tile:
    """The numbers that stand at `there` in one tensor stand at `here` in another, of `source`."""

    there: Window
    here: Window
    source: int = 0


def whole(shape: Sequence[int]) -> Window:
    """All of a tensor."""
    return tuple(Span(0, size) for size in shape)


def shape_of(window: Window) -> tuple[int, ...]:
    """Of what is seen through it."""
    return tuple(len(span) for span in window)


def meet(one: Window, other: Window) -> Window | None:
    """What both have in common; None where that is nothing."""
    found = tuple(Span(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return found if all(span.start < span.stop for span in found) else None


def moved(window: Window, origin: Window, target: Window) -> Window:
    """A window inside `origin`, at the same place inside `target`."""
    return tuple(
        Span(span.start - a.start + b.start, span.stop - a.start + b.start)
        for span, a, b in zip(window, origin, target, strict=True)
    )


def through(tensor: Tensor, window: Window) -> Tensor:
    """The view of a tensor."""
    for axis, span in enumerate(window):
        if len(span) != tensor.shape[axis]:
            tensor = tensor.narrow(axis, span.start, len(span))
    return tensor


def slabs(window: Window, limit: int) -> Iterator[Window]:
    """The window in parts of at most `limit` numbers, in the order in which they lie in memory."""
    count = math.prod(shape_of(window))
    axis = next((axis for axis, span in enumerate(window) if len(span) > 1), None)
    if count <= limit or axis is None:
        yield window
        return
    span = window[axis]
    step = max(1, limit * len(span) // count)
    for start in range(span.start, span.stop, step):
        part = Span(start, min(start + step, span.stop))
        yield from slabs((*window[:axis], part, *window[axis + 1 :]), limit)


def joined(
    wanted: Window, tiles: Sequence[Tile], dtype: torch.dtype, read: Callable[[int, Window], Tensor]
) -> Tensor:
    """What `tiles` hold of `wanted`, which they cover: `read(source, window)` itself where one has all of it,
    else a tensor of `dtype` that is put together. A source that holds what another has held is not read.
    """
    found: dict[Window, Tile] = {}
    for tile in tiles:
        common = meet(wanted, tile.there)
        if common == wanted:
            return read(tile.source, moved(wanted, tile.there, tile.here))
        if common is not None:
            found.setdefault(common, tile)
    made = torch.empty(shape_of(wanted), dtype=dtype)
    for common, tile in found.items():
        target = through(made, moved(common, wanted, whole(made.shape)))
        target.copy_(read(tile.source, moved(common, tile.there, tile.here)))
    return made
