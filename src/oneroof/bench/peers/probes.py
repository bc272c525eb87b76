"""What the machine gives at this moment: the two rates that the numbers beside them are shares of.

Read by the native kernels where they are there, else by torch's sums and products, which reach a little less.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from oneroof.bench.floor import streamed
from oneroof.ops.cpu.probe import multiply_add_rate

_SIDE = 1536  # of the square matrices that are multiplied


@dataclass(frozen=True)
class Reading:
    """Rates on as many threads as the peers have."""

    bandwidth: float  # bytes a second, read in order
    arithmetic: float  # multiplications and additions a second, in float32


def read() -> Reading:
    """Take both now; about a second."""
    return Reading(streamed(torch.device("cpu")), multiply_add_rate() or multiplied())


def multiplied() -> float:
    """Multiplications and additions a second of the best of some float32 matrix products."""
    left, right = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - began))
    return best
