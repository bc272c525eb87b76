"""Mixture of experts: which experts a token visits, and what they make of it.

Letters: T tokens, D width of the model, E experts, k chosen of them, F width of an expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof.ops.dispatch import op
from oneroof.ops.linear import better_as_vector
from oneroof.ops.pointwise import swiglu


@op
def route(
    scores_TE: Tensor, bias_E: Tensor | None, top_k: int, normalize: bool, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose ``top_k(p + bias)`` and weigh them by ``p``, divided by ``max(sum, floor)`` where `normalize`.

    ``p = softmax(scores)`` over all experts, in float32. Gives weights [T, k] float32, experts [T, k] int64,
    and p [T, E] float32.
    """
    p = scores_TE.softmax(-1, dtype=torch.float32)
    chosen = (p if bias_E is None else p + bias_E).topk(top_k, dim=-1).indices
    weights = p.gather(-1, chosen)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=floor)
    return weights, chosen, p


def only(chosen_Tk: Tensor, start: int, stop: int) -> Tensor:
    """Choices among the experts ``start .. stop - 1``, which become 0, 1, ..; -1 for any other."""
    local = chosen_Tk - start
    return local.where((local >= 0) & (local < stop - start), -1)


@op
def mixture(
    x_TD: Tensor,
    weights_Tk: Tensor,
    chosen_Tk: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    first: int | None = None,
) -> Tensor:
    """``y_t = sum_j w_tj * down_c(swiglu(gate_up_c(x_t)))`` with ``c = chosen_tj``; [T, D] in x's dtype.

    Rows are sorted by expert and multiplied group by group; an expert that nobody chose costs nothing.
    `first`: only some experts are here, which are counted from it, and a choice of another adds nothing.
    """
    tokens, k = chosen_Tk.shape
    experts = gate_up_E2FD.shape[0]
    if first is not None:
        chosen_Tk = only(chosen_Tk, first, first + experts)
    if not torch.compiler.is_compiling():  # what looks at counts or at `chosen` on the host
        if _better_dense(x_TD, gate_up_E2FD):
            return _dense(x_TD, weights_Tk, chosen_Tk, gate_up_E2FD, down_EDF)
        if better_as_vector(x_TD):
            return _one_token(x_TD[0], weights_Tk[0], chosen_Tk[0], gate_up_E2FD, down_EDF)
    flat = chosen_Tk.reshape(-1)
    order = flat.where(flat >= 0, experts).argsort(stable=True)
    ends = torch.bincount(flat + 1, minlength=experts + 1)[1:].cumsum(0).to(torch.int32)
    rows = x_TD[order // k] if k > 1 else x_TD[order]
    hidden = swiglu.reference(_grouped(rows, gate_up_E2FD, ends))
    out = _grouped(hidden, down_EDF, ends)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.shape[0], device=order.device)
    each = out[back].view(tokens, k, x_TD.shape[1]).where(chosen_Tk[..., None] >= 0, 0.0)
    return torch.einsum("tkd,tk->td", each, weights_Tk.to(x_TD.dtype))


def _one_token(
    x_D: Tensor, weights_k: Tensor, chosen_k: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The same for a single token, expert by expert; [1, D]."""
    mine = chosen_k >= 0
    experts = chosen_k[mine].tolist()
    if not experts:
        return torch.zeros_like(x_D)[None]
    hidden = swiglu.reference(torch.stack([torch.mv(gate_up_E2FD[e], x_D) for e in experts]))
    out = torch.stack([torch.mv(down_EDF[e], h_F) for e, h_F in zip(experts, hidden, strict=True)])
    return (weights_k[mine].to(x_D.dtype) @ out)[None]


def _better_dense(x_TD: Tensor, gate_up_E2FD: Tensor) -> bool:
    """A few rows on a CPU, and experts so small that calls cost more than products."""
    small = gate_up_E2FD.nbytes <= 1 << 22 and x_TD.dtype != torch.float16  # 0 times an overflow is no number
    return small and x_TD.device.type == "cpu" and 0 < x_TD.shape[0] <= 64


def _dense(
    x_TD: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The same, every expert for every token, with weight 0 where it was not chosen."""
    experts = gate_up_E2FD.shape[0]
    both = torch.mm(gate_up_E2FD.flatten(0, 1), x_TD.t()).view(experts, -1, x_TD.shape[0])
    gate, up = both.chunk(2, dim=1)
    mine = weights_Tk.where(chosen_Tk >= 0, 0.0)
    weights_TE = weights_Tk.new_zeros(x_TD.shape[0], experts).scatter_add_(1, chosen_Tk.clamp(min=0), mine)
    hidden_EFT = F.silu(gate) * up
    out_EDT = torch.bmm(down_EDF, hidden_EFT)
    return torch.einsum("edt,te->td", out_EDT, weights_TE.to(x_TD.dtype))


def _grouped(x_RK: Tensor, weight_ENK: Tensor, ends_E: Tensor) -> Tensor:
    """Rows ``ends[e - 1] .. ends[e]`` of x times expert e's weight, transposed: [R, N].

    What comes of rows behind the last end is undefined.
    """
    aligned = all(size * x_RK.element_size() % 16 == 0 for size in weight_ENK.shape[1:])
    if aligned and (x_RK.device.type == "cpu" or x_RK.dtype == torch.bfloat16):  # what torch 2.13 serves
        few = x_RK.shape[0] <= 8 * weight_ENK.shape[0] and not torch.compiler.is_compiling()
        if few and x_RK.device.type == "cpu" and x_RK.dtype != torch.float32:  # as in `better_weight_first`
            return F.grouped_mm(weight_ENK, x_RK.t(), offs=ends_E).t().contiguous()
        return F.grouped_mm(x_RK, weight_ENK.transpose(1, 2), offs=ends_E)
    counts = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
    rest = x_RK.new_zeros(x_RK.shape[0] - sum(counts), weight_ENK.shape[1])
    rows = x_RK[: sum(counts)].split(counts)
    return torch.cat([*(F.linear(some, weight_ENK[e]) for e, some in enumerate(rows)), rest])
