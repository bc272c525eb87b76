"""The families, by the word that names each: any of their checkpoint folders becomes one kind of config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.jsonfile import read_object
from oneroof.models.ernie import ERNIE, ERNIE_MOE
from oneroof.models.family import Family
from oneroof.models.qwen import QWEN, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE

FAMILIES: dict[str, Family] = {
    "qwen": QWEN,
    "qwen2": QWEN2,
    "qwen2_moe": QWEN2_MOE,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
    "ernie": ERNIE,
    "ernie_moe": ERNIE_MOE,
}

_TYPES = {"ernie4_5": "ernie", "ernie4_5_moe": "ernie_moe"}  # `model_type` where it is not our word


def family_of(hf: Mapping[str, object]) -> Family:
    """The family of a `config.json`: by its architecture, or by `model_type` where none is listed."""
    listed = hf.get("architectures")
    names = listed if isinstance(listed, list) else []
    for family in FAMILIES.values():
        if any(name in family.architectures for name in names):
            return family
    kind = str(hf.get("model_type"))
    word = _TYPES.get(kind, kind)
    if not names and word in FAMILIES:
        return FAMILIES[word]
    known = ", ".join(name for family in FAMILIES.values() for name in family.architectures[:1])
    found = ", ".join(map(str, names)) or f"model_type {kind}"
    raise UserError(f"config.json names the architecture {found}; {known} are allowed; see docs/models.md")


def read_keys(folder: Path) -> dict[str, object]:
    """The raw keys of a folder's `config.json`."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(
            f"{folder} has no config.json; a folder in Hugging Face layout is allowed; check the path"
        )
    return read_object(path)


def read_facts(hf: Mapping[str, object]) -> ModelConfig:
    """A config from the raw keys; UserError where a fact is missing, impossible or not supported."""
    facts = family_of(hf)
    if hf.get("quantization_config") or hf.get("quantize"):
        told = hf.get("quantization_config")
        method = told.get("quant_method") if isinstance(told, Mapping) else hf.get("quantize")
        raise UserError(f"the checkpoint is quantised ({method}); float ones are allowed; take its original")
    return facts.facts(hf)


def read_config(folder: Path) -> ModelConfig:
    """The facts of a checkpoint folder."""
    return read_facts(read_keys(folder))
