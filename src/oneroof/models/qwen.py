"""The Qwen families: 1, 1.5 / 2 / 2.5 (one architecture), 3, and the mixtures of experts of 1.5, 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oneroof.config import Experts, ModelConfig, Rope
from oneroof.errors import UserError
from oneroof.models import facts
from oneroof.models.dense import dense
from oneroof.models.family import ANGLES, PACKED_EXPERTS, PREFIXLESS, Family
from oneroof.names import Rename

_OURS = "model.layers.{i}."
_FIRST = "transformer.h.{i}."


def _dense(
    hf: Mapping[str, object], family: str, *, qkv_bias: bool, output_bias: bool, qk_norm: bool
) -> ModelConfig:
    plain = dense(
        hf,
        family,
        theta=10000.0,
        interleaved=False,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=False,
        qk_norm=qk_norm,
        tied=False,
    )
    first = facts.integer(hf, "max_window_layers", default=28)  # where transformers starts to slide
    slides = tuple(i >= first for i in range(plain.depth))
    causal = facts.flag(hf, "is_causal", True)
    return replace(plain, causal=causal, windows=facts.windows(hf, plain.depth, slides))


def _experts(hf: Mapping[str, object], *, shared_width: int) -> Experts:
    made = Experts(
        count=facts.integer(hf, "num_local_experts", "num_experts"),
        top_k=facts.integer(hf, "num_experts_per_tok"),
        width=facts.size(hf, "moe_intermediate_size"),
        normalize=facts.flag(hf, "norm_topk_prob", False),
        norm_floor=0.0,
        choice_bias=False,
        router_float32=False,
        shared_width=shared_width,
        shared_gate=shared_width > 0,
        balance_loss=facts.number(hf, "router_aux_loss_coef", default=0.001),
    )
    if not 0 < made.top_k <= made.count:
        raise UserError(
            f"config.json chooses {made.top_k} of {made.count} experts; 1 to {made.count} can be; mend it"
        )
    return made


def _sparse(hf: Mapping[str, object], depth: int) -> tuple[bool, ...]:
    step, dense = facts.size(hf, "decoder_sparse_step", default=1), facts.integers(hf, "mlp_only_layers")
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(depth))


def qwen2(hf: Mapping[str, object]) -> ModelConfig:
    """Qwen1.5, Qwen2, Qwen2.5, their coders, and gte embeddings (`is_causal` false there)."""
    return _dense(hf, "qwen2", qkv_bias=True, output_bias=False, qk_norm=False)


def qwen2_moe(hf: Mapping[str, object]) -> ModelConfig:
    """Qwen1.5-MoE and Qwen2-MoE: a gated shared expert beside the routed ones."""
    plain = _dense(
        hf, "qwen2_moe", qkv_bias=facts.flag(hf, "qkv_bias", True), output_bias=False, qk_norm=False
    )
    first_window = facts.integer(hf, "max_window_layers", default=28)  # the reference's default
    sliding = tuple(i % 2 == 0 and i < first_window for i in range(plain.depth))
    return replace(
        plain,
        windows=facts.windows(hf, plain.depth, sliding),
        experts=_experts(hf, shared_width=facts.integer(hf, "shared_expert_intermediate_size")),
        sparse_layers=_sparse(hf, plain.depth),
    )


def qwen3(hf: Mapping[str, object]) -> ModelConfig:
    """Qwen3 dense, Qwen3-Embedding and Qwen3-Reranker: normed queries and keys, wide heads."""
    bias = facts.flag(hf, "attention_bias", False)
    hf = {"head_dim": 128, **hf}  # transformers' default, in the dense family alone
    return _dense(hf, "qwen3", qkv_bias=bias, output_bias=bias, qk_norm=True)


def qwen3_moe(hf: Mapping[str, object]) -> ModelConfig:
    """Qwen3-MoE: 128 small experts in the published sizes, none shared; a window holds for every layer or
    none.
    """
    bias = facts.flag(hf, "attention_bias", False)
    plain = _dense(hf, "qwen3_moe", qkv_bias=bias, output_bias=bias, qk_norm=True)
    windows = facts.windows(hf, plain.depth, (True,) * plain.depth)
    if len(set(windows)) > 1:
        raise UserError(
            "config.json mixes kinds in layer_types; one kind is allowed in this architecture; mend it"
        )
    return replace(
        plain,
        windows=windows,
        experts=_experts(hf, shared_width=0),
        sparse_layers=_sparse(hf, plain.depth),
    )


def qwen(hf: Mapping[str, object]) -> ModelConfig:
    """Qwen-1: its config counts both halves of the MLP, its context grows by NTK and logn attention."""
    modern = {
        "hidden_size": hf.get("hidden_size", hf.get("n_embd")),
        "num_hidden_layers": hf.get("num_hidden_layers", hf.get("n_layer")),
        "num_attention_heads": hf.get("num_attention_heads", hf.get("n_head")),
        "intermediate_size": facts.size(hf, "intermediate_size", "ffn_hidden_size") // 2,
        "max_position_embeddings": hf.get("max_position_embeddings", hf.get("n_positions")),
        "rms_norm_eps": facts.positive(hf, "layer_norm_epsilon"),
        "rope_theta": facts.positive(hf, "rotary_emb_base", default=10000.0),
        "head_dim": hf.get("kv_channels"),
        "vocab_size": hf.get("vocab_size", hf.get("padded_vocab_size")),
    }
    kept = (
        "tie_word_embeddings",
        "initializer_range",
        "torch_dtype",
        "dtype",
        "bf16",
        "fp32",
        "fp16",
        "bos_token_id",
    )
    modern |= {key: hf[key] for key in (*kept, "eos_token_id", "pad_token_id") if key in hf}
    if facts.number(hf, "rotary_pct", default=1.0) != 1.0:
        raise UserError(
            "config.json says rotary_pct below 1; only whole heads are rotated; no published Qwen does this"
        )
    if not facts.flag(hf, "no_bias", True):
        raise UserError(
            "config.json says no_bias = false; only bias-free MLPs are allowed; no published Qwen has them"
        )
    plain = _dense(modern, "qwen", qkv_bias=True, output_bias=False, qk_norm=False)
    trained = facts.integer(hf, "seq_length", default=plain.max_positions, least=2)
    stretched = facts.flag(hf, "use_dynamic_ntk", True)
    rope = Rope(kind="ntk-by-doubling", theta=plain.rope.theta, interleaved=False, original_positions=trained)
    return replace(
        plain,
        rope=rope if stretched else plain.rope,
        logn_positions=trained if facts.flag(hf, "use_logn_attn", True) else 0,
    )


def _part(stored: str, *ours: str) -> Rename:
    return Rename(_FIRST + stored, tuple(_OURS + name for name in ours), written=True)


_QWEN_NAMES = (
    Rename("transformer.wte.weight", ("model.embed_tokens.weight",), written=True),
    Rename("transformer.ln_f.weight", ("model.norm.weight",), written=True),
    _part("ln_1.weight", "input_layernorm.weight"),
    _part("ln_2.weight", "post_attention_layernorm.weight"),
    _part("attn.c_attn.weight", *(f"self_attn.{x}_proj.weight" for x in "qkv")),
    _part("attn.c_attn.bias", *(f"self_attn.{x}_proj.bias" for x in "qkv")),
    _part("attn.c_proj.weight", "self_attn.o_proj.weight"),
    _part("mlp.w2.weight", "mlp.gate_proj.weight"),  # w2 goes through SiLU
    _part("mlp.w1.weight", "mlp.up_proj.weight"),
    _part("mlp.c_proj.weight", "mlp.down_proj.weight"),
)

QWEN = Family(("QWenLMHeadModel",), qwen, _QWEN_NAMES, (ANGLES,))
QWEN2 = Family(("Qwen2ForCausalLM", "Qwen2Model"), qwen2, PREFIXLESS, (ANGLES,))
QWEN2_MOE = Family(("Qwen2MoeForCausalLM",), qwen2_moe, (*PREFIXLESS, *PACKED_EXPERTS), (ANGLES,))
QWEN3 = Family(("Qwen3ForCausalLM", "Qwen3Model"), qwen3, PREFIXLESS, (ANGLES,))
QWEN3_MOE = Family(("Qwen3MoeForCausalLM",), qwen3_moe, (*PREFIXLESS, *PACKED_EXPERTS), (ANGLES,))
