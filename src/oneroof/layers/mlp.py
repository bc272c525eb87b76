"""The gated MLP of a dense layer, and of the expert that every token visits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from oneroof.layers.format import Join, Place
from oneroof.layers.linear import Linear


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        bias: bool,
        leads: bool,
        dtype: torch.dtype,
        device: torch.device,
        fused: bool,
    ) -> None:
        """`width` is a rank's; the last bias is one rank's, the one that `leads`."""
        super().__init__()
        self.join: Join | None = None
        parts = {"gate_proj": width, "up_proj": width}
        self.gate_up = Linear(dim, parts, bias=bias, dtype=dtype, device=device, fused=fused)
        self.down = Linear(width, {"down_proj": dim}, bias=bias and leads, dtype=dtype, device=device)

    def forward(self, x_TD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """[T, D] -> [T, D] in `dtype`, or x's."""
        wide = dtype if self.join is None else torch.float32
        out: Tensor = self.down(self.gate_up.gated(x_TD), wide)
        return out if self.join is None else self.join(out, dtype or x_TD.dtype)

    def tensors(self) -> Iterator[tuple[str, Place]]:
        """The checkpoint's tensors, by their names within the layer's `mlp`."""
        yield from self.gate_up.tensors()
        yield from self.down.tensors()
