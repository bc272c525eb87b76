"""Ranks that are threads of this process: their shares, put together, are the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oneroof.batch import pack
from oneroof.config import Experts, ModelConfig, Rope
from oneroof.layout import Grid, cut_of, share_of
from oneroof.models.decoder import Block, Decoder
from oneroof.models.init import initialize
from oneroof.models.sizes import parameters, sizes

PROMPTS = [[1, 5, 9, 3, 7], [2, 4], [8, 30, 31, 32, 33, 34, 35]]


def config_of(**changes: object) -> ModelConfig:
    facts: dict[str, object] = {
        "family": "qwen2",
        "vocabulary": 61,
        "dim": 32,
        "depth": 3,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "width": 44,
        "norm_eps": 1e-6,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "qk_norm": True,
        "rope": Rope(kind="default", theta=10000.0, interleaved=False),
        "logn_positions": 0,
        "causal": True,
        "windows": (0,) * 3,
        "tied_head": False,
        "experts": None,
        "sparse_layers": (False,) * 3,
        "max_positions": 64,
        "dtype": "float32",
        "init_range": 0.3,
        "bos": None,
        "eos": (),
        "pad": None,
    }
    return ModelConfig(**(facts | changes))  # type: ignore[arg-type]


EXPERTS = Experts(
    count=6,
    top_k=2,
    width=20,
    normalize=True,
    norm_floor=0.0,
    choice_bias=True,
    router_float32=True,
    shared_width=12,
    shared_gate=True,
    balance_loss=0.0,
)
MIXED = {"experts": EXPERTS, "sparse_layers": (False, True, True), "mlp_bias": False}


class Meeting:
    """Sums and rows of threads side by side."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.given: list[Tensor | None] = [None] * ranks

    def all(self, rank: int, x: Tensor) -> list[Tensor]:
        self.given[rank] = x
        self.barrier.wait(30)
        found = [x for x in self.given if x is not None]
        self.barrier.wait(30)
        return found

    def total(self, rank: int) -> Callable[[Tensor, torch.dtype], Tensor]:
        return lambda x, dtype: torch.stack(self.all(rank, x)).sum(0).to(dtype)

    def side_by_side(self, rank: int) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.cat(self.all(rank, x), dim=-1)


def fill(model: Decoder, seed: int = 1) -> Decoder:
    initialize(model, seed)
    for name, tensor in model.tensors().items():
        if name.endswith("bias") and isinstance(tensor, Tensor):
            cut = cut_of(model.config, model.share, name)
            assert cut is not None
            drawn = torch.empty(256).normal_(generator=torch.Generator().manual_seed(len(name)))
            tensor.copy_(drawn[cut.start :][: tensor.numel()].view(tensor.shape))
    return model.eval().requires_grad_(False)


def on_ranks(config: ModelConfig, grid: Grid) -> Tensor:
    meeting = Meeting(grid.tp)

    def run(rank: int) -> Tensor:
        model = fill(Decoder(config, share=share_of(config, grid, rank)))
        assert model.embedding is not None and model.head is not None
        model.embedding.join, model.head.gather = meeting.total(rank), meeting.side_by_side(rank)
        for block in model.blocks:
            assert isinstance(block, Block)
            block.attention.join = block.mlp.join = meeting.total(rank)
        with torch.inference_mode():
            return model.logits(model(pack(PROMPTS)))

    with ThreadPoolExecutor(grid.tp) as pool:
        return next(iter(list(pool.map(run, range(grid.tp)))))


CASES = [
    ({}, Grid(tp=2)),
    ({}, Grid(tp=3)),
    ({}, Grid(tp=4)),
    ({"heads": 28, "kv_heads": 4}, Grid(tp=8)),
    ({"heads": 20, "kv_heads": 4}, Grid(tp=8)),
    ({"heads": 14, "kv_heads": 2}, Grid(tp=4)),
    ({"heads": 6, "kv_heads": 6}, Grid(tp=4)),
    ({"heads": 6, "kv_heads": 2}, Grid(tp=5)),
    ({"tied_head": True}, Grid(tp=2)),
    (MIXED, Grid(tp=2)),
    (MIXED, Grid(tp=2, ep=2)),
    (MIXED, Grid(tp=4, ep=2)),
    (MIXED, Grid(tp=4, ep=4)),
    (MIXED | {"experts": replace(EXPERTS, shared_width=0, shared_gate=False)}, Grid(tp=3, ep=3)),
]


@pytest.mark.parametrize(("changes", "grid"), CASES, ids=str)
def test_shares_put_together_are_the_model(changes: dict[str, object], grid: Grid) -> None:
    config = config_of(**changes)
    whole = fill(Decoder(config))
    with torch.inference_mode():
        expected = whole.logits(whole(pack(PROMPTS)))
    torch.testing.assert_close(on_ranks(config, grid), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("changes", "grid"), CASES, ids=str)
def test_sizes_of_shares_are_counted_and_nothing_is_missing(changes: dict[str, object], grid: Grid) -> None:
    config = config_of(**changes)
    whole = {name: tensor.shape for name, tensor in Decoder(config, device="meta").tensors().items()}
    left = {name: torch.zeros(shape) for name, shape in whole.items()}
    for rank in range(grid.ranks):
        share = share_of(config, grid, rank)
        held = Decoder(config, device="meta", share=share).tensors()
        assert sum(t.shape.numel() for t in held.values()) == parameters(config, share)
        for name in whole:
            cut = cut_of(config, share, name)
            assert (cut is not None) == (name in held)
            if cut is not None:
                assert tuple(held[name].shape) == cut.shape(tuple(whole[name]))
                part = (
                    left[name]
                    if cut.axis < 0
                    else left[name].narrow(cut.axis, cut.start, cut.stop - cut.start)
                )
                part += 1
    assert all((counted >= 1).all() for counted in left.values())
    assert parameters(config, share_of(config, Grid(), 0)) == sizes(config).parameters
