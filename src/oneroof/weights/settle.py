"""What only a checkpoint's tensors tell: its dtype where `config.json` is silent, and if the head is tied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch

from oneroof.config import ModelConfig
from oneroof.tensorfile import Spec
from oneroof.weights.names import Names
from oneroof.weights.stored import Weights
from oneroof.weights.window import Window, slabs, whole

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
_AT_ONCE = 1 << 23  # numbers that are compared at once
_WORDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def settle(config: ModelConfig, stored: Weights, names: Names) -> ModelConfig:
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


def _is_table(stored: Weights, names: Names) -> bool:
    """The stored head is the embedding once more."""
    if stored.alone is not None:
        return False  # `shard` gives no rank a head that is the table
    found = [name for name, spec in stored.specs.items() if names.split(spec)[0].ours == TABLE]
    if len(found) != 1:
        return True  # what is amiss there is said when the tensors are placed
    head, table = stored.specs[HEAD], stored.specs[found[0]]
    return (head.shape, head.dtype) == (table.shape, table.dtype) and all(
        _equal(stored, table.name, window) for window in slabs(whole(head.shape), _AT_ONCE)
    )


def _equal(stored: Weights, table: str, window: Window) -> bool:
    same = torch.equal(stored.window(HEAD, window), stored.window(table, window))
    stored.release(HEAD)
    stored.release(table)
    return same
