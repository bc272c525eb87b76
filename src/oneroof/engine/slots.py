"""The running sequences of a contiguous cache: sequence r is row r of every tensor and page r of the pools.

Rows have no gaps: when one leaves, the last moves into its place, so that a step is always one packed call
that reads the pools without gathering. Letters: A running rows, T tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from oneroof.batch import Batch, Paging, pack
from oneroof.pages import KVCache


class Slots:
    """State of A sequences between steps. Each has one token that was chosen and not yet read."""

    def __init__(self, cache: KVCache, device: torch.device, *, history: bool) -> None:
        """As many sequences as `cache` has pages; `history` keeps every row's tokens, for penalties."""
        self.cache = cache
        cache.fill(slice(None), 0.0)  # what is masked must be numbers
        self._pools = [  # a row of each belongs to a sequence
            pool
            for layer in cache.layers
            for pool in (layer.keys, layer.values, layer.key_scales, layer.value_scales)
            if pool is not None
        ]
        self._device = device
        self._pages, self._width = cache.layers[0].keys.shape[:2]
        self._history = (
            torch.zeros(self._pages, self._width + 1, dtype=torch.int64, device=device) if history else None
        )
        self._lengths: list[int] = []  # keys of each row once its waiting token is read, on the host
        self._alphas: list[float] = []
        self._tokens = torch.empty(0, dtype=torch.int64, device=device)
        self._state = torch.empty(3, 0, dtype=torch.int64, device=device)  # positions, lengths, slots
        self._arrange()

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def room(self) -> int:
        """Sequences that can still join."""
        return self._pages - len(self)

    def prompts(self, prompts: Sequence[Sequence[int]], alphas: Sequence[float]) -> Batch:
        """The packed prompts of the next rows, one each; they `join` once their first tokens are known."""
        first = len(self)
        batch = pack(prompts, alphas=alphas if _stretched(alphas) else None, device=self._device)
        rows = torch.arange(first, first + len(prompts), device=self._device)
        owners = torch.repeat_interleave(rows, batch.lengths)
        if self._history is not None:
            self._history[owners, batch.positions] = batch.tokens
        slots = owners * self._width + batch.positions
        return replace(
            batch, paging=Paging(table=rows[:, None], slots=slots, page_size=self._width, first_page=first)
        )

    def join(self, batch: Batch, tokens: Tensor, alphas: Sequence[float]) -> None:
        """The rows of `batch`, made by `prompts`, run from here on; `tokens` [T] are the first they chose."""
        assert batch.paging is not None
        pages = batch.paging.table[:, 0] * self._width
        state = torch.stack([batch.lengths, batch.lengths + 1, pages + batch.lengths])
        self._state = torch.cat([self._state, state], dim=1)
        self._tokens = torch.cat([self._tokens, tokens])
        self._lengths += [n + 1 for n in batch.counts]
        self._alphas += alphas
        self._arrange()
        self._write_history()

    def batch(self) -> Batch:
        """Every row's waiting token, to be read by the model."""
        positions, lengths, slots = self._rows
        return Batch(
            tokens=self._tokens,
            positions=positions,
            bounds=self._bounds,
            lengths=lengths,
            counts=self._counts,
            starts=tuple(n - 1 for n in self._lengths),
            paging=Paging(table=self._table, slots=slots, page_size=self._width, first_page=0),
            alphas=self._stretch,
        )

    def advance(self, tokens: Tensor) -> None:
        """Each row has read its token and chosen the next: `tokens` [A]."""
        self._tokens = tokens
        self._state += 1
        self._lengths = [n + 1 for n in self._lengths]
        self._write_history()

    def keep(self, rows: Sequence[int]) -> None:
        """Row i is what row ``rows[i]`` was; the others have left. Only rows beyond the end may move."""
        for new, old in enumerate(rows):
            if new == old:
                continue
            assert old >= len(rows)
            used = self._lengths[old]
            for pool in self._pools:
                pool[new, :used] = pool[old, :used]
            if self._history is not None:
                self._history[new] = self._history[old]
        chosen = torch.tensor(rows, dtype=torch.int64, device=self._device)
        self._tokens, self._state = self._tokens[chosen], self._state[:, chosen]
        self._state[2] = torch.arange(len(rows), device=self._device) * self._width + self._state[0]
        self._lengths = [self._lengths[r] for r in rows]
        self._alphas = [self._alphas[r] for r in rows]
        self._arrange()

    def clear(self, row: int) -> None:
        """Zero a row's keys and values: what is no number must not outlive its sequence, even masked."""
        for pool in self._pools:
            pool[row] = 0

    def history(self, first: int, lengths: Sequence[int]) -> Tensor | None:
        """[R, L] the tokens of R rows from `first` on, which have `lengths`; None where not kept."""
        return None if self._history is None else self._history[first : first + len(lengths), : max(lengths)]

    def _arrange(self) -> None:
        """What stays the same from step to step while no row comes or goes."""
        count = len(self)
        self._rows = self._state.unbind()  # views: advancing the state advances them
        self._bounds = torch.arange(count + 1, dtype=torch.int32, device=self._device)
        self._counts = (1,) * count
        self._table = torch.arange(count, device=self._device)[:, None]
        stretch = torch.tensor(self._alphas, dtype=torch.float32, device=self._device)
        self._stretch = stretch if _stretched(self._alphas) else None

    def _write_history(self) -> None:
        if self._history is not None:
            self._history[self._table[:, 0], self._rows[0]] = self._tokens


def _stretched(alphas: Sequence[float]) -> bool:
    return any(alpha != 1.0 for alpha in alphas)
