"""How a checkpoint is dealt out to the files of ranks, and what each holds, however it was cut before.

A slice is read and written some megabytes at a time, so that of the largest tensor no second copy is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.layout import Cut, Grid, Share, Span, cut_of, share_of
from oneroof.tensorfile import Spec
from oneroof.weights.division import Division, Layout, Piece
from oneroof.weights.load import reason_left_out
from oneroof.weights.names import Names, Part
from oneroof.weights.stored import Weights
from oneroof.weights.unfinished import File
from oneroof.weights.window import Tile, joined, slabs, whole

_AT_ONCE = 1 << 23  # bytes that are read and written at once


def divide(
    specs: Mapping[str, Spec], names: Names, config: ModelConfig, grid: Grid, *, standalone: bool = False
) -> Layout:
    """Each stored tensor's place. What several ranks hold is stored by the first, or by each if `standalone`.

    Tensors that the model leaves out go whole to rank 0. Raises UserError for a grid that cannot be.
    """
    shares = [share_of(config, grid, rank) for rank in range(grid.ranks)]
    divisions = {}
    for name, spec in specs.items():
        if reason_left_out(name, names, tied=config.tied_head) is not None:
            divisions[name] = Division(spec, None, 1, (0,), (Piece(0, Span(0, 0)),))
        else:
            divisions[name] = _divided(spec, names.split(spec), config, shares, grid.tp, standalone)
    return Layout(grid, divisions)


def needed(layout: Layout, names: Names, *, tied: bool) -> dict[str, Division]:
    """The divisions without those of tensors that the model leaves out."""
    return {
        name: division
        for name, division in layout.divisions.items()
        if reason_left_out(name, names, tied=tied) is None
    }


def file_of(layout: Layout, rank: int, stored: Weights) -> File:
    """What a rank's file holds, read from a checkpoint that may be cut in another way."""
    held = {
        name: (division, piece)
        for name, division in layout.divisions.items()
        for piece in division.pieces
        if piece.rank == rank
    }

    def read(name: str) -> Iterator[Tensor]:
        division, piece = held[name]
        tiles = [Tile(tile.here, tile.there) for tile in division.tiles(piece)]
        return _slabs(stored, name, division.held(piece), tiles)

    return File([division.held(piece) for division, piece in held.values()], read)


def joined_file(specs: Sequence[Spec], stored: Weights) -> File:
    """A file of whole tensors."""
    known = {spec.name: spec for spec in specs}

    def read(name: str) -> Iterator[Tensor]:
        all_of_it = whole(known[name].shape)
        return _slabs(stored, name, known[name], [Tile(all_of_it, all_of_it)])

    return File(specs, read)


def _slabs(stored: Weights, name: str, spec: Spec, tiles: Sequence[Tile]) -> Iterator[Tensor]:
    for window in slabs(whole(spec.shape), _AT_ONCE // spec.dtype.itemsize):
        yield joined(window, tiles, spec.dtype, lambda _, part: stored.window(name, part))
        stored.release(name)  # it is written by now


def _divided(
    spec: Spec, parts: Sequence[Part], config: ModelConfig, shares: Sequence[Share], tp: int, standalone: bool
) -> Division:
    cuts: dict[tuple[int, int], None] = {}  # (axis, blocks) of the stored tensor
    stages: dict[int, None] = {}
    held: dict[Piece, None] = {}
    taken: set[tuple[Span, Span | None]] = set()
    for share in shares:
        found = [(part, cut) for part in parts if (cut := cut_of(config, share, part.ours)) is not None]
        if not found:
            continue
        axis, blocks, span, experts = _seen(spec, parts, found)
        cuts[axis, blocks] = None
        stages[share.rank // tp] = None
        if standalone or (span, experts) not in taken:
            held[Piece(share.rank, span, experts)] = None
        taken.add((span, experts))
    if len(cuts) != 1:
        raise _uneven(spec)
    ((axis, blocks),) = cuts
    return Division(spec, None if axis < 0 else axis, blocks, tuple(stages), tuple(held))


def _seen(
    spec: Spec, parts: Sequence[Part], found: Sequence[tuple[Part, Cut]]
) -> tuple[int, int, Span, Span | None]:
    """(axis, blocks, span, experts) of what a rank holds of a stored tensor; axis -1: it is not cut."""
    first, cut = found[0]
    experts = sorted({part.expert for part, _ in found})
    if any(x != cut for _, x in found) or len(found) != len(experts) * first.blocks:
        raise _uneven(spec)
    stacked = first.expert >= 0
    all_of_them = len(found) == len(parts)
    some = None if not stacked or all_of_them else Span(experts[0], experts[-1] + 1)
    if some is not None and len(some) != len(experts):
        raise _uneven(spec)
    if cut.uncut:
        return -1, 1, Span(0, 0), some
    return cut.axis + stacked, first.blocks if cut.axis == 0 else 1, Span(cut.start, cut.stop), some


def _uneven(spec: Spec) -> UserError:
    return UserError(
        f"{spec.name} cannot be dealt out: its parts are cut in different ways; equal cuts are allowed; "
        "convert the checkpoint first"
    )
