"""Tiny random checkpoints of every family, on disk, in Hugging Face layout, made without our own code.

`make` writes one; the `checkpoint` fixture of `conftest.py` keeps each. A tensor's values depend
on the seed, its name and its shape alone: another layout (sharded, packed, other prefix) is the same model.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch
import vocabularies
from published import FAMILIES, Config, Family, Shapes, mlp_shapes, whole
from safetensors.torch import save_file
from torch import Tensor


def make(
    folder: Path,
    family: str,
    *,
    schema: int = 4,
    files: str = "single",
    packed: bool = False,
    prefixed: bool | None = None,
    head: bool | None = None,
    tied: bool | None = None,
    dtype: str = "float32",
    seed: int = 0,
    uneven: bool = False,
    mtp: bool = False,
    tokenizer: str = "auto",
    **config: object,
) -> Path:
    """Writes a checkpoint of `family` into `folder` and returns it.

    family: qwen1, qwen2, qwen2_moe, gte, qwen3, qwen3_embedding, qwen3_moe, ernie4_5, ernie4_5_moe.
    schema: 4 or 5, the transformers whose `config.json` is imitated.
    files: single, sharded, bin, sharded-bin.
    packed: experts stacked as transformers 5 holds them.
    prefixed, head, tied: other than the family's own layout; head=True with a tied one stores a copy of it.
    uneven: the router feeds four of the experts, and those unequally.
    mtp: multi-token-prediction tensors lie beside, as in ERNIE's files.
    tokenizer: json, vocab, tiktoken, sentencepiece or none; "auto" is the family's own.
    config: keys of `config.json` in transformers 4's words; one set to None is written as null.
    """
    spec = FAMILIES[family]
    facts = {**spec.config, **config, **({} if tied is None else {"tie_word_embeddings": tied})}
    tensors = _tensors(family, spec, facts, seed=seed, dtype=dtype, uneven=uneven)
    if head if head is not None else (spec.head and not facts["tie_word_embeddings"]):
        tensors["lm_head.weight"] = _head(tensors, facts, seed=seed, dtype=dtype)
    if packed:
        tensors = _packed(tensors)
    if mtp:
        tensors |= _mtp(facts, dtype)
    if not (spec.prefixed if prefixed is None else prefixed):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder, tensors, files)
    facts = _with_dtype(family, facts, dtype)
    _dump(folder / "config.json", facts if schema == 4 else _schema_5(family, facts))
    _dump(folder / "generation_config.json", _generation(family, facts))
    _write_text(folder, family, spec.tokenizer if tokenizer == "auto" else tokenizer)
    return folder


def _tensors(
    family: str, spec: Family, config: Config, *, seed: int, dtype: str, uneven: bool
) -> dict[str, Tensor]:
    tensors = {name: _values(name, shape, seed) for name, shape in spec.shapes(config).items()}
    if uneven:
        tensors = {name: _uneven(name, tensor) for name, tensor in tensors.items()}
    kept = (".mlp.gate.weight", "e_score_correction_bias")  # float32 as published
    exact = lambda name: family == "ernie4_5_moe" and name.endswith(kept)  # noqa: E731
    return {name: t if exact(name) else t.to(getattr(torch, dtype)) for name, t in tensors.items()}


def _values(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Values under which nothing is neutral: norms are not 1, biases are not 0, logits are not flat."""
    noise: Tensor = torch.randn(
        shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    )
    if name.endswith("e_score_correction_bias"):
        return 0.3 * noise
    if len(shape) == 1:
        return 0.3 * noise + (0.0 if name.endswith(".bias") else 1.0)
    if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")):
        return 0.3 * noise
    gain = 2.0 if name.endswith(".mlp.gate.weight") else 1.2
    return noise * gain / shape[1] ** 0.5


def _uneven(name: str, gate: Tensor) -> Tensor:
    """Rows 0 and 1, 2 and 3 are opposites and loud, the rest quiet: with top 2 no token goes beyond 3."""
    if name.endswith("e_score_correction_bias"):
        return torch.tensor([[0.1, 0.0, 0.05, 0.2] + [-2.0] * (gate.shape[1] - 4)])
    if not name.endswith(".mlp.gate.weight"):
        return gate
    quiet = 1e-3 * gate
    quiet[0], quiet[1] = 3 * gate[0], -3 * gate[0]
    quiet[2], quiet[3] = 2 * gate[2], -2 * gate[2]
    return quiet


def _head(tensors: dict[str, Tensor], config: Config, *, seed: int, dtype: str) -> Tensor:
    if config["tie_word_embeddings"]:
        return tensors["model.embed_tokens.weight"].clone()
    shape = (whole(config, "vocab_size"), whole(config, "hidden_size"))
    return _values("lm_head.weight", shape, seed).to(getattr(torch, dtype))


def _packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts as `save_pretrained(save_original_format=False)` of transformers 5 writes them."""
    out = {
        name.replace("mlp.moe_statics.", "mlp.gate.moe_statics."): tensor
        for name, tensor in tensors.items()
        if ".experts." not in name
    }
    for block in sorted({name.split(".experts.")[0] for name in tensors if ".experts." in name}):
        count = tensors[block + ".gate.weight"].shape[0]
        part = lambda e, which, at=block: tensors[f"{at}.experts.{e}.{which}_proj.weight"]  # noqa: E731
        both = [torch.cat([part(e, "gate"), part(e, "up")]) for e in range(count)]
        out[block + ".experts.gate_up_proj"] = torch.stack(both)
        out[block + ".experts.down_proj"] = torch.stack([part(e, "down") for e in range(count)])
    return out


def _mtp(config: Config, dtype: str) -> dict[str, Tensor]:
    dim = whole(config, "hidden_size")
    shapes: Shapes = {
        f"model.mtp_block.0.{name}": shape for name, shape in mlp_shapes("mlp.", config, 96).items()
    }
    shapes |= {f"model.mtp_block.0.self_attn.{part}_proj.weight": (dim, dim) for part in "qkvo"}
    shapes |= {f"model.mtp_{name}.0.weight": (dim,) for name in ("emb_norm", "hidden_norm")}
    shapes["model.mtp_linear_proj.0.weight"] = (dim, 2 * dim)
    return {
        name: torch.full(shape, float("nan"), dtype=getattr(torch, dtype)) for name, shape in shapes.items()
    }


def _write_tensors(folder: Path, tensors: dict[str, Tensor], files: str) -> None:
    safe = not files.endswith("bin")
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    save = (lambda part, path: save_file(part, path, metadata={"format": "pt"})) if safe else torch.save
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if not files.startswith("sharded"):
        save(tensors, folder / f"{stem}.{suffix}")
        return
    names = list(tensors)
    count = 3
    placed: dict[str, str] = {}
    for shard in range(count):
        part = names[shard::count]  # neighbours lie apart: a fused projection's parts are in several files
        file = f"{stem}-{shard + 1:05d}-of-{count:05d}.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _dump(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": total}, "weight_map": placed})


def _write_text(folder: Path, family: str, tokenizer: str) -> None:
    spec = FAMILIES[family]
    if tokenizer == "json":
        vocabularies.write_json(folder, appended=spec.pooling)
    elif tokenizer == "vocab":
        vocabularies.write_vocab(folder, add_eos=spec.pooling)
    elif tokenizer == "tiktoken":
        vocabularies.write_tiktoken(folder)
    elif tokenizer == "sentencepiece":
        vocabularies.write_sentencepiece(folder)
    else:
        assert tokenizer == "none", tokenizer
    if spec.pooling:
        modules = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
        listed = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ]
        _dump(folder / "modules.json", listed)
        (folder / "1_Pooling").mkdir(exist_ok=True)
        _dump(folder / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True, "include_prompt": True})
        query = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
        _dump(
            folder / "config_sentence_transformers.json",
            {"prompts": {"query": query}, "similarity_fn_name": "cosine"},
        )


def _with_dtype(family: str, config: Config, dtype: str) -> Config:
    if family == "qwen1":
        return {**config, "bf16": False, "fp16": False, "fp32": False}  # as published: the tensors tell
    return {**config, "torch_dtype": dtype}


def _schema_5(family: str, config: Config) -> Config:
    """The same facts as transformers 5.23's `save_pretrained` spells them."""
    assert family != "qwen1", "transformers has no Qwen-1"
    out = {**config, "dtype": config["torch_dtype"], "transformers_version": "5.23.0"}
    scaling = out.pop("rope_scaling", None) or {}
    assert isinstance(scaling, dict)
    rope = {
        "rope_theta": out.pop("rope_theta"),
        "rope_type": scaling.get("rope_type", scaling.get("type", "default")),
    }
    out["rope_parameters"] = rope | {
        key: value for key, value in scaling.items() if key not in ("type", "rope_type")
    }
    del out["torch_dtype"]
    if family == "qwen3_moe":
        out["num_local_experts"] = out.pop("num_experts")
    if not out.get("use_sliding_window", True):
        out["sliding_window"] = 0 if family == "qwen2_moe" else None
    if family.startswith("ernie"):
        out["architectures"] = ["Ernie4_5ForCausalLM" if family == "ernie4_5" else "Ernie4_5_MoeForCausalLM"]
    return out


def _generation(family: str, config: Config) -> Config:
    if family.startswith("ernie"):
        return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": True, "top_p": 0.8}
    end, text = vocabularies.IM_END, vocabularies.ENDOFTEXT
    if family == "qwen1":
        chat = {
            "chat_format": "chatml",
            "max_window_size": whole(config, "seq_length") - 8,
            "max_new_tokens": 16,
        }
        return {
            **chat,
            "eos_token_id": text,
            "pad_token_id": text,
            "do_sample": True,
            "top_k": 0,
            "top_p": 0.8,
        }
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    return {"bos_token_id": text, "eos_token_id": [end, text], "pad_token_id": text, **sampling}


def _dump(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
