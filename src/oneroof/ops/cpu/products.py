"""Products with a matrix in panels by the native kernels: one weight, gated halves, experts, rows of a table.

Letters: T tokens, K inputs, N outputs, D model width, k chosen experts.
"""

from __future__ import annotations

from ctypes import addressof

import torch
from torch import Tensor

from oneroof.ops.cpu.entry import DECLINED, Declined, kernel, launch
from oneroof.ops.cpu.pointwise import swiglu
from oneroof.ops.cpu.structures import KINDS, Mixture, Product, Weight
from oneroof.ops.matmul import Input
from oneroof.ops.matrix import KINDS as HELD
from oneroof.ops.matrix import LANES, Matrix

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_HOW = {"float": 0, "dynamic": 1, "static": 2}
_SUMMED = 65536  # products of two bytes whose sum an int32 holds
_EXACT = 1024  # EXACT of matmul.h: inputs of a group whose sum of bytes is whole in every variant


def matmul(
    x_TK: Tensor, weight: Matrix, bias_N: Tensor | None, how: Input, dtype: torch.dtype
) -> Tensor | Declined:
    """As `ops.matmul`."""
    return _product("oneroof_linear", x_TK, weight, weight.rows, bias_N, how, dtype)


def gated_matmul(x_TK: Tensor, weight: Matrix, bias_N: Tensor | None, how: Input) -> Tensor | Declined:
    """As `ops.gated_matmul`; halves that do not begin a panel are multiplied first and gated after."""
    half = weight.rows // 2
    if half % LANES == 0:
        return _product("oneroof_gated", x_TK, weight, half, bias_N, how, x_TK.dtype)
    both = matmul(x_TK, weight, bias_N, how, torch.float32)
    gated = swiglu(both) if isinstance(both, Tensor) else both
    return gated.to(x_TK.dtype) if isinstance(gated, Tensor) else gated


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
) -> Tensor | Declined:
    """As `ops.mix`."""
    panels = gate_up.layout == down.layout == "panels" and down.dim % LANES == 0
    if (
        not panels
        or not _served(x_TD, gate_up, how)
        or not _served(x_TD, down, inner)
        or how.kind != inner.kind
    ):
        return DECLINED
    tokens, k = chosen_Tk.shape
    out = torch.empty(tokens, down.rows, dtype=dtype or x_TD.dtype)
    weights, chosen = weights_Tk.float().contiguous(), chosen_Tk.contiguous()
    mixture = Mixture(
        *(_weight(gate_up), _weight(down), x_TD.data_ptr(), out.data_ptr()),
        *(weights.data_ptr(), chosen.data_ptr(), first, tokens, k, x_TD.stride(0), down.rows),
        *(KINDS[x_TD.dtype], KINDS[out.dtype], _HOW[how.kind], how.scale, inner.scale),
    )
    launch("oneroof_mixture", mixture, gate_up, down)
    return out


def lookup(tokens_T: Tensor, weight: Matrix, dtype: torch.dtype) -> Tensor | Declined:
    """As `ops.lookup`; IndexError for a token that is none."""
    if weight.layout != "panels" or dtype not in _FLOATS or not tokens_T.is_cpu:
        return DECLINED
    tokens = tokens_T.to(torch.int64).contiguous()
    out = torch.empty(tokens.shape[0], weight.dim, dtype=dtype)
    run, count = kernel("oneroof_lookup"), tokens.shape[0]
    if not run(_weight(weight), tokens.data_ptr(), count, out.data_ptr(), KINDS[dtype]):
        raise IndexError(f"a token is not in 0 .. {weight.rows - 1}")
    return out


def _product(
    name: str,
    x_TK: Tensor,
    weight: Matrix,
    outputs: int,
    bias_N: Tensor | None,
    how: Input,
    dtype: torch.dtype,
) -> Tensor | Declined:
    if not _served(x_TK, weight, how) or dtype not in _FLOATS:
        return DECLINED
    if bias_N is not None and (bias_N.dtype != x_TK.dtype or not bias_N.is_contiguous()):
        return DECLINED
    tokens = x_TK.shape[0]
    out = torch.empty(tokens, outputs, dtype=dtype)
    product = Product(
        *(_weight(weight), x_TK.data_ptr(), out.data_ptr(), bias_N.data_ptr() if bias_N is not None else 0),
        *(tokens, x_TK.stride(0), outputs, KINDS[x_TK.dtype], KINDS[dtype], _HOW[how.kind], how.scale),
    )
    launch(name, product, weight, bias_N)
    return out


def _served(x_TK: Tensor, weight: Matrix, how: Input) -> bool:
    """By facts that do not change from call to call."""
    whole = weight.kind in ("int8", "int4")
    exact = how.kind == "float" or (whole and weight.group <= _EXACT)
    exact = exact and (not whole or min(weight.group or weight.dim, weight.dim) <= _SUMMED)
    fits = weight.layout == "panels" and x_TK.is_cpu and x_TK.dtype in _FLOATS
    return fits and exact and x_TK.dim() == 2 and x_TK.stride(1) == 1


def _weight(matrix: Matrix) -> int:
    """The address of its structure, which is made once."""
    found = matrix.notes.get("native")
    if not isinstance(found, Weight):
        pointers = [
            t.data_ptr() if t is not None else 0 for t in (matrix.values, matrix.scales, matrix.zeros)
        ]
        kind = HELD.index(matrix.kind)
        found = Weight(*pointers, kind, matrix.group, matrix.rows, matrix.dim, matrix.experts)
        matrix.notes["native"] = found
    return addressof(found)
