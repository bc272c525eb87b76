"""Every kind of rope at lengths on both sides of what it was trained for, through the whole decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import reference
from published import FAMILIES as PUBLISHED

from oneroof.config import Rope
from oneroof.errors import UserError
from oneroof.load import load
from oneroof.models import read_facts
from oneroof.models.decoder import Decoder

Checkpoint = Callable[..., Path]
POSITIONS = 32
ROPES: dict[str, dict[str, object]] = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": POSITIONS},
    "yarn of the file's positions": {"rope_type": "yarn", "factor": 2.5},
    "yarn, a ramp of its own": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn, not truncated": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 3.0, "truncate": False},
    "yarn, stated temperature": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8},
    "yarn, two mscales": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "dynamic, factor 4": {"type": "dynamic", "factor": 4.0},
}
FAMILIES = {"qwen2": 10000.0, "qwen3": 1e6, "ernie4_5": 500000.0}  # theta: the ramp falls elsewhere


@pytest.mark.parametrize("schema", [4, 5])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", ROPES)
def test_logits_at_lengths_below_at_and_above_the_trained_one(
    checkpoint: Checkpoint, rope: str, family: str, schema: int
) -> None:
    """All lengths in one batch; with dynamic NTK each has its own angles, and a fresh reference."""
    folder = checkpoint(
        family,
        rope_scaling=ROPES[rope] or None,
        rope_theta=FAMILIES[family],
        max_position_embeddings=POSITIONS,
        schema=schema,
        num_hidden_layers=2,
    )
    kind = ROPES[rope].get("rope_type", ROPES[rope].get("type"))
    lengths = [5, POSITIONS] if kind is None else [5, POSITIONS, POSITIONS + 1, 2 * POSITIONS]
    sequences = reference.prompts(lengths)
    ours = load(folder, device="cpu", dtype="float32").logits(sequences)
    model = reference.causal(folder)
    for ids, mine in zip(sequences, ours, strict=True):
        model = (
            reference.causal(folder) if kind == "dynamic" else model
        )  # it remembers the longest it has seen
        reference.close(mine, reference.logits(model, [ids])[0])


@pytest.mark.parametrize(
    ("trained", "length", "alpha"),
    [
        (8192, 1, 1),
        (8192, 8192, 1),
        (8192, 8193, 3),
        (8192, 16384, 3),
        (8192, 16385, 7),
        (8192, 32768, 7),
        (2048, 2048, 1),
        (2048, 2049, 3),
        (2048, 4097, 7),
        (2048, 8193, 15),
        (2048, 16385, 31),
        (2048, 32768, 31),
    ],
)
def test_alpha_of_qwen1(trained: int, length: int, alpha: float) -> None:
    rope = Rope(kind="ntk-by-doubling", theta=10000.0, interleaved=False, original_positions=trained)
    assert _decoder(rope).ntk_alpha(length) == alpha


def test_alpha_of_dynamic_ntk_grows_with_the_length() -> None:
    rope = Rope(kind="dynamic", theta=10000.0, interleaved=False, factor=2.0, original_positions=100)
    assert [_decoder(rope).ntk_alpha(n) for n in (1, 100, 150, 200)] == [1.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("kind", ["default", "linear", "yarn"])
def test_alpha_is_one_where_the_rope_does_not_depend_on_the_length(kind: str) -> None:
    rope = Rope(kind=kind, theta=10000.0, interleaved=False, factor=2.0, original_positions=100)
    assert _decoder(rope).ntk_alpha(100_000) == 1.0


def test_yarn_reaches_as_far_as_its_factor_says() -> None:
    """Qwen2.5's cards ask for these keys; `max_position_embeddings` stays at 32768 in their files."""
    keys = PUBLISHED["qwen2"].config | {"max_position_embeddings": 32768}
    keys["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read_facts(keys).max_positions == 131072


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "longrope", "factor": 4.0},
        {"type": "yarn", "factor": 0.5, "original_max_position_embeddings": 32},
        {"type": "linear"},
        {"type": "linear", "factor": "four"},
        {"rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5},
        "yarn",
    ],
    ids=json.dumps,
)
def test_a_rope_that_cannot_be_honoured_is_refused(rope: object) -> None:
    with pytest.raises(UserError):
        read_facts({**PUBLISHED["qwen2"].config, "rope_scaling": rope})


def _decoder(rope: Rope) -> Decoder:
    facts = read_facts(PUBLISHED["qwen2"].config)
    return Decoder(replace(facts, rope=rope), device="meta")
