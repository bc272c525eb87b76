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
    assert not cache.pool[:, :, 0].any()  # the null page
    cache.pool.zero_()
    cache.layers[0].keys.fill_(1)
    assert not cache.layers[1].keys.any() and not cache.layers[0].values.any()


def test_a_page_is_copied_in_all_layers() -> None:
    cache = allocate(
        depth=2,
        pages=3,
        page_size=4,
        kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.fill(1, 1.0)
    cache.fill(2, 2.0)
    cache.copy(2, 1)
    for layer in cache.layers:
        assert layer.keys[1].eq(2).all() and layer.values[1].eq(2).all()
        assert not layer.keys[0].any()
