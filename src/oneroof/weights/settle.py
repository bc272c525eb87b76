"""What only a checkpoint's tensors tell: its dtype where `config.json` is silent, and if the head is tied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch

from oneroof.config import ModelConfig
from oneroof.tensorfile import Spec
from oneroof.weights.names import Names
from oneroof.weights.stored import StoredWeights

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
_WORDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def settle(config: ModelConfig, stored: StoredWeights, names: Names) -> ModelConfig:
    """`config` with both decided.

    A file that says tied and yet stores a head of other numbers is untied, as transformers 5 reads it.
    """
    if config.dtype == "stored":
        config = replace(config, dtype=main_dtype(stored.specs.values()))
    if config.tied_head and HEAD in stored.specs and not _is_table(stored, names):
        config = replace(config, tied_head=False)
    return config


def main_dtype(specs: Iterable[Spec]) -> str:
    """The number format of most bytes; float32 where that is none of ours."""
    held: Counter[str] = Counter()
    for spec in specs:
        held[_WORDS.get(spec.dtype, "float32")] += spec.bytes
    return held.most_common(1)[0][0]


def _is_table(stored: StoredWeights, names: Names) -> bool:
    """The stored head is the embedding once more."""
    found = [name for name, spec in stored.specs.items() if names.split(spec)[0].ours == TABLE]
    if len(found) != 1:
        return True  # what is amiss there is said when the tensors are placed
    head, table = stored.read(HEAD), stored.read(found[0])
    same = head.shape == table.shape and head.dtype == table.dtype and torch.equal(head, table)
    stored.release(HEAD)
    stored.release(found[0])
    return same
