"""A weight in one of the forms that products read: number format, groups with a scale, and layout.

`rows` is the checkpoint's own order and what the references read. `panels` is that of the native CPU
kernels: 16 outputs side by side, as `cpu/abi.h` draws it. Letters: E experts, N outputs, K inputs, G groups
of a row, P panels.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from oneroof.ops.cpu.packing import pack, unpack

Layout = Literal["rows", "panels"]

LANES = 16  # outputs of a panel
KINDS = ("float32", "bfloat16", "float16", "int8", "int4")  # their places are the codes of `cpu/abi.h`
_INPUTS = (1, 2, 1, 4, 8)  # of a step in a panel
_BYTES = (64, 64, 32, 64, 64)
_ALIGNED = 64  # bytes
_LARGE = 1 << 17  # bytes: what is smaller gains nothing from pages of its own


@dataclass(frozen=True, eq=False)
class Matrix:
    """[E, N, K]; a weight by itself has E = 1.

    In rows `values` is [E, N, K] (of int4 [E, N, ceil(K / 2)] bytes, the first of two in the low half) and
    `scales` and `zeros` are [E, N, G]. In panels `values` is [E, P, bytes] and the others are [E, P, G,
    16].
    """

    kind: str
    layout: Layout
    experts: int
    rows: int
    dim: int
    group: int  # inputs that share a scale; 0: all of them
    values: Tensor
    scales: Tensor | None  # float32; None for floats
    zeros: Tensor | None  # uint8, of int4; None: 8 everywhere

    @cached_property
    def notes(self) -> dict[str, object]:
        """What a backend keeps about it, by a name of its own; empty at first."""
        return {}

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.dim // self.group) if self.group else 1

    @property
    def nbytes(self) -> int:
        """Memory of all that belongs to it."""
        return sum(t.nbytes for t in (self.values, self.scales, self.zeros) if t is not None)

    def write(
        self,
        expert: int,
        first: int,
        values: Tensor,
        scales: Tensor | None = None,
        zeros: Tensor | None = None,
    ) -> None:
        """Put rows `first` .. of `expert`: `values` [n, K] (int4: one a byte, 0 to 15), the others [n, G]."""
        count = values.shape[0]
        if self.layout == "panels":
            pack(self.values[expert], KINDS.index(self.kind), first, values)
        elif self.kind == "int4":
            self.values[expert, first : first + count] = _paired(values)
        else:
            self.values[expert, first : first + count] = values
        for mine, given in ((self.scales, scales), (self.zeros, zeros)):
            if mine is not None and given is not None:
                mine[self._places(expert, first, count)] = given.to(mine.dtype)

    def read(self, expert: int, first: int, count: int) -> Tensor:
        """[n, K] of what was written: numbers as they are held, without scales."""
        if self.layout == "panels":
            return unpack(self.values[expert], KINDS.index(self.kind), first, count, self.dim)
        held = self.values[expert, first : first + count]
        return _parted(held, self.dim) if self.kind == "int4" else held

    def dense(
        self, expert: int, first: int = 0, count: int = -1, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """[n, K] of the numbers that rows `first` .. of `expert` stand for; -1: to the last."""
        count = self.rows - first if count < 0 else count
        held = self.read(expert, first, count)
        if self.scales is None:
            return held.to(dtype)
        numbers = held.float()
        if self.kind == "int4":
            numbers = numbers - (8 if self.zeros is None else self.by_input(self.zeros, expert, first, count))
        return (numbers * self.by_input(self.scales, expert, first, count)).to(dtype)

    def by_group(self, numbers: Tensor, expert: int) -> Tensor:
        """[N, G] of `scales` or `zeros`."""
        return numbers[self._places(expert, 0, self.rows)]

    def by_input(self, numbers: Tensor, expert: int, first: int = 0, count: int = -1) -> Tensor:
        """[n, K] of them, or [n, 1] where a row has one."""
        found = numbers[self._places(expert, first, self.rows - first if count < 0 else count)]
        return found.repeat_interleave(self.group, dim=1)[:, : self.dim] if self.group else found

    def _places(self, expert: int, first: int, count: int) -> tuple[int | slice | Tensor, ...]:
        """Where the [n, G] of some rows lie among scales or zeros."""
        if self.layout == "rows":
            return expert, slice(first, first + count)
        rows = torch.arange(first, first + count, device=self.values.device)
        return expert, rows // LANES, slice(None), rows % LANES


def empty(
    kind: str,
    rows: int,
    dim: int,
    *,
    layout: Layout,
    device: torch.device,
    experts: int = 1,
    group: int = 0,
    zeros: bool = False,
) -> Matrix:
    """A matrix to be written to. `group` is a multiple of 8; one that takes a whole row is no group."""
    group = 0 if group >= dim else group
    assert group % 8 == 0, group
    code = KINDS.index(kind)
    panels, groups = -(-rows // LANES), -(-dim // group) if group else 1
    if layout == "panels":
        size = -(-dim // _INPUTS[code]) * _BYTES[code]
        values = _aligned(experts * panels * size, device).view(experts, panels, size)
    elif code < 3:
        values = torch.empty(experts, rows, dim, dtype=getattr(torch, kind), device=device)
    else:
        shape = (experts, rows, dim if kind == "int8" else -(-dim // 2))
        values = torch.empty(shape, dtype=torch.int8 if kind == "int8" else torch.uint8, device=device)

    def by_group(dtype: torch.dtype) -> Tensor:
        shape = (experts, panels, groups, LANES) if layout == "panels" else (experts, rows, groups)
        return torch.zeros(shape, dtype=dtype, device=device)

    scales = by_group(torch.float32) if code >= 3 else None
    points = by_group(torch.uint8) if zeros else None
    return Matrix(kind, layout, experts, rows, dim, group, values, scales, points)


def _aligned(size: int, device: torch.device) -> Tensor:
    """Zero bytes that begin where a cache line does; memory of a host is not touched.

    Large ones of a host are pages of 2 MiB where the system has them: a product reads many places at once.
    """
    if device.type == "cpu" and size >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, size + _ALIGNED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system may have none
            pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=torch.uint8)[:size]
    whole = torch.zeros(size + _ALIGNED, dtype=torch.uint8, device=device)  # its last panel is read ahead of
    skipped = -whole.data_ptr() % _ALIGNED
    return whole[skipped : skipped + size]


def _paired(values: Tensor) -> Tensor:
    """[.., K] of 0 to 15 -> [.., ceil(K / 2)] bytes."""
    if values.shape[-1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    values = values.to(torch.uint8)
    return values[..., 0::2] | values[..., 1::2] << 4


def _parted(pairs: Tensor, dim: int) -> Tensor:
    """The way back."""
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)[..., :dim]
