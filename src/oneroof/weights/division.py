"""`layout.json`: how a folder's tensors lie in the files of its ranks, read with distrust and written.

`Division` is one tensor's: cut along an axis, in each of equal `blocks` where it is a pack, and, where it
stacks experts, dealt out by these too. Ranks are whole numbers and make the files' names; no path is read.
A group-quantised weight will be several tensors, each with a division of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from oneroof.errors import UserError
from oneroof.jsonfile import read_object
from oneroof.layout import Grid, Span
from oneroof.tensorfile import DTYPES, WORDS, Spec
from oneroof.weights.window import Tile, whole

LAYOUT = "layout.json"
VERSION = 1


@dataclass(frozen=True)
class Piece:
    """What one rank's file holds of a tensor: `span` of the axis, or of each block; some experts or all."""

    rank: int
    span: Span
    experts: Span | None = None


@dataclass(frozen=True)
class Division:
    """Where one tensor is. `axis` None: it is not cut."""

    spec: Spec
    axis: int | None
    blocks: int
    stages: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def tiles(self, piece: Piece) -> Iterator[Tile]:
        """Of the whole tensor (`there`), where the piece has which (`here`)."""
        there, here = list(whole(self.spec.shape)), list(whole(self.shape(piece)))
        if piece.experts is not None:
            there[0] = piece.experts
        if self.axis is None:
            yield Tile(tuple(there), tuple(here), piece.rank)
            return
        height, mine = self.spec.shape[self.axis] // self.blocks, len(piece.span)
        for block in range(self.blocks):
            first = block * height
            there[self.axis] = Span(first + piece.span.start, first + piece.span.stop)
            here[self.axis] = Span(block * mine, (block + 1) * mine)
            yield Tile(tuple(there), tuple(here), piece.rank)

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """Of the piece in its file."""
        shape = list(self.spec.shape)
        if piece.experts is not None:
            shape[0] = len(piece.experts)
        if self.axis is not None:
            shape[self.axis] = self.blocks * len(piece.span)
        return tuple(shape)

    def held(self, piece: Piece) -> Spec:
        """The piece, as its file lists it."""
        return Spec(self.spec.name, self.spec.dtype, self.shape(piece))

    def row(self) -> dict[str, object]:
        """Its entry in the file."""
        first, *more = self.stages
        entry: dict[str, object] = {
            "shape": list(self.spec.shape),
            "dtype": WORDS[self.spec.dtype],
            "axis": self.axis,
            "blocks": self.blocks,
            "stage": [first, *more] if more else first,
            "pieces": [[piece.rank, piece.span.start, piece.span.stop] for piece in self.pieces],
        }
        dealt = [[x.rank, x.experts.start, x.experts.stop] for x in self.pieces if x.experts is not None]
        return entry | ({"experts": dealt} if dealt else {})


@dataclass(frozen=True)
class Layout:
    """The whole file. `alone`: the folder is that rank's, without the others; None: it has all of them."""

    grid: Grid
    divisions: Mapping[str, Division]
    alone: int | None = None
    made: object = None  # of what, by whoever wrote it

    def document(self) -> dict[str, object]:
        """The file's content."""
        document: dict[str, object] = {"version": VERSION}
        document |= {"tp": self.grid.tp, "pp": self.grid.pp, "ep": self.grid.ep}
        document |= {} if self.alone is None else {"rank": self.alone}
        document |= {} if self.made is None else {"made": self.made}
        return document | {"tensors": {name: x.row() for name, x in self.divisions.items()}}

    def ranks(self) -> range:
        """Those whose files are there."""
        return range(self.grid.ranks) if self.alone is None else range(self.alone, self.alone + 1)

    def file(self, folder: Path, rank: int) -> Path:
        """Where the weights of a rank are."""
        return (folder if self.alone is not None else folder / f"rank_{rank}") / "model.safetensors"


def read_layout(folder: Path) -> Layout:
    """`layout.json` of a folder. UserError for one that cannot be, with the first thing that is wrong."""
    path = folder / LAYOUT
    document = read_object(path)
    version = document.get("version")
    if version != VERSION:
        raise UserError(
            f"{path} has version {version!r}; {VERSION} is allowed; shard the model with this oneroof"
        )
    tp, pp, ep = (_count(document, key, path) for key in ("tp", "pp", "ep"))
    if tp % ep:
        raise UserError(f"{path} has tp {tp} and ep {ep}; one that divides tp is allowed; shard it again")
    grid, alone = Grid(tp=tp, pp=pp, ep=ep), document.get("rank")
    if alone is not None and not (_whole(alone) and alone < grid.ranks):
        raise UserError(
            f"{path} has rank {alone!r}; 0 to {grid.ranks - 1} are allowed; shard the model again"
        )
    tensors = document.get("tensors")
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} lists no tensors; an entry for each is needed; shard the model again")
    divisions = {name: _division(name, row, grid, path) for name, row in tensors.items()}
    return Layout(grid, divisions, alone, document.get("made"))


def _division(name: str, row: object, grid: Grid, path: Path) -> Division:
    def wrong(what: str) -> UserError:
        return UserError(f"{path}: {name} {what}; shard the model again")

    if not isinstance(row, dict):
        raise wrong("is no object")
    shape, word, axis, blocks = (row.get(key) for key in ("shape", "dtype", "axis", "blocks"))
    if not _counts(shape):
        raise wrong(f"has shape {shape!r}; whole numbers are allowed")
    if not isinstance(word, str) or word not in DTYPES:
        raise wrong(f"has dtype {word!r}; {', '.join(DTYPES)} are allowed")
    if axis is not None and not (_whole(axis) and axis < len(shape)):
        raise wrong(f"has axis {axis!r}; null or 0 to {len(shape) - 1} are allowed")
    if not _whole(blocks) or blocks < 1 or (blocks > 1 if axis is None else shape[axis] % blocks):
        raise wrong(f"has {blocks!r} blocks; a divisor of {1 if axis is None else shape[axis]} is allowed")
    told = row.get("stage")
    stages = told if isinstance(told, list) else [told]
    if not stages or not _counts(stages) or max(stages) >= grid.pp:
        raise wrong(f"has stage {told!r}; 0 to {grid.pp - 1} are allowed")
    extent = None if axis is None else shape[axis] // blocks
    spans = _spans(row.get("pieces"), grid, extent)
    if not spans:
        raise wrong(f"has pieces {row.get('pieces')!r}; [rank, start, stop] within its {extent} is allowed")
    dealt: list[tuple[int, Span]] = []
    if "experts" in row:
        dealt = _spans(row["experts"], grid, shape[0]) if len(shape) > 1 and axis != 0 else []
        if [rank for rank, _ in dealt] != [rank for rank, _ in spans]:
            raise wrong(f"has experts {row['experts']!r}; one [rank, start, stop] a piece is allowed")
    experts: list[Span | None] = [span for _, span in dealt]
    experts = experts or [None] * len(spans)
    pieces = tuple(Piece(rank, span, some) for (rank, span), some in zip(spans, experts, strict=True))
    if not _tile(pieces, extent, shape[0] if dealt else None):
        raise wrong(f"has pieces that do not make up its shape {shape}")
    return Division(Spec(name, DTYPES[word], tuple(shape)), axis, blocks, tuple(stages), pieces)


def _spans(found: object, grid: Grid, extent: int | None) -> list[tuple[int, Span]]:
    """(rank, span) of each entry, no rank twice; nothing where one of them cannot be."""
    spans: dict[int, Span] = {}
    for entry in found if isinstance(found, list) else []:
        if not isinstance(entry, list) or len(entry) != 3 or not all(map(_whole, entry)):
            return []
        rank, start, stop = entry
        fits = (start, stop) == (0, 0) if extent is None else start < stop <= extent
        if rank >= grid.ranks or rank in spans or not fits:
            return []
        spans[rank] = Span(start, stop)
    return list(spans.items())


def _tile(pieces: tuple[Piece, ...], extent: int | None, experts: int | None) -> bool:
    """Whether they are all of it: pieces are the same or lie apart, and nothing is left out."""
    if experts is not None:
        groups: dict[Span, list[Span]] = {}
        for piece in pieces:
            assert piece.experts is not None
            groups.setdefault(piece.experts, []).append(piece.span)
        return _in_line(groups, experts) and all(_in_line(x, extent) for x in groups.values())
    return _in_line([piece.span for piece in pieces], extent)


def _in_line(spans: Iterable[Span], extent: int | None) -> bool:
    end = 0
    for span in sorted(set(spans), key=lambda span: span.start):
        if span.start != end:
            return False
        end = span.stop
    return extent is None or end == extent


def _count(document: Mapping[str, object], key: str, path: Path) -> int:
    value = document.get(key)
    if not _whole(value) or value < 1:
        raise UserError(f"{path} has {key} {value!r}; 1 or more is allowed; shard the model again")
    return value


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(map(_whole, value))


def _whole(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
