"""`convert`: any checkpoint folder that loads -> a clean one, from file to file, with one tensor in memory.

The new folder appears under its name when it is complete and on disk. Until then it is a hidden one beside it
without a config.json, which the next attempt clears away.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.export import qwen2
from oneroof.jsonfile import read_object
from oneroof.models import FAMILIES, family_of, read_facts, read_keys
from oneroof.models.decoder import Decoder
from oneroof.tensorfile import Report, Spec, locked, sync, write_text
from oneroof.weights.load import FLOATS, place, read_part, reason_left_out
from oneroof.weights.names import Names, Part
from oneroof.weights.save import SHARD, stream
from oneroof.weights.settle import HEAD, main_dtype, settle
from oneroof.weights.sharded import open_weights
from oneroof.weights.stored import Weights

# What belongs to a checkpoint beside weights and config. Python files are copied, never run.
BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_*/config.json",
    "README*",
    "LICENSE*",
    "NOTICE*",
    "*.py",
)
_TRANSLATED = ("*.tiktoken", "*.py", "README*")  # of those, what tells of the old form


@dataclass(frozen=True)
class Source:
    """An opened checkpoint whose every tensor has a place."""

    hf: dict[str, object]
    config: ModelConfig
    names: Names
    stored: Weights
    parts: dict[str, tuple[str, Part]]  # ours -> (stored, which part of it)
    left_out: tuple[str, ...]  # reasons


def convert(
    folder: Path,
    out: Path,
    *,
    to: str = "same",
    dtype: str = "auto",
    limit: int = SHARD,
    report: Report | None = None,
) -> tuple[str, ...]:
    """Write the checkpoint in `folder` to `out`, in files of at most `limit` bytes; returns notes.

    `to` is "same" (the family's own form) or "qwen2" (Qwen-1 as Qwen2ForCausalLM). `dtype` "auto" keeps each
    tensor's own; another casts all but what the model computes in float32. Raises UserError for a checkpoint
    that would not load, an `out` that is there or cannot be written, and numbers too large for float16.
    """
    source = open_source(folder)
    notes = source.left_out
    extra: dict[str, object] = {}
    renames = family_of(source.hf).renames
    if to == "qwen2":
        extra = qwen2.files(folder, source.hf, source.config, read_object(folder / "generation_config.json"))
        renames, notes = FAMILIES["qwen2"].renames, (*notes, *qwen2.lost(source.hf, source.config))
    specs = {ours: _cast_spec(source, ours, dtype) for ours in source.parts}
    hf = extra.pop("config.json", source.hf)
    assert isinstance(hf, dict)
    word = dtype if dtype != "auto" else main_dtype(specs.values())
    with _appearing(out, sum(spec.bytes for spec in specs.values())) as made:
        stream(specs, _reader(source, specs), made, renames, limit=limit, report=report)
        _copy(folder, made, skip=(*extra, *_matching(folder, _TRANSLATED)) if to == "qwen2" else ())
        for name, content in extra.items():
            write_text(made / name, _json(content))
        write_text(made / "config.json", _json(portable(hf, word, folder)))
    return notes


def open_source(folder: Path) -> Source:
    """Open a checkpoint to write it anew. UserError for one that would not load, or that is not all there."""
    hf = read_keys(folder)
    family, stored = family_of(hf), open_weights(folder, all_ranks=True)
    names = Names(family.renames, family.ignored)
    told = read_facts(hf)
    config = settle(told, stored, names)
    if config.tied_head != told.tied_head:
        hf = hf | {"tie_word_embeddings": config.tied_head}
    head = config.tied_head or HEAD in stored.specs
    targets = Decoder(config, device="meta", head=head).tensors()  # shapes alone
    places = place(stored.specs, names, targets, folder, tied=config.tied_head)
    parts = {part.ours: (name, part) for name, found in places.items() for part in found}
    reasons = Counter(
        reason_left_out(name, names, tied=config.tied_head) for name in stored.specs if name not in places
    )
    left_out = tuple(f"{count} tensors left out: {reason}" for reason, count in reasons.items())
    return Source(hf, config, names, stored, parts, left_out)


def portable(hf: Mapping[str, object], dtype: str, folder: Path) -> dict[str, object]:
    """The keys of a `config.json` as transformers 4 and 5 both read them: each fact under both its names."""
    keys = dict(hf) | {"torch_dtype": dtype, "dtype": dtype}
    for one, other in (("num_experts", "num_local_experts"), ("num_local_experts", "num_experts")):
        if one in keys:
            keys.setdefault(other, keys[one])
    if any(keys.get(switch) is True for switch in ("bf16", "fp16", "fp32")):
        keys |= {"bf16": dtype == "bfloat16", "fp16": dtype == "float16", "fp32": dtype == "float32"}
    auto_map = keys.get("auto_map")
    if isinstance(auto_map, dict) and not all(
        (folder / _module(name)).exists() for name in auto_map.values()
    ):
        del keys["auto_map"]  # it names code that is not there
    return keys | _rope(keys)


def _rope(keys: Mapping[str, object]) -> dict[str, object]:
    """`rope_theta` and `rope_scaling` (4) beside `rope_parameters` (5), which falls back on the former."""
    told = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    assert isinstance(told, Mapping)  # the facts were read from it
    theta = told.get("rope_theta", keys.get("rope_theta"))
    if theta is None:
        return {}
    kind = told.get("rope_type") or told.get("type") or "default"
    rest = {key: value for key, value in told.items() if key not in ("rope_theta", "rope_type", "type")}
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, "rope_type": kind, **rest},
        "rope_parameters": {"rope_type": kind, "rope_theta": theta, **rest},
    }


def _module(name: object) -> str:
    return str(name).split("--")[-1].split(".")[0] + ".py"


def _cast_spec(source: Source, ours: str, dtype: str) -> Spec:
    name, part = source.parts[ours]
    spec = source.stored.specs[name]
    experts = source.config.experts
    exact = experts is not None and experts.router_float32 and ".mlp.gate." in ours
    kept = dtype == "auto" or exact or spec.dtype not in FLOATS
    return Spec(ours, spec.dtype if kept else getattr(torch, dtype), part.shape(spec.shape))


def _reader(source: Source, specs: Mapping[str, Spec]) -> Callable[[str], Tensor]:
    """Reads one of our tensors, cast; the file's pages of the one before are given back."""
    last = ""

    def read(ours: str) -> Tensor:
        nonlocal last
        name, part = source.parts[ours]
        if last not in ("", name):
            source.stored.release(last)
        last = name
        tensor = read_part(source.stored, name, part)
        cast = tensor.to(specs[ours].dtype)
        if cast.dtype == torch.float16 != tensor.dtype and not bool(cast.isfinite().all()):
            raise UserError(
                f"{name} holds numbers that float16 lacks (beyond 65504); bfloat16 or float32 is allowed"
            )
        return cast

    return read


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        yield from (str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file())


def _copy(folder: Path, out: Path, *, skip: tuple[str, ...]) -> None:
    for name in _matching(folder, BESIDE):
        if name not in skip:
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, out / name)


def _json(content: object) -> str:
    assert isinstance(content, dict)
    large = "model" in content  # a tokenizer: one line
    return json.dumps(content, ensure_ascii=False, indent=None if large else 2) + "\n"


@contextlib.contextmanager
def _appearing(out: Path, size: int) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name when the block ends well, and is removed otherwise.

    `size`: bytes that must fit. One that a killed attempt left is cleared; a lock keeps two attempts apart.
    """
    out = Path(os.path.realpath(out.expanduser()))  # where a link points to
    part = out.parent / f".{out.name}.part"
    absent: list[Path] = []
    try:
        absent = [folder for folder in part.parents if not folder.exists()]
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out} is there already; a new or an empty folder is allowed; choose another")
        part.mkdir(parents=True, exist_ok=True)
        with locked(part):
            try:
                for old in part.iterdir():
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                free = shutil.disk_usage(part).free
                if free < size:
                    raise UserError(
                        f"{out} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there; make room"
                    )
                yield part
                for path in (*part.rglob("*"), part):
                    sync(path)
                part.replace(out)
                sync(out.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}); choose a folder with room and write access"
        ) from error
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):  # it is not empty where all went well
                folder.rmdir()
