"""Memory that the ranks of one machine share, and what they do together over it with the native kernels.

A sum takes some microseconds, where a collective over sockets takes a millisecond; it is taken in the order
of ranks, so that it has the same bits on every rank and a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from oneroof.ops.cpu.entry import kernel, launch
from oneroof.ops.cpu.library import native
from oneroof.ops.cpu.structures import KINDS, Columns, Total
from oneroof.ops.cpu.structures import Board as View

_MOST_RANKS = 62  # MOST_RANKS of board.h
_NOTICE = 4096
_SLOT = 1 << 20  # bytes
_HEAD = 8  # bytes before what is told
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def can_share(ranks: int) -> bool:
    """Whether so many ranks can have a board here: the native library is there, and serves."""
    return 1 < ranks <= _MOST_RANKS and native() is not None


def new_file(ranks: int) -> Path:
    """An empty board's file, readable by this user alone, in memory where the system has such a folder."""
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else None
    number, name = tempfile.mkstemp(prefix="oneroof-board-", dir=folder)
    try:
        os.truncate(number, _NOTICE + ranks * 2 * _SLOT)
    finally:
        os.close(number)
    return Path(name)


class Board:
    """A rank's view of a board. What it does is done by all ranks, in the same order."""

    def __init__(self, path: Path, rank: int, ranks: int) -> None:
        """`path` is that of `new_file`, which may be removed once all have opened it."""
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _NOTICE + ranks * 2 * _SLOT)
        self._start = ctypes.c_char.from_buffer(self._map)
        self._ended = ctypes.c_uint32.from_buffer(self._map)
        self._view = View(ctypes.addressof(self._start), rank, ranks, _SLOT, 0)
        self._address = ctypes.addressof(self._view)

    @property
    def ended(self) -> bool:
        """A rank has died: what is done here waits for nobody and is worth nothing."""
        return bool(self._ended.value)

    def end(self) -> None:
        """Tell all ranks that one has died."""
        kernel("oneroof_end")(self._address)

    def serves(self, x: Tensor) -> bool:
        """Whether `total` takes it."""
        return x.is_cpu and x.dtype in _FLOATS and x.dim() == 2

    def total(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum of all ranks' x in `dtype`, rounded once."""
        x = x_TD.contiguous()
        out = torch.empty(x.shape, dtype=dtype)
        call = Total(self._address, x.data_ptr(), out.data_ptr(), *x.shape, KINDS[x.dtype], KINDS[dtype])
        launch("oneroof_total", call, self)
        return out

    def side_by_side(self, x_RN: Tensor, whole: int, each: int, *, wanted: bool) -> Tensor:
        """All ranks' columns of float32 rows, `each` of a rank but the last; only where `wanted`, else x."""
        x = x_RN.contiguous()
        out = torch.empty(x.shape[0], whole) if wanted else x
        address = out.data_ptr() if wanted else 0
        call = Columns(self._address, x.data_ptr(), address, x.shape[0], each, whole)
        kernel("oneroof_columns")(ctypes.addressof(call))
        return out

    def tell(self, said: bytes) -> None:
        """To all other ranks, which `hear`."""
        size = _SLOT - _HEAD - 1
        pieces = [said[i : i + size] for i in range(0, len(said), size)] or [b""]
        for i, piece in enumerate(pieces):
            part = bytes([i + 1 < len(pieces)]) + piece  # whether more comes
            if not kernel("oneroof_tell")(self._address, part, len(part)):
                return

    def hear(self, speaker: int) -> bytes | None:
        """What rank `speaker` tells, waiting for it however long; None where a rank has died."""
        room = ctypes.create_string_buffer(_SLOT)
        heard = bytearray()
        while True:
            size = kernel("oneroof_hear")(self._address, speaker, room)
            assert size is not None
            if size < 0:
                return None
            heard += memoryview(room)[1:size]
            if room[0] == b"\0":
                return bytes(heard)
