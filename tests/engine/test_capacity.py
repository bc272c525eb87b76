"""How many pages fit, by the bytes of what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneroof import LLM
from oneroof.engine.capacity import capacity
from oneroof.engine.options import EngineOptions
from oneroof.errors import UserError
from oneroof.load import load

Checkpoint = Callable[..., Path]


def test_pages_of_an_8_bit_cache_are_smaller(checkpoint: Checkpoint) -> None:
    """Of 4 layers with 2 heads of 16: 2 * 4 * 2 * 16 numbers a position, or as many bytes and 16 scales."""
    loaded = load(checkpoint("qwen2"), device="cpu", dtype="bfloat16")
    page = {"float": 16 * 256 * 2, "kv8": 16 * (256 + 16 * 4)}
    for kv, size in page.items():
        options = EngineOptions(kv_memory=11.5 * size / 1e9, kv=kv)  # type: ignore[arg-type]
        assert capacity(loaded, options).pages == 10  # and the one that is nobody's
    with LLM(loaded, kv="kv8", kv_memory=1e-3, max_batch=1) as llm:
        assert llm.options.kv == "kv8"


def test_the_weights_that_a_device_holds_are_counted_as_they_are(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen2_moe")
    sizes = []
    for quantization in ("none", "w8a16", "w4a16"):
        loaded = load(folder, device="cpu", dtype="float32", quantization=quantization)
        sizes.append(sum(place.nbytes for place in loaded.model.tensors().values()))
        options = EngineOptions(device_memory=(sizes[-1] + 20.5 * 16 * 1024) / 1e9)
        assert capacity(loaded, options).pages == 19
    assert sizes[0] > 2 * sizes[1] > 2.2 * sizes[2]


def test_a_kind_of_cache_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="kv is 'fa8'; float and kv8 are allowed"):
        EngineOptions(kv="fa8")  # type: ignore[arg-type]
