"""The facts that every family states with the same keys; a family adds or replaces what is its own."""

from __future__ import annotations

from collections.abc import Mapping

from oneroof.config import ModelConfig
from oneroof.models import facts


def dense(
    hf: Mapping[str, object],
    family: str,
    *,
    theta: float,
    interleaved: bool,
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
    tied: bool,
) -> ModelConfig:
    """A decoder of dense layers without windows; `theta` and `tied` hold where the file is silent."""
    facts.activation(hf)
    dim, depth = facts.size(hf, "hidden_size"), facts.size(hf, "num_hidden_layers")
    heads = facts.size(hf, "num_attention_heads")
    positions = facts.size(hf, "max_position_embeddings")
    rope, reach = facts.rope(hf, theta=theta, interleaved=interleaved, positions=positions)
    chunked = hf.get("dual_chunk_attention_config")
    if isinstance(chunked, Mapping):  # without its chunks, attention is right up to the length trained on
        reach = min(reach, facts.size(chunked, "original_max_position_embeddings"))
    return ModelConfig(
        family=family,
        vocabulary=facts.size(hf, "vocab_size"),
        dim=dim,
        depth=depth,
        heads=heads,
        kv_heads=facts.kv_heads(hf, heads),
        head_dim=facts.head_dim(hf, dim, heads),
        width=facts.size(hf, "intermediate_size"),
        norm_eps=facts.positive(hf, "rms_norm_eps"),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        rope=rope,
        logn_positions=0,
        causal=True,
        windows=(0,) * depth,
        tied_head=facts.flag(hf, "tie_word_embeddings", tied),
        experts=None,
        sparse_layers=(False,) * depth,
        max_positions=reach,
        dtype=facts.dtype(hf),
        init_range=facts.number(hf, "initializer_range", default=0.02),
        bos=facts.token(hf, "bos_token_id"),
        eos=facts.integers(hf, "eos_token_id"),
        pad=facts.token(hf, "pad_token_id"),
    )
