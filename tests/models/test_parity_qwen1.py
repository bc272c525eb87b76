"""Qwen-1, which transformers has no code for: its weights in a Qwen2 model; NTK and logn by definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from safetensors.torch import load_file
from torch import Tensor

from oneroof.load import load

Checkpoint = Callable[..., Path]
OFF = {"use_dynamic_ntk": False, "use_logn_attn": False}
TRAINED = 32  # the fixture's seq_length


def test_without_ntk_and_logn_it_is_a_qwen2(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen1", **OFF)
    sequences = reference.prompts([1, 23, 90, 2])
    ours = load(folder, device="cpu", dtype="float32").logits(sequences)
    for attention in ("eager", "sdpa"):
        theirs = reference.logits(reference.qwen1_as_qwen2(folder, attention=attention), sequences)
        for mine, other in zip(ours, theirs, strict=True):
            reference.close(mine, other)


def test_up_to_the_trained_length_ntk_and_logn_do_nothing(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen1")
    sequences = reference.prompts([TRAINED, 1, TRAINED - 1, 17])
    ours = load(folder, device="cpu", dtype="float32").logits(sequences)
    theirs = reference.logits(reference.qwen1_as_qwen2(folder), sequences)
    for mine, other in zip(ours, theirs, strict=True):
        reference.close(mine, other)


@pytest.mark.parametrize(
    "switches",
    [{}, {"use_logn_attn": False}, {"use_dynamic_ntk": False}, OFF],
    ids=["both", "ntk", "logn", "neither"],
)
def test_beyond_the_trained_length_it_is_the_definition(
    checkpoint: Checkpoint, switches: dict[str, object]
) -> None:
    """Lengths on both sides of each step of alpha (1, 3, 7, 15), in one batch: each has its own alpha."""
    folder = checkpoint("qwen1", max_position_embeddings=512, **switches)
    sequences = reference.prompts([20, 32, 33, 64, 65, 128, 129])
    ours = load(folder, device="cpu", dtype="float32").logits(sequences)
    for ids, mine in zip(sequences, ours, strict=True):
        reference.close(mine, _qwen1(folder, ids))


def test_the_definition_used_here_is_a_qwen2_where_it_must_be(checkpoint: Checkpoint) -> None:
    """The reference below is itself held to transformers."""
    for folder in (checkpoint("qwen1"), checkpoint("qwen1", **OFF)):
        ids = reference.prompts([TRAINED])[0]
        reference.close(_qwen1(folder, ids), reference.logits(reference.qwen1_as_qwen2(folder), [ids])[0])


def _qwen1(folder: Path, ids: list[int]) -> Tensor:
    """Logits [T, V] of one sequence in float64, straight from what Qwen-1 is defined to be."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    heads, d, trained = config["num_attention_heads"], config["kv_channels"], config["seq_length"]
    norm = lambda x, w: x / (x.square().mean(-1, keepdim=True) + config["layer_norm_epsilon"]).sqrt() * w  # noqa: E731
    length = len(ids)
    alpha = max(2 ** math.ceil(math.log2(length / trained) + 1) - 1, 1) if config["use_dynamic_ntk"] else 1
    base = config["rotary_emb_base"] * alpha ** (d / (d - 2))
    stretch = [math.log(i) / math.log(trained) if i > trained else 1.0 for i in range(1, length + 1)]
    x = weights["transformer.wte.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        part = lambda name, i=i: weights[f"transformer.h.{i}.{name}"]  # noqa: E731
        y = norm(x, part("ln_1.weight"))
        q, k, v = (
            (y @ part("attn.c_attn.weight").T + part("attn.c_attn.bias")).view(length, 3, heads, d).unbind(1)
        )
        q, k = _rotated(q, base), _rotated(k, base)
        if config["use_logn_attn"]:
            q = q * torch.tensor(stretch, dtype=torch.float64)[:, None, None]
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(d)
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        seen = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, heads * d)
        x = x + seen @ part("attn.c_proj.weight").T
        y = norm(x, part("ln_2.weight"))
        gate = y @ part("mlp.w2.weight").T
        x = x + (y @ part("mlp.w1.weight").T * gate * gate.sigmoid()) @ part("mlp.c_proj.weight").T
    return norm(x, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


def _rotated(x: Tensor, base: float) -> Tensor:
    """Coordinates i and i + d/2 of each head turn by position * base^(-2i/d)."""
    length, _, d = x.shape
    angle = torch.arange(length, dtype=torch.float64)[:, None] * base ** (
        -torch.arange(0, d, 2, dtype=torch.float64) / d
    )
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
