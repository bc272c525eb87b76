"""Sampling noise as a pure function of (seed, position, token id): no generator, no state, no order.

Integer arithmetic alone decides the bits, so any device, batch or rank hashes to the same numbers, and from
the same logits a request draws the same token alone, in a crowd, or computed anew after preemption. Letters:
S rows, V token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneroof.ops.dispatch import op

_LARGEST = 1.0 - 2.0**-24  # the float32 below 1


@op
def draw(x_SV: Tensor, temperature_S: Tensor, seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    """[S] int64: a token of each row by ``softmax(x / t)``, the largest of ``x / t + gumbel``."""
    ids = torch.arange(x_SV.shape[1], device=x_SV.device)
    return (x_SV / temperature_S[:, None]).add_(gumbel(seeds_S, positions_S, ids)).argmax(-1)


def gumbel(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """[S, V] float32 standard Gumbel noise of the tokens `ids`, [V] or [S, V].

    ``argmax(logits + gumbel)`` is a draw from ``softmax(logits)``. `seeds` and `positions` are [S] int64; a
    position is the place the drawn token will take in its sequence.
    """
    return uniform(seeds, positions, ids).clamp_(max=_LARGEST).neg_().log1p_().neg_().log_().neg_()


def uniform(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """[S, V] float32 in (0, 1], 31 bits of hash each; finest near 0, where `gumbel` has its long tail.

    Two rounds of a 32-bit mixer over the token id, keyed by the two halves of a 64-bit hash of seed and
    position.
    """
    key = mix64(mix64(seeds) ^ positions)
    low = (key << 32 >> 32).to(torch.int32)
    high = (key >> 32).to(torch.int32)
    bits = _mix32(_mix32(ids.to(torch.int32) ^ low[:, None]).add_(high[:, None]))
    return bits.bitwise_and_(0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)


def _mix32(x: Tensor) -> Tensor:
    """In place: `lowbias32` of C. Wellons' hash-prospector, a bijection on 32 bits. [..] int32, wrapping."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_signed(0x846CA68B, 32))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def mix64(x: Tensor) -> Tensor:
    """One step of splitmix64 (Steele, Lea, Flood 2014): a bijection on 64 bits. [..] int64, wrapping."""
    x = x + _signed(0x9E3779B97F4A7C15, 64)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB, 64)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(value: int, bits: int) -> int:
    """Two's complement: torch has no unsigned arithmetic on every device."""
    return value - (1 << bits) if value >> (bits - 1) else value
