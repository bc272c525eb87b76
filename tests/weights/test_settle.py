"""What the tensors tell where `config.json` is silent or wrong, beside how transformers reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from safetensors.torch import load_file, save_file

from oneroof.export.huggingface import convert
from oneroof.load import load

Checkpoint = Callable[..., Path]


def _with_own_head(folder: Path, out: Path) -> Path:
    """A copy that says tied and stores a head of other numbers."""
    out.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    tensors = load_file(out / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_a_stored_head_that_differs_is_used(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = _with_own_head(checkpoint("qwen2", tied=True, head=True), tmp_path / "own")
    ids = reference.prompts([5])
    expected = reference.logits(reference.causal(folder), ids)[0]
    loaded = load(folder, device="cpu", dtype="float32")
    assert not loaded.config.tied_head
    reference.close(loaded.logits(ids)[0], expected)
    convert(folder, tmp_path / "clean")
    assert json.loads((tmp_path / "clean" / "config.json").read_text())["tie_word_embeddings"] is False
    reference.close(load(tmp_path / "clean", device="cpu", dtype="float32").logits(ids)[0], expected)


def test_a_stored_head_that_is_the_embedding_stays_tied(checkpoint: Checkpoint) -> None:
    assert load(checkpoint("qwen2", tied=True, head=True), device="cpu").config.tied_head


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_silent_config_means_the_dtype_of_the_tensors(checkpoint: Checkpoint, dtype: str) -> None:
    """The published Qwen-1 files set none of their three switches."""
    folder = checkpoint("qwen1", dtype=dtype)
    keys = json.loads((folder / "config.json").read_text())
    assert not any(keys.get(key) for key in ("bf16", "fp16", "fp32", "dtype", "torch_dtype"))
    assert load(folder, device="cpu").config.dtype == dtype
    assert load(folder, device="cpu", random_weights=True).dtype == torch.float32
