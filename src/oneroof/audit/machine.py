"""What this machine gives at this moment, measured in a second: what a plan for it counts with."""

from __future__ import annotations

import torch

from oneroof.audit.memory import Storage
from oneroof.audit.speed import Rates
from oneroof.device import cpu_features, memory, natural_dtype, use_threads
from oneroof.ops.cpu import backend
from oneroof.ops.cpu.probe import multiply_add_rate, read_rate

_PROBES = 3  # of which the best counts: whatever else runs here makes it slower, and never quicker
# What our kernels reach, fitted to docs/log.md's figures as `speed.py` says: of the rate at which memory is
# read, and of float32 multiply-adds from registers, where the CPU has instructions for such weights.
_REACH = {"w8a16": 0.95, "w8a8-dynamic": 0.9, "w4a16": 0.75}
_SHARES = {
    "bfloat16": 1.55,
    "w8a16": 1.4,
    "w8a8-dynamic": 2.4,
    "w4a16": 1.25,
    "w4a8-dynamic": 1.75,
}
_FLOAT = 0.8
_WIDENED = 0.7  # of numbers that are made float32 first
_HEAD = "w8a16"  # the output head's form in every scheme that is not plain
_NEEDS = {"bfloat16": {"avx512_bf16", "amx_bf16"}}
_WHOLE = {"avx512_vnni", "avx_vnni", "amx_int8"}


def native() -> bool:
    """The native CPU kernels serve here; tried in a child process where that was not done before."""
    return backend.install()


def natural(stored: str) -> str:
    """The number format in which a checkpoint in `stored` is run here."""
    return natural_dtype(stored, torch.device("cpu"), native=native())[0]


def free() -> int:
    """Bytes of this host's memory that are free."""
    return memory(torch.device("cpu")).free


def measured(storage: Storage) -> Rates:
    """Of this CPU; its ranks talk over the memory. Unknown without the native kernels."""
    use_threads("auto")
    backend.take_threads()
    bandwidth = peak = 0.0
    for _ in range(_PROBES):
        bandwidth, peak = max(bandwidth, read_rate() or 0.0), max(peak, multiply_add_rate() or 0.0)
    if not bandwidth or not peak:
        return Rates(bandwidth=None, arithmetic=None, link=None)
    word = storage.dtype if storage.quantization == "none" else storage.quantization
    return Rates(
        bandwidth=bandwidth * _REACH.get(word, 1.0),
        arithmetic=peak * share_of_peak(word),
        head=peak * share_of_peak(word if storage.quantization == "none" else _HEAD),
        link=bandwidth / 2,
    )


def share_of_peak(word: str) -> float:
    """How products with weights in a number format, or a scheme, go beside float32 multiply-adds."""
    if word == "float32":
        return _FLOAT
    there = not _NEEDS.get(word, _WHOLE).isdisjoint(cpu_features())
    return _SHARES.get(word, _WIDENED) if there else _WIDENED
