"""Every family computes the logits that transformers computes, in every layout, many sequences a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch

from oneroof.load import load

Checkpoint = Callable[..., Path]
Row = tuple[str, dict[str, object]]

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
ROWS: dict[str, Row] = {
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tied": True}),
    "qwen2, one kv head a head": ("qwen2", {"num_key_value_heads": 4}),
    "qwen2, linear rope": ("qwen2", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "qwen2, yarn": ("qwen2", {"rope_scaling": YARN}),
    "qwen2, yarn, transformers 5": ("qwen2", {"rope_scaling": YARN, "schema": 5}),
    "qwen2, windows from layer 2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe, normalised, every other layer": (
        "qwen2_moe",
        {"norm_topk_prob": True, "decoder_sparse_step": 2},
    ),
    "qwen2_moe, a dense layer": ("qwen2_moe", {"mlp_only_layers": [0, 2], "tied": True}),
    "qwen2_moe, empty experts": ("qwen2_moe", {"uneven": True}),
    "qwen2_moe, packed, transformers 5": ("qwen2_moe", {"packed": True, "schema": 5}),
    "qwen3": ("qwen3", {}),
    "qwen3, tied": ("qwen3", {"tied": True, "schema": 5}),
    "qwen3, yarn": ("qwen3", {"rope_scaling": {**YARN, "rope_type": "yarn", "attention_factor": 1.3}}),
    "qwen3, biased": ("qwen3", {"attention_bias": True}),
    "qwen3, a large floor under its norms": ("qwen3", {"rms_norm_eps": 0.2}),
    "qwen3, windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe, not normalised": ("qwen3_moe", {"norm_topk_prob": False, "tied": True}),
    "qwen3_moe, every other layer": ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    "qwen3_moe, empty experts": ("qwen3_moe", {"uneven": True}),
    "qwen3_moe, packed, transformers 5": ("qwen3_moe", {"packed": True, "schema": 5, "num_experts": 6}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5, biased, untied": ("ernie4_5", {"use_bias": True, "tied": False}),
    "ernie4_5, transformers 5": ("ernie4_5", {"schema": 5}),
    "ernie4_5_moe": ("ernie4_5_moe", {"mtp": True}),
    "ernie4_5_moe, biased": ("ernie4_5_moe", {"use_bias": True, "tied": False}),
    "ernie4_5_moe, a high floor under its weights": ("ernie4_5_moe", {"moe_norm_min": 0.8}),
    "ernie4_5_moe, no shared experts": ("ernie4_5_moe", {"moe_num_shared_experts": 0}),
    "ernie4_5_moe, start, end, interval": (
        "ernie4_5_moe",
        {
            "num_hidden_layers": 6,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 3,
            "moe_layer_interval": 2,
        },
    ),
    "ernie4_5_moe, to the last layer": (
        "ernie4_5_moe",
        {"moe_layer_start_index": 2, "moe_layer_end_index": -1},
    ),
    "ernie4_5_moe, empty experts": ("ernie4_5_moe", {"uneven": True}),
    "ernie4_5_moe, packed, transformers 5": ("ernie4_5_moe", {"packed": True, "schema": 5}),
}
LENGTHS = (1, 23, 7, 64, 2)


@pytest.mark.parametrize("row", ROWS)
def test_packed_logits_are_those_of_each_sequence_alone_in_transformers(
    checkpoint: Checkpoint, row: str
) -> None:
    family, options = ROWS[row]
    folder = checkpoint(family, **options)
    sequences = reference.prompts(LENGTHS)
    ours = load(folder, device="cpu", dtype="float32").logits(sequences)
    for attention in ("eager", "sdpa"):
        theirs = reference.logits(reference.causal(folder, attention=attention), sequences)
        for mine, other in zip(ours, theirs, strict=True):
            reference.close(mine, other)


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "ernie4_5_moe"])
def test_the_uneven_rows_leave_experts_empty(checkpoint: Checkpoint, family: str) -> None:
    """The rows above that say so do hold what they promise: by transformers' own router."""
    model = reference.causal(checkpoint(family, uneven=True))
    loads = []
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            count = lambda module, inputs, out: loads.append(torch.bincount(out[2].flatten(), minlength=8))  # noqa: E731
            layer.mlp.gate.register_forward_hook(count)
    reference.logits(model, reference.prompts([64]))
    assert loads and all((load_E[4:] == 0).all() for load_E in loads)
    assert any(load_E[:4].max() > 2 * load_E[:4].min() for load_E in loads)


def test_the_choice_bias_changes_what_is_chosen(checkpoint: Checkpoint) -> None:
    """Else its row would show nothing."""
    model = reference.causal(checkpoint("ernie4_5_moe"))
    with_bias = reference.logits(model, reference.prompts([40]))[0]
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.data.zero_()
    without = reference.logits(model, reference.prompts([40]))[0]
    assert (with_bias - without).abs().max() > 0.1 * with_bias.abs().max()


SAME: dict[str, list[Row]] = {
    "qwen2": [
        ("qwen2", {}),
        ("qwen2", {"schema": 5}),
        ("qwen2", {"files": "sharded"}),
        ("qwen2", {"files": "bin"}),
        ("qwen2", {"files": "sharded-bin"}),
        ("qwen2", {"prefixed": False}),
    ],
    "qwen2, tied": [
        ("qwen2", {"tied": True}),
        ("qwen2", {"tied": True, "head": True}),  # Qwen3-0.6B is published like this
    ],
    "qwen2_moe": [
        ("qwen2_moe", {}),
        ("qwen2_moe", {"packed": True}),
        ("qwen2_moe", {"schema": 5, "files": "sharded"}),
    ],
    "qwen3": [("qwen3", {}), ("qwen3", {"schema": 5}), ("qwen3", {"prefixed": False, "files": "sharded"})],
    "qwen3_moe": [
        ("qwen3_moe", {}),
        ("qwen3_moe", {"schema": 5}),
        ("qwen3_moe", {"packed": True, "files": "bin"}),
        ("qwen3_moe", {"packed": True, "files": "sharded", "schema": 5}),
    ],
    "ernie4_5_moe": [
        ("ernie4_5_moe", {}),
        ("ernie4_5_moe", {"schema": 5, "packed": True, "mtp": True}),
        ("ernie4_5_moe", {"files": "sharded", "mtp": True}),
        ("ernie4_5_moe", {"architectures": ["Ernie4_5_MoeForCausalLM"], "moe_layer_end_index": -1}),
    ],
    "ernie4_5": [("ernie4_5", {}), ("ernie4_5", {"schema": 5, "mtp": True})],
    "qwen1": [("qwen1", {}), ("qwen1", {"files": "sharded"}), ("qwen1", {"files": "bin"})],
}


@pytest.mark.parametrize("group", SAME)
def test_a_layout_changes_no_bit(checkpoint: Checkpoint, group: str) -> None:
    sequences = reference.prompts([5, 17])
    first, *others = [
        load(checkpoint(f, **o), device="cpu", dtype="float32").logits(sequences) for f, o in SAME[group]
    ]
    for other, (_, options) in zip(others, SAME[group][1:], strict=True):
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a, b), options


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "ernie4_5", "ernie4_5_moe"])
def test_half_precision_is_no_further_from_float32_than_transformers_is(
    checkpoint: Checkpoint, family: str, dtype: str
) -> None:
    folder = checkpoint(family, dtype=dtype)
    sequences = reference.prompts([48, *[9] * 12])
    loaded = load(folder, device="cpu", dtype=dtype)
    assert loaded.config.dtype == dtype and str(loaded.dtype) == f"torch.{dtype}"
    exact = torch.cat(reference.logits(reference.causal(folder), sequences))
    theirs = torch.cat(reference.logits(reference.causal(folder, dtype=dtype), sequences))
    ours = torch.cat(loaded.logits(sequences))
    assert ours.dtype == torch.float32
    error = lambda a: ((a - exact).norm(dim=-1) / exact.norm(dim=-1)).median().item()  # noqa: E731
    # the median over tokens, and several texts: where two experts are nearly level, either's rounding may
    # choose the other one, which all tokens after that one see
    assert error(ours) <= 1.5 * error(theirs), (error(ours), error(theirs))


@pytest.mark.parametrize("family", ["qwen1", "qwen2", "qwen3_moe", "ernie4_5_moe"])
def test_one_batch_is_many_calls(checkpoint: Checkpoint, family: str) -> None:
    loaded = load(checkpoint(family), device="cpu", dtype="float32")
    sequences = reference.prompts([3, 50, 1, 12])
    together = loaded.logits(sequences)
    for ids, packed in zip(sequences, together, strict=True):
        reference.close(packed, loaded.logits([ids])[0], scale=1e-5)
