"""A projection made of named parts: one fused product, several of the checkpoint's tensors.

Parts that lie side by side share a segment, and a segment is one weight, plain or in a `Format`; loader,
splitter and exporter see only the parts. Letters: T tokens, K inputs, N outputs of all parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from oneroof import ops
from oneroof.layers.format import Format, Place, Rows, emptied


class Segment(nn.Module):
    """One weight [N, K], with a bias [N] or none; its rows are the parts', one after the other."""

    def __init__(
        self, dim: int, parts: Mapping[str, int], bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        rows = sum(parts.values())
        self.weight = nn.Parameter(torch.empty(rows, dim, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(rows, dtype=dtype, device=device)) if bias else None
        self.format: Format | None = None

    def adopt(self, format: Format) -> None:
        """Be `format` from now on, which is to be filled, instead of the plain weight."""
        assert (format.rows, format.dim) == tuple(self.weight.shape)
        self.format, self.weight = format, emptied(self.weight)

    def forward(self, x_TK: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """[T, K] -> [T, N] in `dtype`, or x's."""
        if self.format is not None:
            return self.format.linear(x_TK, self.bias, dtype or x_TK.dtype)
        return ops.linear(x_TK, self.weight, self.bias).to(dtype or x_TK.dtype)

    def gated(self, x_TK: Tensor) -> Tensor:
        """``silu(g) * u`` of the two halves of the product, [T, N / 2]."""
        if self.format is not None:
            return self.format.gated(x_TK, self.bias)
        return ops.swiglu(self(x_TK))

    def tensors(self) -> Iterator[tuple[str, Place]]:
        """Each part's weight and bias: a view, under the part's name."""
        start = 0
        for name, rows in self.parts.items():
            if self.format is None:
                yield f"{name}.weight", self.weight.narrow(0, start, rows)
            else:
                yield f"{name}.weight", Rows(self.format, 0, start, rows, self.weight.dtype)
            if self.bias is not None:
                yield f"{name}.bias", self.bias.narrow(0, start, rows)
            start += rows


class Linear(nn.Module):
    """``Linear(dim, {"q_proj": q, "k_proj": kv, "v_proj": kv})``: [T, dim] -> [T, q + kv + kv].

    With `fused` the parts are one segment; without, each is a parameter of its own (training with shards or
    adapters).
    """

    def __init__(
        self,
        dim: int,
        parts: Mapping[str, int],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        fused: bool = True,
    ) -> None:
        super().__init__()
        groups = [dict(parts)] if fused else [{name: rows} for name, rows in parts.items()]
        self.segments = nn.ModuleList(Segment(dim, group, bias, dtype, device) for group in groups)

    def forward(self, x_TK: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """[T, K] -> [T, N] in `dtype`, or x's, the parts side by side."""
        if len(self.segments) == 1:
            out: Tensor = self.segments[0](x_TK, dtype)
            return out
        return torch.cat([segment(x_TK, dtype) for segment in self.segments], dim=-1)

    def gated(self, x_TK: Tensor) -> Tensor:
        """``silu(g) * u`` of two parts of equal height, [T, N / 2]."""
        if len(self.segments) == 1:
            segment = self.segments[0]
            assert isinstance(segment, Segment)
            return segment.gated(x_TK)
        return ops.swiglu(self(x_TK))

    def tensors(self) -> Iterator[tuple[str, Place]]:
        """Each part's weight and bias: a view, under the part's name."""
        for segment in self.segments:
            assert isinstance(segment, Segment)
            yield from segment.tensors()
