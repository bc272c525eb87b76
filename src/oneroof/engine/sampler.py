"""From logits to tokens: penalties, then the likeliest token or a draw; each row in its own way.

The order is vLLM's. What a row gets depends on its own logits, settings and history, never on its neighbours.
Letters: S rows, V vocabulary, L places of a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneroof import ops
from oneroof.engine.answer import BAD
from oneroof.engine.draws import Draw
from oneroof.engine.penalties import Penalties, penalize
from oneroof.engine.request import SamplingParams


@dataclass(frozen=True)
class Settings:
    """The sampling parameters of S rows as tensors, made anew only when rows come or go."""

    penalties: Penalties | None  # None: every row has them off
    draws: tuple[Draw, ...]  # the rows that are not greedy

    @staticmethod
    def of(
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        prompts: Sequence[int],
        *,
        vocabulary: int,
        device: torch.device,
    ) -> Settings:
        """One row for each of `params`; `prompts` are the lengths of their prompts."""

        def real(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        penalties = None
        rows = [row for row, p in enumerate(params) if p.penalized]
        if rows:
            penalties = Penalties(
                rows=torch.tensor(rows, device=device),
                repetition=real([params[r].repetition_penalty for r in rows]),
                presence=real([params[r].presence_penalty for r in rows]),
                frequency=real([params[r].frequency_penalty for r in rows]),
                prompts=torch.tensor([prompts[r] for r in rows], dtype=torch.int64, device=device),
            )
        return Settings(penalties, Draw.each(params, seeds, vocabulary=vocabulary, device=device))


def sample(logits: Tensor, settings: Settings, lengths: Tensor, history: Tensor | None) -> Tensor:
    """[S] int64: the next token of each row; `BAD` for a row whose logits are not numbers.

    `logits` [S, V] float32 are not changed. `lengths` [S] int64 is how many tokens each row has, so also the
    place of the token drawn. `history` [S, L] int64 holds these tokens; it is read only where a row has
    penalties.
    """
    if settings.penalties is not None:
        assert history is not None
        rows = settings.penalties.rows
        changed = penalize(logits[rows], settings.penalties, history[rows], lengths[rows])
        logits = logits.index_copy(0, rows, changed)
    likeliest = ops.likeliest(logits, BAD)
    if not settings.draws:
        return likeliest
    tokens = likeliest.clone()
    for draw in settings.draws:
        if draw.rows is None:
            tokens = draw.tokens(logits, lengths)
        else:
            tokens[draw.rows] = draw.tokens(logits[draw.rows], lengths[draw.rows])
    return tokens.where(likeliest != BAD, BAD)
