"""`linear` and `mixture` on plain weights where a gradient is wanted: products of the native kernels, both
ways.

Without one they decline: for a few rows the references read weights faster than they could be packed here.
So they do for bfloat16 where the CPU multiplies it: torch does too, as fast or, with AMX, faster. Gradients
are made in float32 sums and rounded once; they have no gradients of their own. Letters: T tokens, K inputs,
N outputs, D width of the model, E experts, k chosen of them, F width of an expert, R = T * k rows sorted by
expert.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function, FunctionCtx, once_differentiable

from oneroof.ops.cpu.entry import DECLINED, Declined
from oneroof.ops.cpu.gemm import gate_backward, gather, of_experts, over_experts, product
from oneroof.ops.cpu.library import native
from oneroof.ops.cpu.pointwise import swiglu

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor | Declined:
    """As `ops.linear`."""
    given = (x_TK, weight_NK) if bias_N is None else (x_TK, weight_NK, bias_N)
    if not _served(*given) or x_TK.dim() != 2 or weight_NK.dim() != 2 or x_TK.shape[1] != weight_NK.shape[1]:
        return DECLINED
    if bias_N is not None and bias_N.shape != weight_NK.shape[:1]:
        return DECLINED
    return cast(Tensor, _Linear.apply(x_TK, weight_NK, bias_N))  # type: ignore[no-untyped-call]


def mixture(
    x_TD: Tensor,
    weights_Tk: Tensor,
    chosen_Tk: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    first: int | None = None,
) -> Tensor | Declined:
    """As `ops.mixture` of all experts; the routing weights are not rounded to x's dtype."""
    if (
        first is not None
        or not _served(x_TD, gate_up_E2FD, down_EDF, others=(weights_Tk,))
        or chosen_Tk.dtype != torch.int64
    ):
        return DECLINED
    (tokens, dim), (experts, _, width) = x_TD.shape, down_EDF.shape
    fits = gate_up_E2FD.shape == (experts, 2 * width, dim) and down_EDF.shape[1] == dim
    if not fits or weights_Tk.shape != chosen_Tk.shape or chosen_Tk.shape[0] != tokens:
        return DECLINED
    return cast(Tensor, _Mixture.apply(x_TD, weights_Tk, chosen_Tk, gate_up_E2FD, down_EDF))  # type: ignore[no-untyped-call]


linear.differentiable = mixture.differentiable = True  # type: ignore[attr-defined]  # told to `dispatch.Op`


def _served(*same: Tensor, others: tuple[Tensor, ...] = ()) -> bool:
    """Plain tensors of one dtype in the host's memory, one of which wants a gradient."""
    every = (*same, *others)
    return (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in every)
        and same[0].dtype in _FLOATS
        and not _left_to_torch(same[0].dtype)
        and all(t.dtype == same[0].dtype for t in same)
        and all(t.is_cpu and type(t) in (Tensor, torch.nn.Parameter) for t in every)
        and not torch.is_autocast_enabled("cpu")
    )


def _left_to_torch(dtype: torch.dtype) -> bool:
    found = native()
    return dtype == torch.bfloat16 and found is not None and found.variant in ("avx512bf16", "amx")


class _Linear(Function):
    """``y = x W^T + b``; ``dx = dy W``, ``dW = dy^T x``, ``db = sum_t dy_t``."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        _, for_weight, _ = _needed(ctx)
        ctx.save_for_backward(x if for_weight else weight, weight)  # x is long, and often nobody wants it
        return product(x, weight.t(), x.dtype, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = _kept(ctx)
        for_x, for_weight, for_bias = _needed(ctx)
        return (
            product(dy, weight, dy.dtype) if for_x else None,
            product(dy.t(), x, dy.dtype) if for_weight else None,
            dy.sum(0) if for_bias else None,
        )


class _Rows(NamedTuple):
    """Rows of tokens, each k times, sorted by expert."""

    bounds: Tensor  # [E + 1] rows of each expert
    order: Tensor  # [R] pair (token, choice) of each row
    source: Tensor  # [R] token of each row
    place: Tensor  # [T, k] row of each pair

    @staticmethod
    def sort(chosen_Tk: Tensor, experts: int) -> _Rows:
        """By expert, and in the order of tokens; IndexError for an expert that is none."""
        flat = chosen_Tk.reshape(-1)
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < experts:
            raise IndexError(f"an expert is not in 0 .. {experts - 1}")
        order = flat.argsort(stable=True)
        bounds = torch.zeros(experts + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(flat, minlength=experts), 0, out=bounds[1:])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        return _Rows(bounds, order, order // max(chosen_Tk.shape[1], 1), place.view(chosen_Tk.shape))


class _Mixture(Function):
    """``y_t = sum_j w_tj * down_c(h)``, ``h = swiglu(gate_up_c(x_t))``, ``c = chosen_tj``.

    Kept is what `gate_up` gave; h is made again. With ``d = dy down_c`` the gradient of w is ``d . h``, so
    that what `down` gave is not needed.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        rows = _Rows.sort(chosen, gate_up.shape[0])
        both = of_experts(x, gate_up.transpose(1, 2), rows.bounds, rows.source, x.dtype)
        ctx.save_for_backward(x, weights, gate_up, down, both, *rows)
        hidden = swiglu(both)
        assert isinstance(hidden, Tensor)
        out = of_experts(hidden, down.transpose(1, 2), rows.bounds, None, torch.float32)
        return gather(out, rows.place, weights.float().contiguous(), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gate_up, down, both, *sorting = _kept(ctx)
        rows, dy = _Rows(*sorting), dy.contiguous()
        for_x, for_weights, _, for_gate_up, for_down = _needed(ctx)
        d = of_experts(dy, down, rows.bounds, rows.source, torch.float32)
        d_both, weighed, d_weights = gate_backward(both, d, weights.float().reshape(-1)[rows.order])
        dx = None
        if for_x:
            d_rows = of_experts(d_both, gate_up, rows.bounds, None, torch.float32)
            dx = gather(d_rows, rows.place, None, x.dtype)
        return (
            dx,
            d_weights[rows.place].to(weights.dtype) if for_weights else None,
            None,
            over_experts(d_both, None, x, rows.source, rows.bounds) if for_gate_up else None,
            over_experts(dy, rows.source, weighed, None, rows.bounds) if for_down else None,
        )


def _kept(ctx: BackwardCFunction) -> tuple[Tensor, ...]:
    """What was saved for the way back."""
    return cast(tuple[Tensor, ...], ctx.saved_tensors)


def _needed(ctx: FunctionCtx) -> tuple[bool, ...]:
    """Which inputs want a gradient."""
    return cast(tuple[bool, ...], ctx.needs_input_grad)  # type: ignore[attr-defined]
