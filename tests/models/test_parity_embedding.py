"""Embedding checkpoints give transformers' hidden states, causal or not, with or without prefix and head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch

from oneroof.batch import pack
from oneroof.errors import UserError
from oneroof.load import Loaded, load

Checkpoint = Callable[..., Path]
LENGTHS = (1, 20, 6, 64, 20)


@torch.no_grad()
def hidden(loaded: Loaded, sequences: list[list[int]]) -> list[torch.Tensor]:
    """[T, dim] of each sequence, all in one batch."""
    batch = pack(sequences)
    return list(loaded.model(batch).split(batch.counts))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schema": 5},
        {"prefixed": True},
        {"prefixed": True, "head": True},
        {"files": "sharded"},
        {"tied": True},
    ],
    ids=str,
)
def test_qwen3_embedding(checkpoint: Checkpoint, options: dict[str, object]) -> None:
    """Published without `model.`, and the largest says it is untied and has no head."""
    folder = checkpoint("qwen3_embedding", **options)
    sequences = reference.prompts(LENGTHS)
    ours = hidden(load(folder, device="cpu", dtype="float32"), sequences)
    for mine, theirs in zip(ours, reference.hidden(folder, sequences), strict=True):
        reference.close(mine, theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"schema": 5}, {"prefixed": False}, {"prefixed": False, "head": False}, {"files": "sharded-bin"}],
    ids=str,
)
def test_gte_sees_in_both_directions(checkpoint: Checkpoint, options: dict[str, object]) -> None:
    """Against a causal Qwen2 that is given a mask under which everything is seen."""
    folder = checkpoint("gte", **options)
    sequences = reference.prompts(LENGTHS)
    ours = hidden(load(folder, device="cpu", dtype="float32"), sequences)
    theirs = reference.hidden(folder, sequences, bidirectional=True)
    for mine, other in zip(ours, theirs, strict=True):
        reference.close(mine, other)


def test_what_follows_matters_to_gte_alone(checkpoint: Checkpoint) -> None:
    first, second = reference.prompts([8])[0], reference.prompts([8])[0]
    second[-1] = (second[-1] + 1) % 320
    for family, moved in (("gte", True), ("qwen2", False), ("qwen3_embedding", False)):
        loaded = load(checkpoint(family), device="cpu", dtype="float32")
        a, b = hidden(loaded, [first, second])
        assert (not torch.allclose(a[0], b[0], atol=1e-5)) is moved


def test_other_sequences_of_the_batch_are_not_seen(checkpoint: Checkpoint) -> None:
    loaded = load(checkpoint("gte"), device="cpu", dtype="float32")
    sequences = reference.prompts([9, 3, 30])
    for ids, packed in zip(sequences, hidden(loaded, sequences), strict=True):
        reference.close(packed, hidden(loaded, [ids])[0], scale=1e-5)


def test_without_a_head_there_are_no_logits(checkpoint: Checkpoint) -> None:
    loaded = load(checkpoint("qwen3_embedding"), device="cpu")
    with pytest.raises(UserError, match="head"):
        loaded.logits([[1, 2, 3]])
