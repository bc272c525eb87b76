"""The key-value cache as pages: one pool a layer, addressed through a table of page numbers.

A contiguous cache is the special case of one page a sequence. Letters: N pages, P page size (positions),
K kv heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerCache:
    """One layer's pool. Position p of a sequence lies at row ``page * P + p % P`` of its page."""

    keys: Tensor  # [N, P, K, d], after rope
    values: Tensor  # [N, P, K, d]


@dataclass(frozen=True)
class KVCache:
    """The pools of all layers; every sequence's table of pages is good for each of them."""

    layers: tuple[LayerCache, ...]

    @property
    def page_size(self) -> int:
        """Positions in a page."""
        return int(self.layers[0].keys.shape[1])

    @property
    def bytes(self) -> int:
        """Memory of all pools, in bytes."""
        return sum(c.keys.nbytes + c.values.nbytes for c in self.layers)


def allocate(
    *,
    depth: int,
    pages: int,
    page_size: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """Pools for `depth` layers of `pages` pages of `page_size` positions each; contents undefined until
    written.
    """
    shape = (pages, page_size, kv_heads, head_dim)

    def pool() -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return KVCache(tuple(LayerCache(pool(), pool()) for _ in range(depth)))
