"""The mixture-of-experts block: a router, its experts in one stack, and a shared expert where there is one.

Letters: T tokens, D model width, E experts, k chosen, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oneroof import ops
from oneroof.config import Experts
from oneroof.layers.format import Format, Join, Place, Rows, emptied
from oneroof.layers.linear import Linear
from oneroof.layers.mlp import MLP
from oneroof.layout import Span


class Routing(NamedTuple):
    """The router's answer for T tokens."""

    weights: Tensor  # [T, k] float32
    chosen: Tensor  # [T, k] int64
    probabilities: Tensor  # [T, E] float32: what a balance loss reads


class Router(nn.Module):
    """``softmax(x @ weight^T)`` and the choice of k experts."""

    def __init__(self, dim: int, experts: Experts, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.experts = experts
        held = torch.float32 if experts.router_float32 else dtype
        self.weight = nn.Parameter(torch.empty(experts.count, dim, dtype=held, device=device))
        shape = (1, experts.count)  # as stored
        bias = torch.empty(shape, dtype=torch.float32, device=device) if experts.choice_bias else None
        self.choice_bias = nn.Parameter(bias, requires_grad=False) if bias is not None else None
        self.format: Format | None = None

    def adopt(self, format: Format) -> None:
        """Be `format` from now on, which is to be filled, instead of the plain weight."""
        assert (format.rows, format.dim) == tuple(self.weight.shape)
        self.format, self.weight = format, emptied(self.weight)

    def forward(self, x_TD: Tensor) -> Routing:
        """[T, D] -> which experts each token visits, and with what weight."""
        facts = self.experts
        if self.format is not None:
            scores = self.format.linear(x_TD, None, self.weight.dtype)
        else:
            scores = ops.linear(x_TD.to(self.weight.dtype), self.weight, None)
        return Routing(*ops.route(scores, self.choice_bias, facts.top_k, facts.normalize, facts.norm_floor))

    def table(self) -> Place:
        """Where the checkpoint's tensor goes."""
        if self.format is None:
            return self.weight
        return Rows(self.format, 0, 0, self.format.rows, self.weight.dtype)


class MoE(nn.Module):
    """Routed experts, plus the shared one; of a rank, those that it has."""

    def __init__(
        self,
        dim: int,
        experts: Experts,
        *,
        mine: Span,
        width: int,
        shared_width: int,
        leads: bool,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        fused: bool,
    ) -> None:
        """`mine` are the experts that are here, `width` and `shared_width` a rank's; one rank `leads`."""
        super().__init__()
        self.join: Join | None = None
        self.router = Router(dim, experts, dtype, device)
        self.mine, self.all = mine, len(mine) == experts.count
        count = len(mine)
        self.gate_up = nn.Parameter(torch.empty(count, 2 * width, dim, dtype=dtype, device=device))
        self.down = nn.Parameter(torch.empty(count, dim, width, dtype=dtype, device=device))
        self.gate_up_format: Format | None = None
        self.down_format: Format | None = None
        shared, gate = shared_width, experts.shared_gate
        self.shared: MLP | None = None
        if shared:
            self.shared = MLP(dim, shared, bias=bias, leads=leads, dtype=dtype, device=device, fused=fused)
        self.shared_gate = (
            Linear(dim, {"shared_expert_gate": 1}, bias=False, dtype=dtype, device=device)
            if shared and gate
            else None
        )

    def adopt(self, gate_up: Format, down: Format) -> None:
        """Let these, which are to be filled, stand for the experts' plain weights."""
        self.gate_up_format, self.gate_up = gate_up, emptied(self.gate_up)
        self.down_format, self.down = down, emptied(self.down)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        routing: Routing = self.router(x_TD)
        weights, chosen = routing.weights, routing.chosen
        dtype = None if self.join is None else torch.float32
        if self.gate_up_format is not None and self.down_format is not None:
            first, down = self.mine.start, self.down_format
            out = self.gate_up_format.mix(x_TD, weights, chosen, down, first=first, dtype=dtype)
        else:
            start = None if self.all else self.mine.start
            out = ops.mixture(x_TD, weights, chosen, self.gate_up, self.down, start).to(dtype or x_TD.dtype)
        if self.shared is not None:
            gate = self.shared_gate(x_TD, dtype) if self.shared_gate is not None else None
            out = ops.blend(out, self.shared(x_TD, dtype), gate)
        return out if self.join is None else self.join(out, x_TD.dtype)

    def tensors(self) -> Iterator[tuple[str, Place]]:
        """The checkpoint's tensors, by their names within the layer's `mlp`."""
        yield "gate.weight", self.router.table()
        if self.router.choice_bias is not None:
            yield "gate.choice_bias", self.router.choice_bias
        yield from self._experts()
        if self.shared is not None:
            for name, tensor in self.shared.tensors():
                yield f"shared_expert.{name}", tensor
        if self.shared_gate is not None:
            yield from self.shared_gate.tensors()

    def _experts(self) -> Iterator[tuple[str, Place]]:
        both, last = self.gate_up_format, self.down_format
        width = self.down.shape[2] if last is None else last.dim
        for e in range(self.down.shape[0] if last is None else last.experts):
            if both is None or last is None:
                yield f"experts.{self.mine.start + e}.gate_proj.weight", self.gate_up[e].narrow(0, 0, width)
                yield f"experts.{self.mine.start + e}.up_proj.weight", self.gate_up[e].narrow(0, width, width)
                yield f"experts.{self.mine.start + e}.down_proj.weight", self.down[e]
            else:
                dtype = self.down.dtype
                yield f"experts.{self.mine.start + e}.gate_proj.weight", Rows(both, e, 0, width, dtype)
                yield f"experts.{self.mine.start + e}.up_proj.weight", Rows(both, e, width, width, dtype)
                yield f"experts.{self.mine.start + e}.down_proj.weight", Rows(last, e, 0, last.rows, dtype)
