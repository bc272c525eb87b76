"""Tokens to vectors, and vectors to logits. Letters: T tokens, R rows, V vocabulary, D model width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneroof import ops


class Embedding(nn.Module):
    """A table [V, D]; a tied head multiplies by the same table."""

    def __init__(self, vocabulary: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, dim, dtype=dtype, device=device))

    def forward(self, tokens_T: Tensor) -> Tensor:
        """[T] -> [T, D]."""
        return F.embedding(tokens_T, self.weight)

    def scores(self, x_RD: Tensor) -> Tensor:
        """[R, D] -> logits [R, V] in float32."""
        return ops.linear(x_RD, self.weight, None).float()
