"""What each family publishes: a tiny `config.json` as transformers 4 writes it, and its tensors.

Written down from the published checkpoints, without the package under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import vocabularies

Config = dict[str, object]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """One family's `config.json` (in transformers 4's words), its tensors, and the form of its tokenizer."""

    config: Config
    shapes: Callable[[Config], Shapes]
    tokenizer: str
    prefixed: bool = True  # tensor names begin with `model.`
    head: bool = True  # lm_head.weight is stored where it is not tied
    pooling: bool = False  # sentence-transformers' files lie beside


def whole(config: Config, key: str) -> int:
    """A whole number out of a config."""
    value = config[key]
    assert isinstance(value, int), (key, value)
    return value


def _qwen1(config: Config) -> Shapes:
    dim, width = whole(config, "hidden_size"), whole(config, "intermediate_size") // 2
    inner = whole(config, "num_attention_heads") * whole(config, "kv_channels")
    shapes: Shapes = {
        "transformer.wte.weight": (whole(config, "vocab_size"), dim),
        "transformer.ln_f.weight": (dim,),
    }
    for i in range(whole(config, "num_hidden_layers")):
        layer = f"transformer.h.{i}."
        shapes |= {layer + "ln_1.weight": (dim,), layer + "ln_2.weight": (dim,)}
        shapes |= {layer + "attn.c_attn.weight": (3 * inner, dim), layer + "attn.c_attn.bias": (3 * inner,)}
        shapes |= {layer + "attn.c_proj.weight": (dim, inner), layer + "mlp.c_proj.weight": (dim, width)}
        shapes |= {layer + "mlp.w1.weight": (width, dim), layer + "mlp.w2.weight": (width, dim)}
    return shapes


def _qwen2(config: Config) -> Shapes:
    return _decoder(
        config, lambda i: mlp_shapes(f"model.layers.{i}.mlp.", config, "intermediate_size"), biased="qkv"
    )


def _qwen2_moe(config: Config) -> Shapes:
    return _decoder(config, lambda i: _qwen_moe_layer(config, i, shared=True), biased="qkv")


def _qwen3(config: Config) -> Shapes:
    biased = "qkvo" if config["attention_bias"] else ""
    mlp = lambda i: mlp_shapes(f"model.layers.{i}.mlp.", config, "intermediate_size")  # noqa: E731
    return _decoder(config, mlp, biased=biased, normed=True)


def _qwen3_moe(config: Config) -> Shapes:
    biased = "qkvo" if config["attention_bias"] else ""
    return _decoder(config, lambda i: _qwen_moe_layer(config, i, shared=False), biased=biased, normed=True)


def _ernie(config: Config) -> Shapes:
    biased = "qkvo" if config["use_bias"] else ""
    return _decoder(
        config, lambda i: _ernie_mlp(f"model.layers.{i}.mlp.", config, "intermediate_size"), biased=biased
    )


def _ernie_moe(config: Config) -> Shapes:
    return _decoder(
        config, lambda i: _ernie_moe_layer(config, i), biased="qkvo" if config["use_bias"] else ""
    )


def _decoder(config: Config, mlp: Callable[[int], Shapes], *, biased: str, normed: bool = False) -> Shapes:
    """Everything but the head. `biased` names the attention projections with a bias."""
    dim, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    head_dim = whole(config, "head_dim") if "head_dim" in config else dim // heads
    rows = {"q": heads * head_dim, "k": whole(config, "num_key_value_heads") * head_dim}
    rows["v"] = rows["k"]
    shapes: Shapes = {
        "model.embed_tokens.weight": (whole(config, "vocab_size"), dim),
        "model.norm.weight": (dim,),
    }
    for i in range(whole(config, "num_hidden_layers")):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (rows[part], dim) for part in "qkv"}
        shapes[layer + "self_attn.o_proj.weight"] = (dim, rows["q"])
        shapes |= {f"{layer}self_attn.{part}_proj.bias": (rows.get(part, dim),) for part in biased}
        shapes |= {f"{layer}self_attn.{part}_norm.weight": (head_dim,) for part in ("qk" if normed else "")}
        shapes |= {
            layer + "input_layernorm.weight": (dim,),
            layer + "post_attention_layernorm.weight": (dim,),
        }
        shapes |= mlp(i)
    return shapes


def mlp_shapes(prefix: str, config: Config, width: str | int) -> Shapes:
    """A gated MLP under `prefix`; `width` is a number or a key of the config."""
    dim, rows = whole(config, "hidden_size"), width if isinstance(width, int) else whole(config, width)
    shapes: Shapes = {prefix + "gate_proj.weight": (rows, dim), prefix + "up_proj.weight": (rows, dim)}
    return shapes | {prefix + "down_proj.weight": (dim, rows)}


def _experts(prefix: str, config: Config, count: int) -> Shapes:
    shapes: Shapes = {prefix + "gate.weight": (count, whole(config, "hidden_size"))}
    for e in range(count):
        shapes |= mlp_shapes(f"{prefix}experts.{e}.", config, "moe_intermediate_size")
    return shapes


def _qwen_moe_layer(config: Config, i: int, *, shared: bool) -> Shapes:
    prefix = f"model.layers.{i}.mlp."
    dense = config["mlp_only_layers"]
    assert isinstance(dense, list)
    if i in dense or (i + 1) % whole(config, "decoder_sparse_step"):
        return mlp_shapes(prefix, config, "intermediate_size")
    shapes = _experts(prefix, config, whole(config, "num_experts"))
    if shared:
        shapes |= mlp_shapes(prefix + "shared_expert.", config, "shared_expert_intermediate_size")
        shapes[prefix + "shared_expert_gate.weight"] = (1, whole(config, "hidden_size"))
    return shapes


def _ernie_mlp(prefix: str, config: Config, width: str | int) -> Shapes:
    shapes = mlp_shapes(prefix, config, width)
    biases = {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items()}
    return shapes | biases if config["use_bias"] else shapes


def _ernie_moe_layer(config: Config, i: int) -> Shapes:
    prefix = f"model.layers.{i}.mlp."
    first, last = whole(config, "moe_layer_start_index"), whole(config, "moe_layer_end_index")
    last = last if last >= 0 else whole(config, "num_hidden_layers") - 1
    if not first <= i <= last or (i + 1) % whole(config, "moe_layer_interval"):
        return _ernie_mlp(prefix, config, "intermediate_size")
    count, shared = whole(config, "moe_num_experts"), whole(config, "moe_num_shared_experts")
    shapes = _experts(prefix, config, count)
    shapes[prefix + "moe_statics.e_score_correction_bias"] = (1, count)
    if shared:
        shapes |= _ernie_mlp(
            prefix + "shared_experts.", config, shared * whole(config, "moe_intermediate_size")
        )
    return shapes


_SHAPE: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
_EVERY: Config = {
    **_SHAPE,
    "num_key_value_heads": 2,
    "vocab_size": 352,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_QWEN: Config = {
    **_EVERY,
    "attention_dropout": 0.0,
    "bos_token_id": vocabularies.ENDOFTEXT,
    "eos_token_id": vocabularies.IM_END,
    "max_window_layers": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 128,
    "use_sliding_window": False,
    "transformers_version": "4.51.0",
}
_QWEN2: Config = {**_QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
_MOE: Config = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
_QWEN2_MOE: Config = {**_QWEN, **_MOE, "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe"}
_QWEN2_MOE |= {"norm_topk_prob": False, "shared_expert_intermediate_size": 48}
_QWEN3: Config = {**_QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
_QWEN3 |= {"attention_bias": False, "head_dim": 32, "rope_scaling": None, "sliding_window": None}
_QWEN3_MOE: Config = {**_QWEN3, **_MOE, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
_QWEN3_MOE |= {"norm_topk_prob": True}
_ERNIE: Config = {
    **_EVERY,
    "architectures": ["Ernie4_5_ForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 32,
    "model_type": "ernie4_5",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "transformers_version": "4.54.0.dev0",
    "use_bias": False,
}
_ERNIE_MOE: Config = {key: value for key, value in _ERNIE.items() if key != "head_dim"} | {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "moe_intermediate_size": 32,
    "moe_k": 2,
    "moe_layer_end_index": 3,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 8,
    "moe_num_shared_experts": 2,
}
_REMOTE = {"AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}
_QWEN1: Config = {
    **_SHAPE,
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "intermediate_size": 192,  # of w1 and w2 together
    "kv_channels": 16,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 128,
    "model_type": "qwen",
    "no_bias": True,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": 544,
}

FAMILIES: dict[str, Family] = {
    "qwen1": Family(_QWEN1, _qwen1, "tiktoken"),
    "qwen2": Family(_QWEN2, _qwen2, "json"),
    "qwen2_moe": Family(_QWEN2_MOE, _qwen2_moe, "json"),
    "gte": Family({**_QWEN2, "auto_map": _REMOTE, "is_causal": False}, _qwen2, "vocab", pooling=True),
    "qwen3": Family(_QWEN3, _qwen3, "json"),
    "qwen3_embedding": Family(_QWEN3, _qwen3, "json", prefixed=False, head=False, pooling=True),
    "qwen3_moe": Family(_QWEN3_MOE, _qwen3_moe, "json"),
    "ernie4_5": Family(_ERNIE, _ernie, "sentencepiece"),
    "ernie4_5_moe": Family(_ERNIE_MOE, _ernie_moe, "sentencepiece"),
}
