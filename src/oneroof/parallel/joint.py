"""How the ranks of one engine work together: over memory that they share where they can, else by collectives.

Both give a sum in the order of ranks on a CPU: a row's bits depend neither on its neighbours nor on the way.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from oneroof import log
from oneroof.comm.mesh import Mesh
from oneroof.errors import RankLost
from oneroof.ops.cpu.board import Board, can_share, new_file


class Joint:
    """A mesh, and the board of this stage where there is one. Made by all ranks at once."""

    def __init__(self, mesh: Mesh, device: torch.device) -> None:
        self.mesh = mesh
        self.board = _board(mesh) if device.type == "cpu" else None
        log.debug(f"rank {mesh.rank} joins the others over {'sockets' if self.board is None else 'memory'}")

    @property
    def leads(self) -> bool:
        """This rank schedules and chooses tokens."""
        return self.mesh.rank == self.mesh.driver

    def total(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum of the lanes' x, in `dtype`."""
        if self.board is not None and self.board.serves(x_TD):
            return self.board.total(x_TD, dtype)
        return self.mesh.total(x_TD).to(dtype)

    def side_by_side(self, x_RN: Tensor, whole: int, each: int) -> Tensor:
        """The lanes' columns of float32 rows, for the one that leads; others get theirs back."""
        if self.board is not None:
            return self.board.side_by_side(x_RN, whole, each, wanted=self.leads)
        return self.mesh.side_by_side(x_RN, whole, each, wanted=self.leads)

    def tell(self, said: bytes) -> None:
        """To all other ranks, by the one that leads; they `hear` it."""
        if self._all_here:
            assert self.board is not None
            self.board.tell(said)
            self.check()
        else:
            self.mesh.tell(said)

    def hear(self) -> bytes:
        """What the one that leads tells, waiting for it however long."""
        if not self._all_here:
            return self.mesh.hear()
        assert self.board is not None
        said = self.board.hear(self.mesh.driver)
        self.check()
        assert said is not None
        return said

    def check(self) -> None:
        """RankLost where what was put together is worth nothing, as a rank has died."""
        if self.board is not None and self.board.ended:
            raise RankLost("a rank has died")

    def end(self) -> None:
        """A rank has died: nobody waits for it any more."""
        if self.board is not None:
            self.board.end()

    @property
    def _all_here(self) -> bool:
        return self.board is not None and self.mesh.pp == 1


def _board(mesh: Mesh) -> Board | None:
    """That of this stage, if all ranks are on one machine and have the native library."""
    can = mesh.least(int(can_share(mesh.tp))) and mesh.one_machine()
    if not can:
        return None
    leads = mesh.lane == 0
    made = _made(mesh.tp) if leads else ""
    path = mesh.path(made)
    board = Board(Path(path), mesh.lane, mesh.tp) if path else None
    mesh.least(0)  # all have opened it
    if leads and path:
        Path(path).unlink(missing_ok=True)
    return board


def _made(ranks: int) -> str:
    try:
        return str(new_file(ranks))
    except OSError as error:
        log.debug(f"no memory can be shared: {error}")
        return ""
