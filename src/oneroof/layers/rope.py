"""Rotary angles: from positions to the cosines and sines that all layers of a forward share.

Letters: T tokens, d head dim. Kinds as in `config.Rope`; the arithmetic is float32 throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oneroof import ops
from oneroof.batch import Batch
from oneroof.config import Rope


class Angles(NamedTuple):
    """What a forward's rope needs, computed once."""

    cos: Tensor  # [T, 1, d] float32
    sin: Tensor  # [T, 1, d] float32, carrying the sign of the rotation
    interleaved: bool
    query_scale: Tensor | None  # [T, 1, 1] float32: logn attention


class Rotary(nn.Module):
    """Angles by position for one kind of rope."""

    frequencies: Tensor

    def __init__(self, rope: Rope, head_dim: int, logn_positions: int, device: torch.device) -> None:
        super().__init__()
        self.rope = rope
        self.head_dim = head_dim
        self.logn_positions = logn_positions
        self.register_buffer("frequencies", frequencies(rope, head_dim).to(device), persistent=False)

    def alpha(self, length: int) -> float:
        """The NTK stretch of a sequence whose prompt has `length` tokens; 1.0 where the kind does not depend
        on it.
        """
        rope = self.rope
        if rope.kind == "dynamic":
            return max(1.0, rope.factor * length / rope.original_positions - (rope.factor - 1))
        if rope.kind == "ntk-by-doubling":
            return max(1.0, 2.0 ** math.ceil(math.log2(length / rope.original_positions) + 1) - 1)
        return 1.0

    def forward(self, batch: Batch) -> Angles:
        """The angles of every token of `batch`."""
        positions = batch.positions.float()[:, None]
        if batch.alphas is None:
            turns = positions * self.frequencies
        else:
            exponents = (
                torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device)
                / self.head_dim
            )
            stretch = batch.alphas[:, None] ** (self.head_dim / (self.head_dim - 2))
            turns = positions / (self.rope.theta * stretch) ** exponents
        cos, sin = ops.waves(turns, self.rope.attention_factor, self.rope.interleaved)
        return Angles(cos, sin, self.rope.interleaved, self._query_scale(positions))

    def _query_scale(self, positions_T1: Tensor) -> Tensor | None:
        """log(i) / log(trained length) for the 1-based position i past that length, else 1."""
        if not self.logn_positions:
            return None
        return ((positions_T1 + 1).log() / math.log(self.logn_positions)).clamp(min=1.0)[:, None]


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """[head_dim / 2] radians a position, for a sequence that is not stretched."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "linear":
        return plain / rope.factor
    return _yarn(rope, head_dim, plain) if rope.kind == "yarn" else plain


def _yarn(rope: Rope, head_dim: int, plain: Tensor) -> Tensor:
    """NTK by parts (arXiv:2309.00071, section 3.2): slow coordinates are interpolated, fast ones kept, a ramp
    between.
    """

    def coordinate(turns: float) -> float:
        return (
            head_dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        )

    low, high = coordinate(rope.beta_fast), coordinate(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
