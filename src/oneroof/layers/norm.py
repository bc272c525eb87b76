"""The root-mean-square norm as a layer: alone, or joined with the addition of the residual before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oneroof import ops


class RMSNorm(nn.Module):
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dim."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x; any leading shape."""
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of the sum, the sum)."""
        return ops.add_rms_norm(x_TD, residual_TD, self.weight, self.eps)
