"""Layers that are run as one call: each family, each step of an engine, against the layers themselves."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import torch
from native_kernels import with_kernels
from torch import Tensor

from oneroof.batch import Batch
from oneroof.engine.admission import admit
from oneroof.engine.llm import LLM
from oneroof.engine.plain import PlainLoop
from oneroof.engine.request import SamplingParams
from oneroof.layers.rope import Angles
from oneroof.load import load
from oneroof.models import decoder, replay
from oneroof.pages import KVCache

pytestmark = with_kernels

FAMILIES = ("qwen1", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "ernie4_5", "ernie4_5_moe")
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPTS = [[3 + i + j for j in range(1 + 7 * i)] for i in range(4)]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each forward whether it was replayed; one that was is compared with the layers."""
    found: list[bool] = []

    def compared(
        model: replay.Layers, x: Tensor, batch: Batch, angles: Angles, cache: KVCache
    ) -> Tensor | None:
        before = cache.pool.clone()
        out = replay.replay(model, x, batch, angles, cache)
        found.append(out is not None)
        if out is not None:
            written = cache.pool.clone()
            cache.pool.copy_(before)
            assert torch.equal(out, model.layers(x, batch, angles, cache))
            assert torch.equal(written.view(torch.uint8), cache.pool.view(torch.uint8))
        return out

    monkeypatch.setattr(decoder, "replay", compared)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", ["none", "w8a8-dynamic", "w4a16", "w4a8-dynamic"])
def test_every_family_is_replayed_to_the_bit(
    family: str, quantization: str, tmp_path: Path, steps: list[bool]
) -> None:
    folder = checkpoints.make(tmp_path, family, dtype="bfloat16", hidden_size=64)
    with LLM(str(folder), quantization=quantization, kv_memory=0.01) as llm:
        llm.generate(PROMPTS, GREEDY)
    assert len(steps) >= 6 and all(steps)


def test_int8_caches_and_the_plain_loop(tmp_path: Path, steps: list[bool]) -> None:
    folder = checkpoints.make(tmp_path, "qwen3", hidden_size=64)
    with LLM(str(folder), kv_memory=0.01, kv="kv8") as llm:
        llm.generate(PROMPTS, GREEDY)
    loaded = load(str(folder), device="cpu")
    facts = {"config": loaded.config, "context": 64, "ends": frozenset[int](), "seed": 0}
    requests = [admit(i, None, prompt, GREEDY, **facts) for i, prompt in enumerate(PROMPTS)]  # type: ignore[arg-type]
    assert len(list(PlainLoop(loaded, kv_memory=0.01).run(requests))) >= 24
    assert len(steps) >= 12 and all(steps)


def test_many_tokens_and_gradients_are_not(tmp_path: Path, steps: list[bool]) -> None:
    folder = checkpoints.make(tmp_path, "qwen2", hidden_size=64, max_position_embeddings=1024)
    with LLM(str(folder), kv_memory=0.01) as llm:
        llm.generate([[5] * (replay.ROWS + 1)], GREEDY)
    assert steps[0] is False and all(steps[1:])
