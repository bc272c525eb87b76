"""What is right: transformers' models over the same folder, and for Qwen-1 its weights renamed into a Qwen2.

transformers is imported by the first test that asks, once a session.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


@cache
def transformers() -> ModuleType:
    """The module, quiet."""
    import transformers as module

    module.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    module.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return module


def causal(folder: Path, *, attention: str = "eager", dtype: str = "float32") -> nn.Module:
    """The folder's language model as transformers loads it."""
    kind = transformers().AutoModelForCausalLM
    model: nn.Module = kind.from_pretrained(
        folder, attn_implementation=attention, dtype=getattr(torch, dtype)
    )
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """[T, vocabulary] float32 of each sequence, run alone."""
    return [model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in sequences]


@torch.no_grad()
def hidden(folder: Path, sequences: Sequence[Sequence[int]], *, bidirectional: bool = False) -> list[Tensor]:
    """[T, dim] final hidden states of the model without its head; each sequence alone."""
    model = transformers().AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    out = []
    for ids in sequences:
        nothing_hidden = torch.zeros(1, 1, len(ids), len(ids))  # added to the scores
        mask = {"attention_mask": {"full_attention": nothing_hidden}} if bidirectional else {}
        out.append(model(torch.tensor([ids]), use_cache=False, **mask).last_hidden_state[0])
    return out


def qwen1_as_qwen2(folder: Path, *, attention: str = "eager") -> nn.Module:
    """A Qwen2 model with a Qwen-1 checkpoint's weights: what Qwen-1 is where NTK and logn have no effect.

    c_attn is q, k, v end to end; w2 is the branch with SiLU (gate), w1 the linear one (up).
    """
    stored = load_file(folder / "model.safetensors")
    old = json.loads((folder / "config.json").read_text())
    heads = old["num_attention_heads"]
    config = transformers().Qwen2Config(
        vocab_size=old["vocab_size"],
        hidden_size=old["hidden_size"],
        intermediate_size=old["intermediate_size"] // 2,
        num_hidden_layers=old["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        rms_norm_eps=old["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(old["rotary_emb_base"])},
        max_position_embeddings=old["max_position_embeddings"],
        tie_word_embeddings=False,
    )
    renamed = {
        name: tensor
        for old_name, stored_tensor in stored.items()
        for name, tensor in _qwen2(old_name, stored_tensor)
    }
    config._attn_implementation = attention
    model: nn.Module = transformers().Qwen2ForCausalLM(config)
    model.load_state_dict(renamed, strict=True)
    return model.eval()


_OUTER = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
}
_INNER = {
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}


def _qwen2(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    if name == "lm_head.weight":
        return [(name, tensor)]
    if name in _OUTER:
        return [(_OUTER[name], tensor)]
    _, _, i, rest = name.split(".", 3)
    layer = f"model.layers.{i}."
    if rest.startswith("attn.c_attn."):
        kind = rest.rsplit(".", 1)[1]
        return [(f"{layer}self_attn.{p}_proj.{kind}", t) for p, t in zip("qkv", tensor.chunk(3), strict=True)]
    return [(layer + _INNER[rest], tensor)]


def close(ours: Tensor, theirs: Tensor, *, scale: float = 1e-4) -> None:
    """Fails where the largest difference is beyond `scale` of the largest magnitude of `theirs`."""
    assert ours.shape == theirs.shape, (tuple(ours.shape), tuple(theirs.shape))
    worst, size = (ours.double() - theirs.double()).abs().max().item(), theirs.abs().max().item()
    assert worst <= scale * size, (
        f"differs by {worst:.3g} where the largest is {size:.3g}: {worst / size:.2g} > {scale:.1g}"
    )


def prompts(lengths: Sequence[int], *, vocabulary: int = 320, seed: int = 0) -> list[list[int]]:
    """Random token ids of the given lengths."""
    noise = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (n,), generator=noise).tolist() for n in lengths]
