"""What works on rows by themselves, by the native kernels: norms, the heads' rotation, SwiGLU, the router.

Rows of a 16-bit type are worked on in float32 and rounded once. Letters: T tokens, D width, F width of an
MLP, H heads, K kv heads, d head dim, E experts, k chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneroof.ops.cpu.entry import DECLINED, Declined, launch
from oneroof.ops.cpu.structures import KINDS, Blend, Drawing, Heads, Likeliest, Norm, Routing, Swiglu, Waves

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_MOST_DIM = 1024  # of a head: MOST_DIM of pointwise.h
_MOST_TOKENS = 2**24  # places that a float32 tells apart


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor | Declined:
    """As `ops.rms_norm`."""
    if not _served(x, weight) or not (rows := _rows(x)):
        return DECLINED
    out = torch.empty_like(x)
    norm = Norm(
        *(x.data_ptr(), 0, weight.data_ptr(), out.data_ptr(), 0),
        *(rows[0], x.shape[-1], rows[1], 0, KINDS[x.dtype], eps),
    )
    launch("oneroof_rms_norm", norm, weight)
    return out


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor] | Declined:
    """As `ops.add_rms_norm`."""
    same = residual_TD.dtype == x_TD.dtype and residual_TD.shape == x_TD.shape
    if not same or not _served(x_TD, weight):
        return DECLINED
    rows, others = _rows(x_TD), _rows(residual_TD)
    if not rows or not others:
        return DECLINED
    out, total = torch.empty_like(x_TD), torch.empty_like(x_TD)
    norm = Norm(
        *(x_TD.data_ptr(), residual_TD.data_ptr(), weight.data_ptr(), out.data_ptr(), total.data_ptr()),
        *(rows[0], x_TD.shape[-1], rows[1], others[1], KINDS[x_TD.dtype], eps),
    )
    launch("oneroof_rms_norm", norm, weight)
    return out, total


def swiglu(gate_up: Tensor) -> Tensor | Declined:
    """As `ops.swiglu`."""
    if not gate_up.is_cpu or gate_up.dtype not in _FLOATS or gate_up.shape[-1] % 2:
        return DECLINED
    if not (rows := _rows(gate_up)):
        return DECLINED
    width = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype)
    launch(
        "oneroof_swiglu",
        Swiglu(gate_up.data_ptr(), out.data_ptr(), rows[0], width, rows[1], KINDS[gate_up.dtype]),
    )
    return out


def qk_norm_rope(
    qkv_TR: Tensor,
    heads: int,
    kv_heads: int,
    q_norm_d: Tensor | None,
    k_norm_d: Tensor | None,
    eps: float,
    cos_T1d: Tensor,
    sin_T1d: Tensor,
    interleaved: bool,
    query_scale_T11: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor] | Declined:
    """As `ops.qk_norm_rope`, in place: what comes back are views of `qkv`."""
    tokens, width = qkv_TR.shape
    every = heads + 2 * kv_heads
    dim, dtype = width // every, qkv_TR.dtype
    if not qkv_TR.is_cpu or dtype not in _FLOATS or qkv_TR.stride(1) != 1:
        return DECLINED
    if dim % 2 or dim > _MOST_DIM or cos_T1d.shape[-1] != dim or (q_norm_d is None) != (k_norm_d is None):
        return DECLINED
    cos, sin = _address(cos_T1d, torch.float32), _address(sin_T1d, torch.float32)
    scale = _address(query_scale_T11, torch.float32)
    q_norm, k_norm = _address(q_norm_d, dtype), _address(k_norm_d, dtype)
    if cos is None or sin is None or scale is None or q_norm is None or k_norm is None:
        return DECLINED
    rows = Heads(
        *(qkv_TR.data_ptr(), tokens, qkv_TR.stride(0), heads, kv_heads, dim),
        *(cos, sin, q_norm, k_norm, scale, KINDS[dtype], interleaved, eps),
    )
    launch("oneroof_heads", rows, q_norm_d, k_norm_d)
    q, k, v = qkv_TR.view(tokens, every, dim).split_with_sizes((heads, kv_heads, kv_heads), 1)
    return q, k, v


def route(
    scores_TE: Tensor, bias_E: Tensor | None, top_k: int, normalize: bool, floor: float
) -> tuple[Tensor, Tensor, Tensor] | Declined:
    """As `ops.route`; of equal experts the first is chosen."""
    x = scores_TE
    if not x.is_cpu or x.dtype not in _FLOATS or x.stride(1) != 1 or top_k > x.shape[1]:
        return DECLINED
    bias = _address(bias_E, torch.float32)
    if bias is None:
        return DECLINED
    tokens, experts = x.shape
    probabilities = torch.empty(tokens, experts)
    weights, chosen = torch.empty(tokens, top_k), torch.empty(tokens, top_k, dtype=torch.int64)
    routing = Routing(
        *(x.data_ptr(), bias, probabilities.data_ptr(), weights.data_ptr(), chosen.data_ptr()),
        *(tokens, experts, top_k, x.stride(0), KINDS[x.dtype], normalize, floor),
    )
    launch("oneroof_route", routing, bias_E)
    return weights, chosen, probabilities


def blend(x_TD: Tensor, y_TD: Tensor, gate_T1: Tensor | None) -> Tensor | Declined:
    """As `ops.blend`, rounded once."""
    x, y, gate = x_TD, y_TD, gate_T1
    if not x.is_cpu or x.dtype not in _FLOATS or y.dtype != x.dtype or x.stride(1) != 1 or y.stride(1) != 1:
        return DECLINED
    if gate is not None and gate.dtype != x.dtype:
        return DECLINED
    out = torch.empty(x.shape, dtype=x.dtype)
    address, between = (0, 0) if gate is None else (gate.data_ptr(), gate.stride(0))
    both = Blend(
        *(x.data_ptr(), y.data_ptr(), address, out.data_ptr()),
        *(*x.shape, x.stride(0), y.stride(0), between, KINDS[x.dtype]),
    )
    launch("oneroof_blend", both)
    return out


def likeliest(x_SV: Tensor, otherwise: int) -> Tensor | Declined:
    """As `ops.likeliest`."""
    if not x_SV.is_cpu or x_SV.dtype != torch.float32 or x_SV.shape[1] == 0 or not _rows(x_SV):
        return DECLINED
    rows, width = x_SV.shape
    chosen = torch.empty(rows, dtype=torch.int64)
    launch(
        "oneroof_likeliest",
        Likeliest(x_SV.data_ptr(), chosen.data_ptr(), rows, width, x_SV.stride(0), otherwise),
    )
    return chosen


def draw(x_SV: Tensor, temperature_S: Tensor, seeds_S: Tensor, positions_S: Tensor) -> Tensor | Declined:
    """As `ops.draw`, but for the last places of the noise; of equal ones the first."""
    temperature, x = _address(temperature_S, torch.float32), x_SV
    seeds, positions = _address(seeds_S, torch.int64), _address(positions_S, torch.int64)
    if temperature is None or seeds is None or positions is None:
        return DECLINED
    if not x.is_cpu or x.dtype != torch.float32 or not 0 < x.shape[1] < _MOST_TOKENS or not _rows(x):
        return DECLINED
    rows, width = x.shape
    chosen = torch.empty(rows, dtype=torch.int64)
    drawing = Drawing(
        *(x.data_ptr(), temperature, seeds, positions, chosen.data_ptr(), rows, width, x.stride(0))
    )
    launch("oneroof_draw", drawing)
    return chosen


def waves(turns_Th: Tensor, factor: float, interleaved: bool) -> tuple[Tensor, Tensor] | Declined:
    """As `ops.waves`."""
    turns = _address(turns_Th, torch.float32)
    if turns is None or not turns_Th.is_cpu:
        return DECLINED
    tokens, half = turns_Th.shape
    cos, sin = torch.empty(tokens, 1, 2 * half), torch.empty(tokens, 1, 2 * half)
    launch(
        "oneroof_waves",
        Waves(turns, cos.data_ptr(), sin.data_ptr(), tokens, half, interleaved, factor),
    )
    return cos, sin


def _address(x: Tensor | None, dtype: torch.dtype) -> int | None:
    """Where its numbers are, 0 for no tensor; None where they are not of `dtype` or not side by side."""
    if x is None:
        return 0
    return x.data_ptr() if x.dtype == dtype and x.is_contiguous() else None


def _served(x: Tensor, weight: Tensor) -> bool:
    return x.is_cpu and x.dtype in _FLOATS and weight.dtype == x.dtype and weight.is_contiguous()


def _rows(x: Tensor) -> tuple[int, int] | None:
    """How many rows x has, and how many numbers apart they are; None where they are not evenly apart."""
    if x.dim() == 2:
        return (x.shape[0], x.stride(0)) if x.stride(1) == 1 or x.numel() == 0 else None
    width = x.shape[-1]
    return (x.numel() // width if width else 0, width) if x.is_contiguous() else None
