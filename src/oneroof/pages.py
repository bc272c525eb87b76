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
    """The pools of all layers, one tensor in all; a sequence's table of pages is good for each of them."""

    pool: Tensor  # [layers, 2, N, P, K, d]
    layers: tuple[LayerCache, ...]  # views of it

    @property
    def page_size(self) -> int:
        """Positions in a page."""
        return int(self.pool.shape[3])

    @property
    def bytes(self) -> int:
        """Memory of all pools, in bytes."""
        return int(self.pool.nbytes)

    def copy(self, source: int, target: int) -> None:
        """Page `target` becomes what page `source` is."""
        self.pool[:, :, target] = self.pool[:, :, source]

    def fill(self, page: int, value: float) -> None:
        """Every number of `page` becomes `value`."""
        self.pool[:, :, page] = value


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
    """Pools for `depth` layers of `pages` pages of `page_size` positions each.

    Page 0 is zero; the others are undefined until written, and cost no memory of a host until then.
    """
    pool = torch.empty(depth, 2, pages, page_size, kv_heads, head_dim, dtype=dtype, device=device)
    cache = KVCache(pool, tuple(LayerCache(keys=layer[0], values=layer[1]) for layer in pool))
    cache.fill(0, 0.0)
    return cache
