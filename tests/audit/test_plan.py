"""What a plan says is what is then there: weights, cache, activations, what autograd keeps; to the byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from oneroof.audit import machine
from oneroof.audit.memory import Storage, activations, by_part, cache, kv_token, pieces, reads
from oneroof.audit.plan import Ask, plan
from oneroof.audit.speed import Rates, step
from oneroof.audit.training import layer_keeps, training
from oneroof.batch import pack
from oneroof.bench.floor import held_traffic
from oneroof.config import ModelConfig
from oneroof.engine.llm import LLM
from oneroof.engine.request import SamplingParams
from oneroof.errors import UserError
from oneroof.layout import ALONE, Grid, share_of
from oneroof.load import load
from oneroof.models import read_config
from oneroof.models.decoder import Decoder
from oneroof.models.init import initialize
from oneroof.models.sizes import parameters
from oneroof.pages import Kind, allocate, bytes_per_token
from oneroof.quant.format import Kept
from oneroof.quant.forms import FORMS

Checkpoint = Callable[..., Path]

FAMILIES = ("qwen1", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "ernie4_5", "ernie4_5_moe")
FAST = Rates(bandwidth=1e12, arithmetic=2e14, link=5e10)


def held(model: nn.Module) -> int:
    """Bytes of all that a loaded model has."""
    kept = {id(v): v for m in model.modules() for v in vars(m).values() if isinstance(v, Kept)}
    return sum(p.nbytes for p in model.parameters()) + sum(k.nbytes for k in kept.values())


def ask_of(config: ModelConfig, **changes: object) -> Ask:
    facts: dict[str, object] = {
        "config": config,
        "storage": Storage(dtype="bfloat16", panels=False),
        "devices": 1,
        "memory": 1e12,
        "context": 64,
        "batch": 4,
        "rates": FAST,
    }
    return Ask(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("word", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_that_are_loaded(checkpoint: Checkpoint, family: str, word: str) -> None:
    folder = checkpoint(family, tied=False) if family == "qwen2" else checkpoint(family)
    config, panels = read_config(folder), machine.native()
    for dtype in ("float32", "bfloat16"):
        loaded = load(folder, device="cpu", dtype=dtype, quantization=word)
        storage = Storage(dtype=dtype, quantization=word, panels=panels)
        assert sum(by_part(config, share_of(config, ALONE, 0), storage).values()) == held(loaded.model)


@pytest.mark.parametrize("grid", [Grid(tp=2), Grid(tp=4, ep=2), Grid(pp=2), Grid(tp=2, pp=2)], ids=str)
def test_a_ranks_weights_are_those_that_it_reads(checkpoint: Checkpoint, grid: Grid) -> None:
    for family in ("qwen2", "qwen3_moe", "ernie4_5_moe"):
        if family == "qwen2" and grid.ep > 1:
            continue
        folder = checkpoint(family)
        config = read_config(folder)
        for rank in range(grid.ranks):
            loaded = load(folder, device="cpu", dtype="bfloat16", grid=grid, rank=rank)
            share = loaded.model.share
            storage = Storage(dtype="bfloat16", panels=machine.native())
            assert sum(by_part(config, share, storage).values()) == held(loaded.model)
            assert sum(p.parameters for p in pieces(config, share)) == parameters(config, share)


@pytest.mark.parametrize("kv", ["float", "kv8"])
def test_the_cache_is_the_pool_that_is_allocated(checkpoint: Checkpoint, kv: Kind) -> None:
    config = read_config(checkpoint("qwen2"))
    whole, storage = share_of(config, ALONE, 0), Storage(dtype="bfloat16", kv=kv)
    sizes = {"depth": config.depth, "kv_heads": config.kv_heads, "head_dim": config.head_dim}
    assert kv_token(config, whole, storage) == bytes_per_token(**sizes, dtype=torch.bfloat16, kind=kv)
    place = torch.device("cpu")
    pool = allocate(**sizes, pages=3 * 5 + 1, page_size=16, dtype=torch.bfloat16, device=place, kind=kv)
    assert cache(config, whole, storage, 3, 70, 16) == pool.bytes


@pytest.mark.parametrize("kv", ["float", "kv8"])
def test_an_engine_takes_the_pages_that_were_planned(checkpoint: Checkpoint, kv: Kind) -> None:
    folder = checkpoint("qwen2")
    config = read_config(folder)
    with LLM(folder, device="cpu", dtype="bfloat16", kv=kv, max_batch=3, max_model_len=70) as llm:
        pages = llm.stats().pages
    each = 16 * kv_token(config, share_of(config, ALONE, 0), Storage(dtype="bfloat16", kv=kv))
    planned = cache(config, share_of(config, ALONE, 0), Storage(dtype="bfloat16", kv=kv), 3, 70, 16)
    assert (pages + 1) * each == planned


@pytest.mark.skipif(not machine.native(), reason="the references have other tensors on the way")
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "ernie4_5"])
def test_activations_are_those_of_a_step(checkpoint: Checkpoint, family: str) -> None:
    folder = checkpoint(family, max_position_embeddings=2048)
    config, tokens = read_config(folder), 1500
    params = SamplingParams(max_tokens=1, temperature=0.0)
    with LLM(folder, device="cpu", dtype="bfloat16", max_batch=1) as llm:
        texts = [[i % 300 + 20 for i in range(tokens)]]
        llm.generate([[21, 22, 23]], params)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            llm.generate(texts, params)
    now = most = 0
    assert seen.profiler is not None
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    said = activations(config, share_of(config, ALONE, 0), Storage(dtype="bfloat16"), tokens, 1)
    assert said == pytest.approx(most, rel=0.03)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "ernie4_5", "qwen2_moe", "qwen3_moe"])
def test_a_layer_keeps_what_autograd_saves(checkpoint: Checkpoint, family: str) -> None:
    config = read_config(checkpoint(family))
    model = Decoder(config, dtype=torch.bfloat16)
    initialize(model, 0)
    batch = pack([[i % 300 for i in range(96)]])
    angles, block = model.rotary(batch), model.blocks[-1]
    x, residual = (torch.randn(96, config.dim, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), angles.cos, angles.sin)}
    saved: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (at := tensor.untyped_storage().data_ptr()) not in known:
            saved[at] = tensor  # kept, so that no other is put where it was
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        block(x, residual, batch, angles, None)
    total = sum(t.untyped_storage().nbytes() for t in saved.values()) / 96
    whole = share_of(config, ALONE, 0)
    said = layer_keeps(config, whole, Storage(dtype="bfloat16"), sparse=config.sparse_layers[-1])
    assert said == pytest.approx(total, rel=0.03 if config.experts is None else 0.1)


@pytest.mark.parametrize("word", ["none", "w8a16", "w4a16"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "ernie4_5_moe"])
def test_a_step_reads_what_the_benchmark_counts(checkpoint: Checkpoint, family: str, word: str) -> None:
    folder = checkpoint(family)
    loaded = load(folder, device="cpu", dtype="bfloat16", quantization=word)
    storage = Storage(dtype="bfloat16", quantization=word, panels=machine.native())
    whole = share_of(loaded.config, ALONE, 0)
    read = reads(loaded.config, whole, storage, tokens=3, texts=3, positions=50, seen=50)
    counted = held_traffic(loaded, "float", 3, 50)
    assert read.weights == pytest.approx(counted.weights, rel=0.01)
    assert read.cache == counted.cache


def test_the_fastest_that_fits_is_taken(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("qwen2"))
    found = plan(ask_of(config, devices=4))
    assert found.chosen is found.layouts[0] and found.chosen.fits and not found.remedies
    speeds = [layout.decode or 0 for layout in found.layouts]
    assert speeds[1:] == sorted(speeds[1:], reverse=True) and speeds[0] >= 0.98 * max(speeds)
    grids = {(layout.dp, layout.grid.pp, layout.grid.tp) for layout in found.layouts}
    assert grids == {(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 4, 1), (1, 2, 2), (1, 1, 4)}


def test_fixed_sizes_are_kept(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("qwen3_moe"))
    found = plan(ask_of(config, devices=4, tp=2, ep=2))
    assert {(one.grid.tp, one.grid.ep) for one in found.layouts} == {(2, 2)}
    with pytest.raises(UserError, match="tp is 8; 1, 2, 3, 4 can be"):
        plan(ask_of(config, devices=8, tp=8))
    with pytest.raises(UserError, match="devices were given with --tp 3"):
        plan(ask_of(config, devices=4, tp=3))


def test_without_rates_the_least_cut_is_taken(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("qwen2"))
    found = plan(ask_of(config, devices=4, rates=Rates(bandwidth=None, arithmetic=None, link=None)))
    assert found.chosen is not None and (found.chosen.dp, found.chosen.decode) == (4, None)
    assert "--bandwidth" in found.reason


def test_where_nothing_fits_each_remedy_does(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("qwen3"))
    ask = ask_of(config, memory=500e3, context=128, batch=16)
    found = plan(ask)
    assert found.chosen is None and "missing" in found.reason
    changed = {"devices": int, "quantization": str, "kv": str, "context": int, "batch": int}
    for remedy in found.remedies:
        word, value = remedy.removeprefix("--").split()[:2]
        if word in ("quantization", "kv"):
            assert plan(replace(ask, storage=replace(ask.storage, **{word: value}))).chosen
        elif word == "device-memory":
            assert plan(replace(ask, memory=float(value) * 1e9)).chosen
        else:
            assert plan(replace(ask, **{word: changed[word](value)})).chosen, remedy
    assert any(remedy.startswith("--devices") for remedy in found.remedies)


def test_a_step_is_as_long_as_what_it_waits_for(checkpoint: Checkpoint) -> None:
    config, storage = read_config(checkpoint("qwen2")), Storage(dtype="bfloat16")
    alone = (share_of(config, ALONE, 0),)

    def seconds(rates: Rates, tokens: int) -> float:
        sizes = {"tokens": tokens, "texts": tokens, "positions": 10.0, "seen": 10.0}
        made = step(config, ALONE, alone, storage, rates, **sizes)  # type: ignore[arg-type]
        assert made is not None
        return made.seconds - made.between

    read = reads(config, alone[0], storage, tokens=1, texts=1, positions=10.0, seen=10.0)
    slow = Rates(bandwidth=1e3, arithmetic=1e15, link=None)
    assert seconds(slow, 1) == pytest.approx((read.weights + read.cache) / 1e3)
    computed = Rates(bandwidth=1e15, arithmetic=1e3, link=None)
    assert seconds(computed, 2) == pytest.approx(2 * (read.products + read.head + read.scores) / 1e3)
    assert (
        step(
            config,
            ALONE,
            alone,
            storage,
            Rates(bandwidth=None, arithmetic=1.0, link=None),
            tokens=1,
            texts=1,
            positions=1,
            seen=1,
        )
        is None
    )


MEASURED = {  # docs/log.md: batch, decode tokens/s, share of the floor, tokens/s of prompts of 128
    ("none", 1): (28.5, 0.87, 510),
    ("none", 8): (218, 0.84, 527),
    ("w8a8-dynamic", 1): (50.7, 0.70, 782),
    ("w8a8-dynamic", 8): (299, 0.53, 808),
    ("w8a16", 1): (52.6, 0.74, 447),
    ("w8a16", 8): (263, 0.47, 471),
    ("w4a8-dynamic", 1): (75.0, 0.73, 572),
    ("w4a8-dynamic", 8): (341, 0.44, 692),
    ("w4a16", 1): (62.4, 0.55, 412),
    ("w4a16", 8): (242, 0.28, 403),
}


@pytest.mark.parametrize(("word", "batch"), MEASURED, ids=str)
def test_speeds_are_those_that_were_measured(
    shared: Path, monkeypatch: pytest.MonkeyPatch, word: str, batch: int
) -> None:
    config = read_config(shared / "data" / "configs" / "Qwen2.5-0.5B")
    storage, alone = Storage(dtype="bfloat16", quantization=word), (share_of(config, ALONE, 0),)
    rate, floor, prompts = MEASURED[word, batch]
    read = reads(config, alone[0], storage, tokens=batch, texts=batch, positions=152, seen=152)
    bandwidth = (read.weights + read.cache) / (floor * batch / rate)  # which the share of the floor tells
    monkeypatch.setattr(machine, "cpu_features", lambda: ("avx512_bf16", "avx512_vnni"))
    monkeypatch.setattr(machine, "read_rate", lambda: bandwidth)
    monkeypatch.setattr(machine, "multiply_add_rate", lambda: 235e9)  # of that machine when it is quiet
    rates = machine.measured(storage)
    decode = step(config, ALONE, alone, storage, rates, tokens=batch, texts=batch, positions=152, seen=152)
    prefill = step(
        config, ALONE, alone, storage, rates, tokens=128 * batch, texts=batch, positions=64, seen=64
    )
    assert decode is not None and prefill is not None
    assert batch / decode.seconds == pytest.approx(rate, rel=0.12)
    assert 128 * batch / prefill.seconds == pytest.approx(prompts, rel=0.2)


def test_training_counts_what_adamw_needs(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("qwen2"))
    count = parameters(config, share_of(config, ALONE, 0))
    (one,) = training(ask_of(config))
    assert (one.weights, one.gradients, one.states) == (2 * count, 2 * count, 12 * count)
    assert one.recomputed < one.activations and one.fits == "yes"
    layouts = training(ask_of(config, devices=4, memory=one.bytes(recompute=False, dealt=False) * 0.9))
    fits = {(layout.dp, layout.grid.tp, layout.grid.pp): layout.fits for layout in layouts}
    assert fits[(1, 4, 1)] == "yes" and fits[(4, 1, 1)] in ("recompute", "dealt", "both")


def test_a_plan_needs_no_torch() -> None:
    program = (
        "import sys; from oneroof.cli.main import main; "
        "status = main('plan demo --device npu --device-memory 1 --bandwidth 9 --arithmetic 9'.split()); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    source = Path(__file__).parents[2] / "src"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=source)
