"""Products of plain matrices by the native kernels, as training needs them: whole, of experts' rows, over
experts' rows; and what stands between the products of experts.

All sums are made in float32, and have one order whatever the threads and the other rows. Letters: M, N, K
rows, columns and steps of a product, E experts, R rows sorted by expert, T tokens, D width, k chosen, F an
expert's width.
"""

from __future__ import annotations

from ctypes import Structure, addressof, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from oneroof.ops.cpu.entry import kernel
from oneroof.ops.cpu.library import native
from oneroof.ops.cpu.structures import KINDS

_WHOLE, _ROWS, _STEPS = 0, 1, 2


class _Gemm(Structure):
    """`Gemm` of training.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("a", "b", "c", "bias", "bounds", "a_index", "b_index")),
        *((name, c_int64) for name in ("rows", "columns", "steps", "groups")),
        *(
            (name, c_int64)
            for name in ("a_row", "a_step", "b_step", "b_column", "b_group", "c_row", "c_group")
        ),
        *((name, c_int32) for name in ("a_type", "b_type", "c_type", "cut")),
    ]


class _Gather(Structure):
    """`Gather` of training.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "y", "weights", "place")),
        *((name, c_int64) for name in ("tokens", "k", "dim")),
        *((name, c_int32) for name in ("x_type", "y_type")),
    ]


class _Gate(Structure):
    """`Gate` of training.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("gate_up", "d", "weights", "d_gate_up", "weighed", "d_weights")),
        *((name, c_int64) for name in ("rows", "width")),
        ("type", c_int32),
    ]


def product(a_MK: Tensor, b_KN: Tensor, dtype: torch.dtype, bias_N: Tensor | None = None) -> Tensor:
    """``a @ b + bias``, [M, N] in `dtype`, which is the bias's."""
    a, b = _plain(a_MK), _plain(b_KN)
    (rows, steps), columns = a.shape, b.shape[1]
    out = torch.empty(rows, columns, dtype=dtype)
    bias = bias_N.contiguous() if bias_N is not None else None
    _call(
        "oneroof_multiply",
        _Gemm(
            *(
                a.data_ptr(),
                b.data_ptr(),
                out.data_ptr(),
                bias.data_ptr() if bias is not None else 0,
                0,
                0,
                0,
            ),
            *(rows, columns, steps, 1, *a.stride(), *b.stride(), 0, columns, 0),
            *(KINDS[a.dtype], KINDS[b.dtype], KINDS[dtype], _WHOLE),
        ),
    )
    return out


def of_experts(
    x_TK: Tensor, weight_EKN: Tensor, bounds_E1: Tensor, index_R: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Rows ``bounds[e] .. bounds[e + 1]`` of ``x[index]`` times expert e's matrix, [R, N] in `dtype`."""
    x, weight = x_TK.contiguous(), _plain(weight_EKN)
    experts, steps, columns = weight.shape
    rows = x.shape[0] if index_R is None else index_R.shape[0]
    out = torch.empty(rows, columns, dtype=dtype)
    index = 0 if index_R is None else index_R.data_ptr()
    _, b_step, b_column = weight.stride()
    _call(
        "oneroof_multiply",
        _Gemm(
            *(x.data_ptr(), weight.data_ptr(), out.data_ptr(), 0, bounds_E1.data_ptr(), index, 0),
            *(rows, columns, steps, experts, steps, 1, b_step, b_column, weight.stride(0), columns, 0),
            *(KINDS[x.dtype], KINDS[weight.dtype], KINDS[dtype], _ROWS),
        ),
    )
    return out


def over_experts(
    a_TM: Tensor, a_index_R: Tensor | None, b_TN: Tensor, b_index_R: Tensor | None, bounds_E1: Tensor
) -> Tensor:
    """``a[index]^T @ b[index]`` over each expert's rows, [E, M, N] in a's dtype; 0 where there are none."""
    a, b = a_TM.contiguous(), b_TN.contiguous()
    experts, rows, columns = bounds_E1.shape[0] - 1, a.shape[1], b.shape[1]
    steps = a.shape[0] if a_index_R is None else a_index_R.shape[0]
    out = torch.empty(experts, rows, columns, dtype=a.dtype)
    indices = (0 if index is None else index.data_ptr() for index in (a_index_R, b_index_R))
    _call(
        "oneroof_multiply",
        _Gemm(
            *(a.data_ptr(), b.data_ptr(), out.data_ptr(), 0, bounds_E1.data_ptr(), *indices),
            *(rows, columns, steps, experts, 1, rows, columns, 1, 0, columns, rows * columns),
            *(KINDS[a.dtype], KINDS[b.dtype], KINDS[a.dtype], _STEPS),
        ),
    )
    return out


def gather(x_RD: Tensor, place_Tk: Tensor, weights_Tk: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``y_t = sum_j w_tj * x[place_tj]`` with float32 weights, or 1; [T, D] in `dtype`."""
    tokens, k = place_Tk.shape
    out = torch.empty(tokens, x_RD.shape[1], dtype=dtype)
    weights = 0 if weights_Tk is None else weights_Tk.data_ptr()
    _call(
        "oneroof_gather",
        _Gather(
            *(x_RD.data_ptr(), out.data_ptr(), weights, place_Tk.data_ptr()),
            *(tokens, k, x_RD.shape[1], KINDS[x_RD.dtype], KINDS[dtype]),
        ),
    )
    return out


def gate_backward(gate_up_R2F: Tensor, d_RF: Tensor, weights_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``h = silu(g) * u`` and ``y = w * (h @ W)``, given float32 ``d = dy @ W^T``: the gradient of (g, u)
    [R, 2F], ``w * h`` [R, F], and the gradient of w [R], float32.
    """
    rows, width = d_RF.shape
    d_gate_up, weighed = torch.empty_like(gate_up_R2F), torch.empty(rows, width, dtype=gate_up_R2F.dtype)
    d_weights = torch.empty(rows)
    _call(
        "oneroof_gate",
        _Gate(
            *(gate_up_R2F.data_ptr(), d_RF.data_ptr(), weights_R.data_ptr()),
            *(d_gate_up.data_ptr(), weighed.data_ptr(), d_weights.data_ptr()),
            *(rows, width, KINDS[gate_up_R2F.dtype]),
        ),
    )
    return d_gate_up, weighed, d_weights


def _plain(matrix: Tensor) -> Tensor:
    """Itself where numbers of its rows or of its columns lie side by side."""
    return matrix if 1 in matrix.stride()[-2:] else matrix.contiguous()


def _call(name: str, given: Structure) -> None:
    """By as many threads as torch has, where nobody has chosen yet."""
    found = native()
    assert found is not None
    if found.lib.oneroof_threads() == 0:
        found.lib.oneroof_set_threads(c_int32(torch.get_num_threads()))
    kernel(name)(addressof(given))
