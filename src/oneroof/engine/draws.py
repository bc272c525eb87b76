"""Draws of one kind: temperature, min-p, top-k, top-p, then noise; among all tokens, or the likeliest alone.

On a CPU, noise for a vocabulary and a sort of it cost more than a small model's step. Where a row's settings
leave few tokens, its draw is made among so many likeliest; noise is a function of seed, place and token, so
that the same token comes out. Letters: S rows, V vocabulary, M likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneroof import ops
from oneroof.engine.request import SamplingParams
from oneroof.ops.noise import gumbel

_OFF = float("-inf")
_FEW, _MANY = 128, 1024  # likeliest tokens that are looked at


@dataclass(frozen=True)
class Draw:
    """The settings of S rows that are drawn in one way. A part is None where every row has it off.

    Off means untouched, bit for bit, for the rows that have it off beside others that have it on.
    """

    rows: Tensor | None  # [S] which of the batch; None: all
    width: int  # likeliest tokens that are looked at first; V: all tokens
    temperature: Tensor  # [S] float32
    seeds: Tensor  # [S] int64
    min_p: Tensor | None  # [S] float32
    top_k: Tensor | None  # [S] int64, V where off
    top_p: Tensor | None  # [S] float32
    most: int  # max(top_k), on the host

    @staticmethod
    def each(
        params: Sequence[SamplingParams], seeds: Sequence[int], *, vocabulary: int, device: torch.device
    ) -> tuple[Draw, ...]:
        """The rows that are not greedy, those of one kind together; a row's own settings say which kind."""
        kinds: dict[tuple[int, bool], list[int]] = {}
        for row, one in enumerate(params):
            if not one.greedy:
                kinds.setdefault((_width(one, vocabulary, device), _any_token(one)), []).append(row)
        found = []
        for (width, _), rows in sorted(kinds.items()):
            mine = [params[r] for r in rows]
            top_k = [vocabulary if p.top_k < 1 else min(p.top_k, vocabulary) for p in mine]

            def real(values: Sequence[float]) -> Tensor:
                return torch.tensor(values, dtype=torch.float32, device=device)

            found.append(
                Draw(
                    rows=None if len(rows) == len(params) else torch.tensor(rows, device=device),
                    width=width,
                    temperature=real([p.temperature for p in mine]),
                    seeds=torch.tensor([seeds[r] for r in rows], dtype=torch.int64, device=device),
                    min_p=real([p.min_p for p in mine]) if any(p.min_p for p in mine) else None,
                    top_k=torch.tensor(top_k, device=device) if min(top_k) < vocabulary else None,
                    top_p=real([p.top_p for p in mine]) if any(p.top_p < 1.0 for p in mine) else None,
                    most=max(top_k),
                )
            )
        return tuple(found)

    def tokens(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """[S] int64 the token of each row of `logits` [S, V], which are not changed; `lengths` [S] int64."""
        if self.min_p is None and self.top_k is None and self.top_p is None:
            return ops.draw(logits, self.temperature, self.seeds, lengths)
        scaled = logits / self.temperature[:, None]
        if self.width >= logits.shape[1]:
            return self._among_all(scaled, lengths)
        tokens, sure = self._among_likeliest(scaled, lengths)
        if not bool(sure.all()):  # more tokens are left than were looked at
            tokens = torch.where(sure, tokens, self._among_all(scaled, lengths))
        return tokens

    def _among_all(self, scaled: Tensor, lengths: Tensor) -> Tensor:
        noise = gumbel(self.seeds, lengths, torch.arange(scaled.shape[1], device=scaled.device))
        return self._filter(scaled.clone()).add_(noise).argmax(-1)

    def _among_likeliest(self, scaled: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[S] tokens, and [S] whether all that are left were among those looked at."""
        values, ids = likeliest(scaled, self.width)
        kept = torch.ones_like(values, dtype=torch.bool)
        sure = torch.ones_like(self.seeds, dtype=torch.bool)
        if self.min_p is not None:
            kept &= values >= values[:, :1] + self.min_p.log()[:, None]
        if self.top_k is not None:
            last = (self.top_k.clamp(max=self.width) - 1)[:, None]
            cut = self.top_k[:, None] < scaled.shape[1]
            kept &= values >= values.gather(1, last).where(cut, _OFF)
        if self.top_p is not None:
            left = values.where(kept, _OFF)
            uncut = self._uncut(scaled.shape[1])
            sure = uncut | (values[:, -1] < _least(values, kept)[:, 0])  # else the norm lacks something
            norm = left.logsumexp(-1, keepdim=True)
            if bool(uncut.any()):
                norm = torch.where(uncut[:, None], scaled.logsumexp(-1, keepdim=True), norm)
            kept &= _head(left, norm, self.top_p)
        floor = _least(values, kept)
        noisy = values.masked_fill(values < floor, _OFF) + gumbel(self.seeds, lengths, ids)
        tokens = ids.gather(1, noisy.argmax(-1, keepdim=True))[:, 0]
        return tokens, sure & (values[:, -1] < floor[:, 0])

    def _uncut(self, vocabulary: int) -> Tensor:
        """[S] which rows have min-p and top-k off, so that top-p looks at all tokens."""
        off = torch.ones_like(self.seeds, dtype=torch.bool)
        if self.min_p is not None:
            off &= self.min_p == 0
        if self.top_k is not None:
            off &= self.top_k >= vocabulary
        return off

    def _filter(self, logits: Tensor) -> Tensor:
        """[S, V]: -inf where min-p, top-k or top-p leave a token out. `logits` [S, V] are lost.

        Each cut is a threshold on the logit, so equal logits stay or go together, whatever order a sort gives
        them.
        """
        if self.min_p is not None:
            floor = logits.amax(-1, keepdim=True) + self.min_p.log()[:, None]
            logits = logits.masked_fill_(logits < floor, _OFF)
        if self.top_k is None and self.top_p is None:
            return logits
        ordered = logits.topk(self.most, dim=-1).values
        if self.top_k is not None:
            last = (self.top_k - 1)[:, None]
            floor = ordered.gather(1, last).where(self.top_k[:, None] < logits.shape[1], _OFF)
            logits = logits.masked_fill_(logits < floor, _OFF)
            ordered = ordered.masked_fill_(ordered < floor, _OFF)
        if self.top_p is not None:
            logits = _cut_tail(logits, ordered, self.top_p)
        return logits


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[S, M] the `count` largest of each row, the largest first, and their places.

    As `topk`, found in the blocks with the largest maxima: whatever is left out is not larger than the last.
    """
    rows, vocabulary = logits.shape
    block = next((b for b in (64, 32, 16, 8) if vocabulary % b == 0), 0)
    if not block or vocabulary // block <= count:
        values, places = logits.topk(count, dim=-1)
        return values, places
    blocks = logits.view(rows, -1, block)
    chosen = blocks.amax(-1).topk(count, dim=-1).indices
    values, inside = blocks.gather(1, chosen[:, :, None].expand(-1, -1, block)).flatten(1).topk(count, dim=-1)
    return values, chosen.gather(1, inside // block) * block + inside % block


def _any_token(params: SamplingParams) -> bool:
    """Whether any token may be drawn."""
    return params.top_k < 1 and params.top_p >= 1.0 and not params.min_p


def _width(params: SamplingParams, vocabulary: int, device: torch.device) -> int:
    """How many likeliest tokens a row's own settings ask to look at."""
    if device.type != "cpu" or _any_token(params):
        return vocabulary
    if 0 < params.top_k < _FEW * 3 // 4:
        return min(_FEW, vocabulary)
    return min(_MANY, vocabulary)


def _cut_tail(logits: Tensor, ordered: Tensor, top_p: Tensor) -> Tensor:
    """Keep the likeliest tokens until their probabilities reach `top_p`, the one that reaches it included.

    `ordered` are the largest of `logits`, descending: at least all those that are not -inf. The normaliser is
    taken over all of `logits`, so that it does not depend on how many were ordered for a neighbour's sake.
    """
    kept = _head(ordered, logits.logsumexp(-1, keepdim=True), top_p)
    return logits.masked_fill_(logits < _least(ordered, kept), _OFF)


def _head(ordered: Tensor, norm: Tensor, top_p: Tensor) -> Tensor:
    """Which of `ordered` [S, M], the largest first, are needed to reach `top_p`; the first one always is."""
    shares = (ordered - norm).exp()
    before = shares.cumsum(-1) - shares  # what likelier tokens hold already
    kept = (before < top_p[:, None]) | (top_p[:, None] >= 1.0)
    kept[:, 0] = True
    return kept


def _least(values: Tensor, kept: Tensor) -> Tensor:
    """[S, 1] the least of those that are kept."""
    return values.where(kept, float("inf")).amin(-1, keepdim=True)
