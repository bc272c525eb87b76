"""From logits to tokens: penalties, temperature, min-p, top-k, top-p, then a draw; each row in its own way.

The order is vLLM's. What a row gets depends on its own logits, settings and history, never on its neighbours.
Letters: S rows, V vocabulary, L places of a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneroof.engine.answer import BAD
from oneroof.engine.noise import gumbel
from oneroof.engine.penalties import Penalties, penalize
from oneroof.engine.request import SamplingParams

_OFF = float("-inf")


@dataclass(frozen=True)
class Settings:
    """The sampling parameters of S rows as tensors, made anew only when rows come or go.

    A part is None where every row has it off. Off means untouched, bit for bit, for the rows that have it off
    beside others that have it on.
    """

    temperature: Tensor | None  # [S] float32, 0 = greedy; None: every row is
    seeds: Tensor  # [S] int64
    min_p: Tensor | None  # [S] float32
    top_k: Tensor | None  # [S] int64, V where off
    top_p: Tensor | None  # [S] float32
    most_candidates: int  # max(top_k), on the host
    penalties: Penalties | None

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

        def whole(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        drawn = [p for p in params if not p.greedy]
        top_k = [vocabulary if p.greedy or p.top_k < 1 else min(p.top_k, vocabulary) for p in params]
        top_p = [1.0 if p.greedy else p.top_p for p in params]
        penalties = None
        if any(p.penalized for p in params):
            penalties = Penalties(
                repetition=real([p.repetition_penalty for p in params]),
                presence=real([p.presence_penalty for p in params]),
                frequency=real([p.frequency_penalty for p in params]),
                prompts=whole(prompts),
            )
        return Settings(
            temperature=real([0.0 if p.greedy else p.temperature for p in params]) if drawn else None,
            seeds=whole(seeds),
            min_p=real([p.min_p for p in params]) if any(p.min_p for p in drawn) else None,
            top_k=whole(top_k) if min(top_k, default=vocabulary) < vocabulary else None,
            top_p=real(top_p) if min(top_p, default=1.0) < 1.0 else None,
            most_candidates=max((k for k, p in zip(top_k, params, strict=True) if not p.greedy), default=0),
            penalties=penalties,
        )


def sample(logits: Tensor, settings: Settings, lengths: Tensor, history: Tensor | None) -> Tensor:
    """[S] int64: the next token of each row; `BAD` for a row whose logits are not numbers.

    `logits` [S, V] float32 are not changed. `lengths` [S] int64 is how many tokens each row has, so also the
    place of the token drawn. `history` [S, L] int64 holds these tokens; it is read only where penalties are
    on.
    """
    if settings.penalties is not None:
        assert history is not None
        logits = penalize(logits, settings.penalties, history, lengths)
    best, tokens = logits.max(-1)
    if settings.temperature is not None:
        greedy = settings.temperature == 0
        scaled = logits / settings.temperature.where(~greedy, 1.0)[:, None]
        noise = gumbel(settings.seeds, lengths, logits.shape[1])
        drawn = _filter(scaled, settings).add_(noise).argmax(-1)
        tokens = torch.where(greedy, tokens, drawn)
    return tokens.where(best.isfinite(), BAD)


def _filter(logits: Tensor, settings: Settings) -> Tensor:
    """[S, V]: -inf where min-p, top-k or top-p leave a token out. `logits` [S, V] are the caller's to lose.

    Each cut is a threshold on the logit, so equal logits stay or go together, whatever order a sort gives
    them.
    """
    if settings.min_p is not None:
        floor = logits.amax(-1, keepdim=True) + settings.min_p.log()[:, None]
        logits = logits.masked_fill_(logits < floor, _OFF)
    if settings.top_k is None and settings.top_p is None:
        return logits
    ordered = logits.topk(settings.most_candidates, dim=-1).values
    if settings.top_k is not None:
        last = (settings.top_k.clamp(max=settings.most_candidates) - 1)[:, None]
        floor = ordered.gather(1, last).where(settings.top_k[:, None] < logits.shape[1], _OFF)
        logits = logits.masked_fill_(logits < floor, _OFF)
        ordered = ordered.masked_fill_(ordered < floor, _OFF)
    if settings.top_p is not None:
        logits = _cut_tail(logits, ordered, settings.top_p)
    return logits


def _cut_tail(logits: Tensor, ordered: Tensor, top_p: Tensor) -> Tensor:
    """Keep the likeliest tokens until their probabilities reach `top_p`, the one that reaches it included.

    `ordered` are the largest of `logits`, descending: at least all those that are not -inf. The normaliser is
    taken over all of `logits`, so that it does not depend on how many were ordered for a neighbour's sake.
    """
    shares = (ordered - logits.logsumexp(-1, keepdim=True)).exp()
    before = shares.cumsum(-1) - shares  # what likelier tokens hold already
    kept = (before < top_p[:, None]) | (top_p[:, None] >= 1.0)
    floor = ordered.where(kept, float("inf")).amin(-1, keepdim=True)
    return logits.masked_fill_(logits < floor, _OFF)
