"""Products with a `Matrix`, whatever its number format. Letters: T tokens, K inputs, N outputs, E experts,
k chosen.

The references widen the weight to the input's dtype row by row as they need it; they are the specification,
not a way to be quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof.ops.dispatch import op
from oneroof.ops.matrix import Matrix
from oneroof.ops.mixture import only

_LARGEST = 127.0


@dataclass(frozen=True)
class Input:
    """How a product reads its input: `float` as it is, `dynamic` as int8 with a scale for each token
    (``max |x| / 127``), `static` as int8 with the given scale.
    """

    kind: Literal["float", "dynamic", "static"] = "float"
    scale: float = 0.0  # static


FLOAT = Input()
DYNAMIC = Input("dynamic")


@op
def matmul(x_TK: Tensor, weight: Matrix, bias_N: Tensor | None, how: Input, dtype: torch.dtype) -> Tensor:
    """``y = x @ weight^T + bias``, [T, N] in `dtype`.

    With an int8 input and an int8 weight in one group the sums are exact integers; a sum is scaled by the
    weight's scale, then by the input's.
    """
    return _product(x_TK, weight, 0, bias_N, how, dtype)


@op
def gated_matmul(x_TK: Tensor, weight: Matrix, bias_N: Tensor | None, how: Input) -> Tensor:
    """``silu(g) * u`` of ``[g, u] = x @ weight^T + bias``, [T, N / 2] in x's dtype (arXiv:2002.05202)."""
    gate, up = _product(x_TK, weight, 0, bias_N, how, torch.float32).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x_TK.dtype)


@op
def mix(
    x_TD: Tensor,
    weights_Tk: Tensor,
    chosen_Tk: Tensor,
    gate_up: Matrix,
    down: Matrix,
    how: Input,
    inner: Input,
    first: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``y_t = sum_j w_tj * down_c(swiglu(gate_up_c(x_t)))`` with ``c = chosen_tj``; [T, D].

    In `dtype`, or x's. `how` is how x is read, `inner` how what goes into `down`. A token's sum goes in the
    order of its choices. Experts are counted from `first`, and a choice of one that is not here adds nothing.
    """
    tokens, k = chosen_Tk.shape
    out_TkD = x_TD.new_zeros(tokens, k, down.rows, dtype=torch.float32)
    local_Tk = only(chosen_Tk, first, first + gate_up.experts)
    for expert in local_Tk[local_Tk >= 0].unique().tolist():
        token, choice = torch.where(local_Tk == expert)
        gate, up = _product(x_TD[token], gate_up, expert, None, how, torch.float32).chunk(2, dim=-1)
        hidden = F.silu(gate) * up
        out_TkD[token, choice] = _product(hidden.to(x_TD.dtype), down, expert, None, inner, torch.float32)
    return (out_TkD * weights_Tk[:, :, None]).sum(1).to(dtype or x_TD.dtype)


@op
def lookup(tokens_T: Tensor, weight: Matrix, dtype: torch.dtype) -> Tensor:
    """[T, K] the rows `tokens` of the weight, as numbers in `dtype`."""
    if weight.layout == "rows" and weight.scales is None:
        return F.embedding(tokens_T, weight.values[0]).to(dtype)
    each, back = tokens_T.unique(return_inverse=True)
    rows = [weight.dense(0, token, 1, dtype) for token in each.tolist()]
    return torch.cat(rows)[back] if rows else tokens_T.new_zeros(0, weight.dim, dtype=dtype)


def quantize(x_TK: Tensor, how: Input) -> tuple[Tensor, Tensor]:
    """x as int8 in [-127, 127] (held as float32, so that sums are exact below 2^24), and its scale [T, 1].

    A row that is not finite has a scale that is not, and zeros.
    """
    x = x_TK.float()
    most = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(x.shape[0], 1)
    scale = torch.where(most.isfinite(), how.scale, most) if how.kind == "static" else most / _LARGEST
    usable = scale.isfinite() & (scale > 0)
    inverse = torch.where(usable, 1.0 / scale, 0.0)
    q = torch.where(usable, (x * inverse).round().clamp(-_LARGEST, _LARGEST), 0.0)
    return q, scale


def _product(
    x_TK: Tensor, weight: Matrix, expert: int, bias_N: Tensor | None, how: Input, dtype: torch.dtype
) -> Tensor:
    if how.kind == "float":
        y = F.linear(x_TK.float(), weight.dense(expert))
    else:
        q, scale = quantize(x_TK, how)
        y = _whole(q, weight, expert) * scale
    return (y if bias_N is None else y + bias_N.float()).to(dtype)


def _whole(q_TK: Tensor, weight: Matrix, expert: int) -> Tensor:
    """[T, N] of int8 inputs: whole sums in each group, scaled and added up group by group."""
    assert weight.scales is not None, "int8 inputs go with whole numbers"
    held = weight.read(expert, 0, weight.rows).double()
    if weight.kind == "int4":
        points = 8 if weight.zeros is None else weight.by_input(weight.zeros, expert)
        held = held - points
    total = torch.zeros(q_TK.shape[0], weight.rows, device=q_TK.device)
    scales = weight.by_group(weight.scales, expert)
    span = weight.group or max(weight.dim, 1)
    for g, start in enumerate(range(0, weight.dim, span)):
        part = q_TK[:, start : start + span].double() @ held[:, start : start + span].t()
        total = torch.addcmul(total, part.float(), scales[:, g])
    return total
