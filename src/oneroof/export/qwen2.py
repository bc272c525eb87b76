"""Qwen-1 told in the words of Qwen2: config, generation config and tokenizer, for tools that know only those.

The weights need no more than other names. Dynamic NTK and logn attention have no such words and are lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.export.bytepairs import tokenizer_json
from oneroof.text.ranks import SPECIAL, load_ranks

LOST = (
    "dynamic NTK and logn attention are lost: the Qwen2 form has neither, so texts beyond {length} tokens "
    "come out worse"
)
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
RANKS = "qwen.tiktoken"

_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")


def files(
    folder: Path, hf: Mapping[str, object], config: ModelConfig, old: Mapping[str, object]
) -> dict[str, object]:
    """File name -> JSON content of the translated folder; `old` is its generation_config.json.

    Raises UserError where there is no `qwen.tiktoken`, or it is torn.
    """
    if config.family != "qwen":
        raise UserError(
            "--to qwen2 is for Qwen-1 (QWenLMHeadModel); this model has another architecture; leave it out"
        )
    if not (folder / RANKS).exists():
        raise UserError(f"{folder} has no {RANKS}, from which the tokenizer is made; copy it there")
    ranks = load_ranks(folder)
    length = _trained_length(hf, config)
    chat = old.get("chat_format") == "chatml"
    stops = [len(ranks) + 2, len(ranks)] if chat else [len(ranks)]  # <|im_end|>, <|endoftext|>
    return {
        "config.json": _config(config, length, stops[0], len(ranks)),
        "generation_config.json": {
            "bos_token_id": len(ranks),
            "eos_token_id": stops,
            "pad_token_id": len(ranks),
            **{key: old[key] for key in _SAMPLING if key in old},
        },
        "tokenizer.json": tokenizer_json(ranks),
        "tokenizer_config.json": _tokenizer_config(len(ranks), length, chat=chat),
    }


def lost(hf: Mapping[str, object], config: ModelConfig) -> tuple[str, ...]:
    """What the translation cannot say, in lines for the user."""
    if config.rope.kind == "default" and not config.logn_positions:
        return ()
    return (LOST.format(length=_trained_length(hf, config)),)


def _trained_length(hf: Mapping[str, object], config: ModelConfig) -> int:
    length = hf.get("seq_length")
    return length if isinstance(length, int) else config.max_positions


def _config(config: ModelConfig, length: int, stop: int, end_of_text: int) -> dict[str, object]:
    heads_apart = config.head_dim * config.heads != config.dim
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": stop,
        **({"head_dim": config.head_dim} if heads_apart else {}),
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "initializer_range": config.init_range,
        "intermediate_size": config.width,  # of one of the two halves that Qwen-1 counts together
        "max_position_embeddings": length,
        "max_window_layers": config.depth,
        "model_type": "qwen2",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.depth,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "sliding_window": None,
        "tie_word_embeddings": config.tied_head,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocabulary,
    }


def _tokenizer_config(first: int, length: int, *, chat: bool) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + i): {"content": text, **flags} for i, text in enumerate(SPECIAL)
        },
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[2] if chat else SPECIAL[0],
        "errors": "replace",
        "model_max_length": length,
        "pad_token": SPECIAL[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
