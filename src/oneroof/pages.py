"""The key-value cache as pages: one pool a layer, addressed through a table of page numbers.

A contiguous cache is the special case of one page a sequence. Pools hold the model's numbers, or int8 with a
scale for each position and head (kind `kv8`). Letters: N pages, P page size (positions), K kv heads, d head
dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["float", "kv8"]


@dataclass(frozen=True)
class LayerCache:
    """One layer's pool. Position p of a sequence lies at row ``page * P + p % P`` of its page."""

    keys: Tensor  # [N, P, K, d], after rope
    values: Tensor  # [N, P, K, d]
    key_scales: Tensor | None = None  # [N, P, K] float32 of int8 pools
    value_scales: Tensor | None = None

    @cached_property
    def notes(self) -> dict[str, object]:
        """What a backend keeps about these pools, by a name of its own; empty at first."""
        return {}


@dataclass(frozen=True)
class KVCache:
    """The pools of all layers, one tensor in all; a sequence's table of pages is good for each of them."""

    pool: Tensor  # [layers, 2, N, P, K, d]
    layers: tuple[LayerCache, ...]  # views of it
    scales: Tensor | None = None  # [layers, 2, N, P, K] float32 of an int8 pool

    @cached_property
    def notes(self) -> dict[str, object]:
        """What a model keeps about these pools, by a name of its own; empty at first."""
        return {}

    @property
    def page_size(self) -> int:
        """Positions in a page."""
        return int(self.pool.shape[3])

    @property
    def bytes(self) -> int:
        """Memory of all pools, in bytes."""
        return int(self.pool.nbytes) + (int(self.scales.nbytes) if self.scales is not None else 0)

    def copy(self, source: int, target: int) -> None:
        """Page `target` becomes what page `source` is."""
        self.pool[:, :, target] = self.pool[:, :, source]
        if self.scales is not None:
            self.scales[:, :, target] = self.scales[:, :, source]

    def fill(self, page: int | slice, value: float) -> None:
        """Every number of `page`, or of several, becomes `value`; in an int8 pool NaN is a scale that is."""
        if self.scales is None:
            self.pool[:, :, page] = value
        else:
            stored, scale = pack(torch.full((1,), value))
            self.pool[:, :, page] = int(stored)
            self.scales[:, :, page] = float(scale)


def allocate(
    *,
    depth: int,
    pages: int,
    page_size: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    kind: Kind = "float",
) -> KVCache:
    """Pools for `depth` layers of `pages` pages of `page_size` positions each; `dtype` is for kind `float`.

    Page 0 is zero; the others are undefined until written, and cost no memory of a host until then.
    """
    shape = (depth, 2, pages, page_size, kv_heads)
    stored = torch.int8 if kind == "kv8" else dtype
    pool = torch.empty(*shape, head_dim, dtype=stored, device=device)
    if kind == "kv8":
        scales = torch.empty(shape, dtype=torch.float32, device=device)
        pairs = zip(pool, scales, strict=True)
        layers = [LayerCache(keys=p[0], values=p[1], key_scales=s[0], value_scales=s[1]) for p, s in pairs]
        cache = KVCache(pool, tuple(layers), scales)
    else:
        cache = KVCache(pool, tuple(LayerCache(keys=layer[0], values=layer[1]) for layer in pool))
    cache.fill(0, 0.0)
    return cache


def bytes_per_token(
    *, depth: int, kv_heads: int, head_dim: int, dtype: torch.dtype, kind: Kind = "float"
) -> int:
    """What one position of one sequence takes in the pools of all layers."""
    head = head_dim + torch.float32.itemsize if kind == "kv8" else head_dim * dtype.itemsize
    return 2 * depth * kv_heads * head


def pack(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., d] -> int8 [..., d] and its scales [...]: ``scale = max|x| / 127; q = round(x / scale)``.

    In float32, to the nearest even. Where all is 0, or so small that the scale is, q is 0; where a number is
    not finite the scale is NaN, and so is what comes back.
    """
    numbers = x.float()
    scale = numbers.abs().amax(-1) / 127
    scale = scale.where(scale.isfinite(), torch.nan)
    divisor = scale.where(scale != 0, torch.inf)[..., None]
    whole = (numbers / divisor).nan_to_num(0.0).round().clamp(-127, 127)
    return whole.to(torch.int8), scale


def unpack(stored: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The way back: ``x = q * scale`` in float32, then in `dtype`."""
    return (stored * scales[..., None]).to(dtype)
