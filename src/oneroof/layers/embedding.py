"""Tokens to vectors, and vectors to logits. Letters: T tokens, R rows, V vocabulary, D model width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneroof import ops
from oneroof.layers.format import Format, Place, Rows, emptied


class Embedding(nn.Module):
    """A table [V, D]; a tied head multiplies by the same table."""

    def __init__(self, vocabulary: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, dim, dtype=dtype, device=device))
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
        if self.format is not None:
            return self.format.lookup(tokens_T, self.weight.dtype)
        return F.embedding(tokens_T, self.weight)

    def scores(self, x_RD: Tensor) -> Tensor:
        """[R, D] -> logits [R, V] in float32."""
        if self.format is not None:
            return self.format.linear(x_RD, None, torch.float32)
        return ops.linear(x_RD, self.weight, None).float()
