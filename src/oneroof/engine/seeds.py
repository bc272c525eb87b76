"""Seeds: fresh ones, those that follow from another, and those of a request's completions."""

from __future__ import annotations

import os

import torch

from oneroof.ops.noise import mix64


def branch(seed: int, number: int) -> int:
    """The seed of a request's completion `number`: the request's own for 0, unrelated ones for the others."""
    if number == 0:
        return seed
    return int(mix64(mix64(torch.tensor(seed)) + number))


def nth_seed(seed: int, index: int) -> int:
    """``seed + index``, wrapped into 64 bits."""
    return (seed + index + 2**63) % 2**64 - 2**63


def fresh_seed() -> int:
    """A seed nobody has had: 63 bits of the system's randomness."""
    return int.from_bytes(os.urandom(8), "little") >> 1
