"""Rows into panels and back, by the native library: bits move, nothing is computed. The layout is in
`abi.h`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from oneroof.ops.cpu.library import Native, native

_HELD = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8)  # by the kinds of abi.h


def pack(panels: Tensor, kind: int, first: int, values: Tensor) -> None:
    """Write `values` [n, K] as the outputs `first` .. of `panels` [P, bytes]; int4 stands one a byte, 0 to
    15.
    """
    held = values.to(_HELD[kind])
    held = held if held.stride(1) == 1 else held.contiguous()
    count, dim = held.shape
    if count and dim:
        _library().oneroof_pack(
            *(ctypes.c_void_p(held.data_ptr()), ctypes.c_int64(held.stride(0)), ctypes.c_int64(first)),
            *(ctypes.c_int64(count), ctypes.c_int64(dim), ctypes.c_int32(kind)),
            ctypes.c_void_p(panels.data_ptr()),
        )


def unpack(panels: Tensor, kind: int, first: int, count: int, dim: int) -> Tensor:
    """[n, K] what `pack` wrote there."""
    out = torch.empty(count, dim, dtype=_HELD[kind])
    if count and dim:
        _library().oneroof_unpack(
            *(ctypes.c_void_p(panels.data_ptr()), ctypes.c_int64(first), ctypes.c_int64(count)),
            *(ctypes.c_int64(dim), ctypes.c_int32(kind), ctypes.c_void_p(out.data_ptr())),
        )
    return out


def _library() -> ctypes.CDLL:
    found: Native | None = native()
    assert found is not None, "a matrix in panels was made without the native library"
    return found.lib
