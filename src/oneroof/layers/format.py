"""What stands in place of a plain weight: it knows how it is held, filled and multiplied with.

A layer asks a `Format` for its product and never which one it is. Letters: T tokens, K inputs, N outputs, E
experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_AT_ONCE = 1 << 20  # numbers of a weight that are worked on at once while it is filled


class Format(ABC):
    """A weight [E, N, K], E = 1 for one that stands alone, whose rows are filled by `put`."""

    experts: int
    rows: int
    dim: int

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that it takes."""

    @abstractmethod
    def put(self, expert: int, first: int, rows_nK: Tensor) -> None:
        """Take in the float rows `first` .. of `expert`, in any order, each once."""

    @abstractmethod
    def dense(self, expert: int = 0, first: int = 0, count: int = -1) -> Tensor:
        """[n, K] float32: the numbers that rows `first` .. stand for; -1: to the last."""

    @abstractmethod
    def linear(self, x_TK: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> Tensor:
        """``x @ weight^T + bias``, [T, N] in `dtype`."""

    @abstractmethod
    def gated(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        """``silu(g) * u`` of the two halves of that, [T, N / 2] in x's dtype."""

    @abstractmethod
    def mix(
        self,
        x_TD: Tensor,
        weights_Tk: Tensor,
        chosen_Tk: Tensor,
        down: Format,
        *,
        first: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The mixture of which this is gate and up of the experts from `first` on, and `down` what follows;
        [T, D] in `dtype`, or x's.
        """

    @abstractmethod
    def lookup(self, tokens_T: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, K] the rows of these tokens, in `dtype`."""

    @abstractmethod
    def split(self, dim: int, start: int, length: int) -> Format:
        """The part of it that has the rows (`dim` 0) or inputs (1) `start` .. ``start + length``."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a `Format` under a checkpoint's name: filled like a tensor, without being one."""

    format: Format
    expert: int
    first: int
    count: int
    dtype: torch.dtype  # of what is read into it

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint has it."""
        return (self.count, self.format.dim)

    @property
    def nbytes(self) -> int:
        """Its share of the format's memory."""
        whole = self.format
        return whole.nbytes * self.count // (whole.experts * whole.rows)

    def copy_(self, rows_nK: Tensor) -> Rows:
        """Fill them from a tensor of their shape, some at a time."""
        assert tuple(rows_nK.shape) == self.shape, (rows_nK.shape, self.shape)
        step = max(16, _AT_ONCE // max(1, self.format.dim) // 16 * 16)
        step -= self.first % 16 if self.count > step else 0  # so that all but the first begin a panel
        start = 0
        while start < self.count:
            some = rows_nK[start : start + step]
            self.format.put(self.expert, self.first + start, some)
            start += len(some)
            step = max(16, step // 16 * 16)
        return self

    def dense(self) -> Tensor:
        """[n, K] float32: the numbers they stand for."""
        return self.format.dense(self.expert, self.first, self.count)


Place = Tensor | Rows  # where a checkpoint's tensor goes
Join = Callable[[Tensor, torch.dtype], Tensor]  # makes ranks' float32 addends a sum of that type
Gather = Callable[[Tensor], Tensor]  # makes a rank's columns all there are


def emptied(weight: nn.Parameter) -> nn.Parameter:
    """What is left of a plain weight for which a format stands in: its dtype, and no memory."""
    return nn.Parameter(weight.new_empty(0), requires_grad=False)
