"""Penalties for tokens that were written before, from a table of each row's tokens.

Letters: S rows, V vocabulary, L places of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Penalties:
    """Strengths by row, as vLLM defines them: repetition over prompt and output, the others over output."""

    rows: Tensor  # [S] int64: which of the batch
    repetition: Tensor  # [S] float32; 1 = off
    presence: Tensor  # [S] float32; 0 = off
    frequency: Tensor  # [S] float32; 0 = off
    prompts: Tensor  # [S] int64: length of each row's prompt


def penalize(logits: Tensor, penalties: Penalties, history: Tensor, lengths: Tensor) -> Tensor:
    """[S, V] new logits.

    ``l / r if l > 0 else l * r`` for a token in prompt or output, then ``l - presence - frequency * count``
    for one in the output. Row s of `history` [S, L] int64 holds its prompt and output in places
    ``0..lengths[s] - 1``; what lies beyond is not read.
    """
    places = torch.arange(history.shape[1], device=history.device)
    written = places < lengths[:, None]
    output = written & (places >= penalties.prompts[:, None])
    tokens = history.where(
        written, history[:, :1]
    )  # beyond the end: the first token once more, which is harmless
    old = logits.gather(1, tokens)
    strength = penalties.repetition[:, None]
    logits = logits.scatter(1, tokens, torch.where(old > 0, old / strength, old * strength))
    seen = torch.zeros_like(logits).scatter_add_(1, tokens, output.to(logits.dtype))
    return logits - penalties.presence[:, None] * (seen > 0) - penalties.frequency[:, None] * seen
