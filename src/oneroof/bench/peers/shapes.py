"""The shapes that are compared where no folder is named: what a `config.json` says of each, weights apart.

Two dense models as they are published, and two mixtures of experts small enough for any machine, of the same
make as the published ones: 0.7B with 140M at work for a token, and 0.64B with 157M.
"""

from __future__ import annotations

_DENSE: dict[str, object] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_SPARSE: dict[str, object] = {
    "hidden_act": "silu",
    "hidden_size": 1024,
    "head_dim": 64,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 12,
    "moe_intermediate_size": 512,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

SHAPES: dict[str, dict[str, object]] = {
    "qwen2.5-0.5b": {
        **_DENSE,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    },
    "qwen3-0.6b": {
        **_DENSE,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "hidden_size": 1024,
        "head_dim": 128,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 40960,
    },
    "qwen3-moe-0.7b": {
        **_SPARSE,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "intermediate_size": 3072,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "ernie-moe-0.6b": {
        **_SPARSE,
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "intermediate_size": 2048,
        "moe_k": 4,
        "moe_layer_end_index": 11,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_experts": 32,
        "moe_num_shared_experts": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
}
