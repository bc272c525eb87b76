"""Tokens to vectors, and vectors to logits. Letters: T tokens, R rows, V vocabulary, D model width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneroof import ops
from oneroof.layers.format import Format, Gather, Join, Place, Rows, emptied
from oneroof.layout import Span


class Embedding(nn.Module):
    """A table [V, D], or a rank's rows of it; a tied head multiplies by the same table."""

    def __init__(self, rows: Span, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.rows = rows
        self.join: Join | None = None  # of vectors, where other ranks have the other rows
        self.gather: Gather | None = None  # of logits
        self.weight = nn.Parameter(torch.empty(len(rows), dim, dtype=dtype, device=device))
        self.format: Format | None = None

    def adopt(self, format: Format) -> None:
        """Be `format` from now on, which is to be filled, instead of the plain table."""
        assert (format.rows, format.dim) == tuple(self.weight.shape)
        self.format, self.weight = format, emptied(self.weight)

    def table(self) -> Place:
        """Where the checkpoint's tensor goes."""
        if self.format is None:
            return self.weight.data
        return Rows(self.format, 0, 0, self.format.rows, self.weight.dtype)

    def forward(self, tokens_T: Tensor) -> Tensor:
        """[T] -> [T, D]."""
        if self.join is None:
            return self._lookup(tokens_T)
        rows = self.rows
        mine = (tokens_T >= rows.start) & (tokens_T < rows.stop)
        found = self._lookup((tokens_T - rows.start).clamp(0, len(rows) - 1))
        return self.join(found.where(mine[:, None], 0.0), found.dtype)

    def _lookup(self, tokens_T: Tensor) -> Tensor:
        if self.format is not None:
            return self.format.lookup(tokens_T, self.weight.dtype)
        return F.embedding(tokens_T, self.weight)

    def scores(self, x_RD: Tensor) -> Tensor:
        """[R, D] -> logits [R, V] in float32."""
        if self.format is not None:
            mine = self.format.linear(x_RD, None, torch.float32)
        else:
            mine = ops.linear(x_RD, self.weight, None).float()
        return mine if self.gather is None else self.gather(mine)
