"""The gated MLP of a dense layer, and of the expert that every token visits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from oneroof.layers.format import Place
from oneroof.layers.linear import Linear


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(
        self, dim: int, width: int, *, bias: bool, dtype: torch.dtype, device: torch.device, fused: bool
    ) -> None:
        super().__init__()
        parts = {"gate_proj": width, "up_proj": width}
        self.gate_up = Linear(dim, parts, bias=bias, dtype=dtype, device=device, fused=fused)
        self.down = Linear(width, {"down_proj": dim}, bias=bias, dtype=dtype, device=device)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        out: Tensor = self.down(self.gate_up.gated(x_TD))
        return out

    def tensors(self) -> Iterator[tuple[str, Place]]:
        """The checkpoint's tensors, by their names within the layer's `mlp`."""
        yield from self.gate_up.tensors()
        yield from self.down.tensors()
