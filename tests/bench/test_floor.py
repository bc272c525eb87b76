"""The bytes under a step, counted by hand, and a bandwidth that can be."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oneroof.bench.floor import streamed, traffic
from oneroof.load import load
from oneroof.models import read_config

Checkpoint = Callable[..., Path]


def test_a_step_of_a_dense_model_reads_all_its_weights_but_the_table(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("qwen2", tied=False), device="cpu", dtype="float32").model.tensors()
    config = read_config(checkpoint("qwen2", tied=False))
    weights = sum(tensor.nbytes for name, tensor in model.items() if "embed_tokens" not in name)
    for batch in (1, 8):
        assert traffic(config, 4, batch, 10).weights == weights


def test_a_step_reads_the_keys_and_values_of_every_text(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("qwen2"))
    each = 2 * 4 * 2 * 16 * 2  # bytes a position: keys and values, layers, kv heads, head_dim, bfloat16
    assert traffic(config, 2, 8, 100).cache == 8 * 100 * each
    windowed = replace(config, windows=(0, 0, 40, 200))
    assert traffic(windowed, 2, 1, 100).cache == (100 + 100 + 40 + 100) * each / 4
    whole = traffic(config, 2, 8, 100)
    assert whole.bytes == whole.weights + whole.cache


def test_a_batch_reads_as_many_experts_as_its_tokens_visit(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("qwen3_moe"))
    assert config.experts is not None and (config.experts.count, config.experts.top_k) == (8, 2)
    expert = 3 * 64 * 32 * 4  # bytes
    one = traffic(config, 4, 1, 0).weights
    draw = random.Random(0)
    for batch in (2, 5):
        visited = [
            len({expert for _ in range(batch) for expert in draw.sample(range(8), 2)}) for _ in range(20_000)
        ]
        more = sum(visited) / len(visited) - 2
        layers = sum(config.sparse_layers)
        assert traffic(config, 4, batch, 0).weights - one == pytest.approx(layers * more * expert, rel=0.02)
    most = traffic(config, 4, 1000, 0).weights - one
    assert most == pytest.approx(sum(config.sparse_layers) * 6 * expert)


def test_memory_is_read_at_a_rate_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneroof.bench.floor._BLOCK", 1 << 26)
    assert 1e8 < streamed(torch.device("cpu")) < 1e13  # bytes/s
