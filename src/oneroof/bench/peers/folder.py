"""The folder that all peers read: a shape's config, random weights in bfloat16, and a tokenizer of numbers.

The same seed gives the same weights, so a folder that is there already is taken as it is. A model that has
weights of its own is read where it lies.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from oneroof.bench.peers.shapes import SHAPES
from oneroof.errors import UserError
from oneroof.hub import locate
from oneroof.load import load
from oneroof.models import family_of, read_facts, read_keys
from oneroof.weights.save import save

_END = "<|endoftext|>"  # a token that some tokenizer classes would add if there were none


def facts_of(model: str) -> dict[str, object]:
    """The `config.json` of `model`, a name of `SHAPES`, a folder or a hub id; UserError where it is none."""
    if model in SHAPES:
        keys = SHAPES[model]
    else:
        try:
            keys = read_keys(locate(model))
        except UserError as error:
            raise UserError(
                f"the model {model} was given ({error}); {', '.join(SHAPES)}, or a folder with a "
                f"config.json is allowed; try --models {next(iter(SHAPES))}"
            ) from None
    return keys


def check(model: str, positions: int) -> None:
    """UserError where `model` is none, or is too short for texts of so many tokens."""
    longest = read_facts(facts_of(model)).max_positions
    if positions > longest:
        raise UserError(
            f"{positions} tokens a text were asked of {model}; {longest} are allowed; shorten them"
        )


def prepare(model: str, work: Path, seed: int) -> Path:
    """The folder to read `model` from: its own where it has weights, else one that is made below `work`."""
    if model not in SHAPES:
        folder = locate(model)
        if any(folder.glob("*.safetensors")):
            return folder
    target = work / f"weights-{seed}"
    if not target.exists():
        unfinished = target.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        _write(facts_of(model), unfinished, seed)
        unfinished.rename(target)
    return target


def _write(keys: Mapping[str, object], folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
    drawn = load(folder, device="cpu", dtype="bfloat16", random_weights=True, plain=True, seed=seed)
    tensors = {name: place for name, place in drawn.model.tensors().items() if isinstance(place, Tensor)}
    assert len(tensors) == len(drawn.model.tensors()), "a plain model has tensors alone"
    save(tensors, folder, family_of(keys).renames)
    _write_tokenizer(folder, drawn.config.vocabulary)


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A word a token: some peers do not start without a tokenizer, though all are given ids."""
    words = {_END: 0} | {f"t{token}": token for token in range(1, vocabulary)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    told: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": _END},
    }
    (folder / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32768, "unk_token": _END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
