"""What this machine gives at this moment, on the native pool's threads: the floors that kernels are
compared with.
"""

from __future__ import annotations

import time
from ctypes import c_double, c_int64, c_void_p

import torch

from oneroof.ops.cpu.library import Native, native

_BLOCK = 1 << 29  # bytes: more than any cache holds
_ROUNDS = 400_000  # of two dozen multiply-adds: some milliseconds


def read_rate(times: int = 5) -> float | None:
    """Bytes a second that memory gives to all threads together, the best of some; None without a library."""
    found = _ready()
    if found is None:
        return None
    read = found.lib.oneroof_read_memory
    read.argtypes, read.restype = (c_void_p, c_int64), c_double
    block = torch.ones(_BLOCK // 4)
    best = 0.0
    for _ in range(times):
        began = time.perf_counter()
        read(block.data_ptr(), _BLOCK)
        best = max(best, _BLOCK / (time.perf_counter() - began))
    return best


def multiply_add_rate(times: int = 5) -> float | None:
    """Float32 multiplications and additions a second, counted apart; None without the library."""
    found = _ready()
    if found is None:
        return None
    run = found.lib.oneroof_multiply_add
    run.argtypes, run.restype = (c_int64,), c_double
    best = 0.0
    for _ in range(times):
        began = time.perf_counter()
        done = float(run(_ROUNDS))
        best = max(best, done / (time.perf_counter() - began))
    return best


def _ready() -> Native | None:
    """The library, with torch's number of threads where nobody has chosen one."""
    found = native()
    if found is not None and found.lib.oneroof_threads() == 0:
        found.lib.oneroof_set_threads(torch.get_num_threads())
    return found
