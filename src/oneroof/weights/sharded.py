"""The weights of a sharded folder, read as if nobody had cut them; `open_weights` opens either kind.

`layout.json` and the headers of all ranks' files are checked against each other before a number is read.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from oneroof.errors import UserError
from oneroof.tensorfile import Spec, TensorFile
from oneroof.weights.division import LAYOUT, Division, Layout, read_layout
from oneroof.weights.stored import StoredWeights, Weights
from oneroof.weights.unfinished import JOURNAL
from oneroof.weights.window import Tile, Window, joined, meet, shape_of, through, whole


def open_weights(folder: Path, *, all_ranks: bool = False) -> Weights:
    """The stored tensors of a folder, sharded or not. UserError where it has none, or they are torn.

    `all_ranks`: neither is a folder allowed that was made of one rank's share.
    """
    if (folder / JOURNAL).exists():
        raise UserError(
            f"{folder} is unfinished: what wrote it was interrupted; give the same command again to go on"
        )
    stored = ShardedWeights(folder) if (folder / LAYOUT).exists() else StoredWeights(folder)
    if all_ranks and stored.alone is not None:
        raise UserError(
            f"{folder} is the share of rank {stored.alone} alone; a folder of all ranks is allowed; take that"
        )
    return stored


class ShardedWeights:
    """All tensors by name, joined: `specs` without reading any, `read` as a view where one rank has all.

    A folder made of one rank's share lists all that the model needs too, and reads what that rank holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout = read_layout(folder)
        self.alone = self.layout.alone
        self.specs: dict[str, Spec] = {name: x.spec for name, x in self.layout.divisions.items()}
        self._files = {rank: TensorFile(_there(self.layout, folder, rank)) for rank in self.layout.ranks()}
        self.paths = (folder / LAYOUT, *(file.path for file in self._files.values()))
        self._tiles = {name: self._placed(division) for name, division in self.layout.divisions.items()}
        for file in self._files.values() if self.alone is None else ():
            foreign = next((name for name in file.specs if name not in self.specs), None)
            if foreign is not None:
                raise UserError(
                    f"{file.path} holds {foreign}, which {LAYOUT} does not list; shard the model again"
                )

    def read(self, name: str) -> Tensor:
        """The tensor: a view of a file where that has all of it."""
        return self.window(name, whole(self.specs[name].shape))

    def window(self, name: str, window: Window) -> Tensor:
        """A part of it: a view where one file has all of that, else joined from those that have some."""
        self.require(name, window)

        def read(rank: int, part: Window) -> Tensor:
            return through(self._files[rank].read(name), part)

        return joined(window, self._tiles[name], self.specs[name].dtype, read)

    def require(self, name: str, window: Window) -> None:
        """UserError where the folder is one rank's alone and that has not got this part."""
        if self.alone is None:
            return
        met = (meet(window, tile.there) for tile in self._tiles[name])
        if sum(math.prod(shape_of(x)) for x in met if x is not None) < math.prod(shape_of(window)):
            raise UserError(
                f"{self.folder} is the share of rank {self.alone} alone ({self.layout.grid}) and lacks part "
                f"of {name}; that rank of that layout can be loaded; take the folder of all ranks"
            )

    def release(self, name: str) -> None:
        """Give back the memory that reading `name` took."""
        for rank in dict.fromkeys(tile.source for tile in self._tiles[name]):
            self._files[rank].release(name)

    def _placed(self, division: Division) -> tuple[Tile, ...]:
        """Its tiles in the files that are there, each of which has what `layout.json` says."""
        tiles: list[Tile] = []
        for piece in division.pieces:
            file = self._files.get(piece.rank)
            if file is None:
                continue
            wanted, found = division.held(piece), file.specs.get(division.spec.name)
            if found is None:
                raise UserError(
                    f"{file.path} lacks {wanted.name}, which {LAYOUT} places there; shard the model again"
                )
            if found != wanted:
                raise UserError(
                    f"{file.path}: {wanted.name} is {found}, {LAYOUT} says {wanted}; shard the model again"
                )
            tiles += division.tiles(piece)
        return tuple(tiles)


def _there(layout: Layout, folder: Path, rank: int) -> Path:
    path = layout.file(folder, rank)
    if not path.exists():
        raise UserError(
            f"{folder} lacks {path.relative_to(folder)}; the files of all {layout.grid.ranks} ranks are "
            "needed; copy it there or shard the model again"
        )
    return path
