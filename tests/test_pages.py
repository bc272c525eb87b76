"""Pools of pages."""

from __future__ import annotations

import torch

from oneroof.pages import allocate


def test_every_layer_has_pools_of_its_own() -> None:
    cache = allocate(
        depth=3,
        pages=4,
        page_size=8,
        kv_heads=2,
        head_dim=16,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    assert len(cache.layers) == 3 and cache.page_size == 8
    assert cache.layers[0].keys.shape == cache.layers[0].values.shape == (4, 8, 2, 16)
    assert cache.bytes == 3 * 2 * 4 * 8 * 2 * 16 * 2
    cache.layers[0].keys.fill_(1)
    assert not cache.layers[1].keys.any() and not cache.layers[0].values.any()
