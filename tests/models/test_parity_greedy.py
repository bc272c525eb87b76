"""Greedy text of the plain loop is transformers' greedy text, token for token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor

from oneroof import LLM, SamplingParams
from oneroof.batch import pack
from oneroof.load import load

Checkpoint = Callable[..., Path]
TOKENS = 64
NEAR = 1e-4  # of the largest logit: two best that lie closer may change places
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "qwen1": ("qwen1", {"use_dynamic_ntk": False, "use_logn_attn": False}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, yarn": ("qwen2", {"tied": True, "rope_scaling": YARN}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3": ("qwen3", {"tied": True}),
    "qwen3, windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe, empty experts": ("qwen3_moe", {"uneven": True}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5, biased": ("ernie4_5", {"use_bias": True, "tied": False}),
    "ernie4_5_moe": ("ernie4_5_moe", {"mtp": True}),
}


@pytest.mark.parametrize("row", ROWS)
def test_64_tokens_of_prompts_of_unequal_lengths(checkpoint: Checkpoint, row: str) -> None:
    family, options = ROWS[row]
    folder = checkpoint(family, **options)
    prompts = reference.prompts([1, 30, 7, 52])
    with LLM(folder, device="cpu", dtype="float32") as llm:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True))
    model = reference.qwen1_as_qwen2(folder) if family == "qwen1" else reference.causal(folder)
    for prompt, output in zip(prompts, outputs, strict=True):
        made = list(output.token_ids)
        assert len(made) == TOKENS and output.finish_reason == "length"
        after = reference.logits(model, [prompt + made])[0][len(prompt) - 1 : -1]
        assert _first_wrong(after, made) is None


@pytest.mark.parametrize("length", [20, 33, 70])
def test_alpha_is_fixed_by_the_prompt_while_text_grows_past_the_next_step(
    checkpoint: Checkpoint, length: int
) -> None:
    """Qwen-1 with NTK and logn: the cached loop makes what one uncached call with that alpha would choose."""
    folder = checkpoint("qwen1", max_position_embeddings=512)
    (prompt,) = reference.prompts([length])
    with LLM(folder, device="cpu", dtype="float32") as llm:
        (output,) = llm.generate(
            [prompt], SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        )
    made = list(output.token_ids)
    decoder = load(folder, device="cpu", dtype="float32").model
    with torch.no_grad():
        batch = pack([prompt + made], alphas=[decoder.ntk_alpha(length)])
        after = decoder.logits(decoder(batch))[length - 1 : -1]
    assert _first_wrong(after, made) is None


def _first_wrong(logits_TV: Tensor, made: list[int]) -> int | None:
    """The first place where what was made is not the reference's best, given the same text before it."""
    best = logits_TV.max(dim=-1).values
    chosen = logits_TV.gather(-1, torch.tensor(made)[:, None])[:, 0]
    wrong = (best - chosen > NEAR * logits_TV.abs().max()).nonzero()
    return int(wrong[0]) if len(wrong) else None
