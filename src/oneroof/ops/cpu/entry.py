"""The library's kernels as Python functions with their types; what each takes is told in abi.h."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import cast

from oneroof.ops.cpu.library import native


class Declined:
    """The type of `NotImplemented`, which for mypy is any."""


DECLINED = cast(Declined, NotImplemented)
_STRUCTURE = (c_void_p,)
_TAKES = {
    "oneroof_attention": _STRUCTURE,
    "oneroof_rms_norm": _STRUCTURE,
    "oneroof_heads": _STRUCTURE,
    "oneroof_linear": _STRUCTURE,
    "oneroof_gated": _STRUCTURE,
    "oneroof_mixture": _STRUCTURE,
    "oneroof_multiply": _STRUCTURE,
    "oneroof_gather": _STRUCTURE,
    "oneroof_gate": _STRUCTURE,
    "oneroof_lookup": (c_void_p, c_void_p, c_int64, c_void_p, c_int32),
    "oneroof_swiglu": (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int32),
    "oneroof_argmax": (c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p),
    "oneroof_route": (
        *(c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int32, c_float),
        *(c_void_p, c_void_p),
    ),
}


@cache
def kernel(name: str) -> Callable[..., None]:
    """`oneroof_attention` and its like; the library must be there. Lets go of the interpreter's lock."""
    found = native()
    assert found is not None
    function = found.lib[name]
    function.argtypes, function.restype = _TAKES[name], None
    made: Callable[..., None] = function
    return made
