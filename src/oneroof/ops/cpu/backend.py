"""The native CPU kernels under the names of the ops: what `dispatch.use` installs, and the one way to do
so.
"""

from __future__ import annotations

import sys
from ctypes import c_int32

import torch

from oneroof.ops.cpu.attention import attention
from oneroof.ops.cpu.library import native
from oneroof.ops.cpu.pointwise import (
    add_rms_norm,
    blend,
    draw,
    likeliest,
    qk_norm_rope,
    rms_norm,
    route,
    swiglu,
    waves,
)
from oneroof.ops.cpu.products import gated_matmul, lookup, matmul, mix
from oneroof.ops.cpu.recording import record
from oneroof.ops.cpu.training import linear, mixture
from oneroof.ops.dispatch import use

__all__ = [
    "add_rms_norm",
    "attention",
    "blend",
    "draw",
    "gated_matmul",
    "install",
    "likeliest",
    "linear",
    "lookup",
    "matmul",
    "mix",
    "mixture",
    "qk_norm_rope",
    "record",
    "rms_norm",
    "route",
    "set_threads",
    "swiglu",
    "take_threads",
    "threads",
    "waves",
]


def install() -> bool:
    """Let the native kernels serve this process from now on; False where there are none."""
    found = native()
    if found is None:
        return False
    use(f"native {found.variant}", sys.modules[__name__])
    return True


def threads() -> int:
    """Threads that kernels are shared out over, that of the caller included; torch's where they do not
    serve.
    """
    found = native()
    return (found.lib.oneroof_threads() if found is not None else 0) or torch.get_num_threads()


def set_threads(count: int) -> None:
    """Share kernels out over `count` threads."""
    found = native()
    if found is not None:
        found.lib.oneroof_set_threads(c_int32(count))


def take_threads() -> None:
    """From now on the native pool has this process's threads, and torch one: both at once only disturb each
    other.

    A worker of torch's that waits for its next task keeps a core busy, which the pool's then lack.
    """
    found = native()
    if found is not None:
        if found.lib.oneroof_threads() == 0:
            set_threads(torch.get_num_threads())
        torch.set_num_threads(1)
