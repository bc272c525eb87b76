"""The one input of every forward: tokens of many sequences laid end to end, with no padding and no global
context.

Training packs documents as the engine packs requests. Letters: T tokens in the batch, S sequences, N pages a
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

_SHORT = 255  # keys: below, all sequences count as equally long


@dataclass(frozen=True, kw_only=True)
class Paging:
    """Where a batch's keys and values lie in the cache's pools.

    Page 0 is nobody's and holds numbers: what is read where there is nothing to read is its first slot.
    """

    table: Tensor  # [S, N] int64: the pages of each sequence, in order of position; 0 past its end
    slots: Tensor  # [T] int64: page * page_size + offset, where each token's key and value are written
    page_size: int
    first_page: int = -1
    """A contiguous cache: the table is [[first], [first + 1], ...], which is read without gathering. What
    such a page holds past its sequence's end must be numbers; it is masked. -1 for any other table."""


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of a batch, whose attention is one problem."""

    sequences: slice
    rows: slice
    longest: int  # keys of the longest
    even: bool  # all are as long
    fresh: bool  # they have no keys from before this batch
    slots: (
        Tensor | None
    )  # [G, longest] where their keys lie in the pools, 0 past a sequence's end; None: fresh


@dataclass(frozen=True, kw_only=True)
class Batch:
    """S sequences end to end. Sequence s owns rows ``bounds[s]:bounds[s + 1]``, which are its newest tokens.

    Its row r stands at ``positions[r]`` and, in a causal model, sees keys ``0..positions[r]``: those already
    in the cache and those of this batch. Without `paging` nothing is cached and every sequence begins in this
    batch.
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    bounds: Tensor  # [S + 1] int32
    lengths: Tensor  # [S] int64: keys each sequence has once this batch is written
    counts: tuple[int, ...]  # bounds[s + 1] - bounds[s], on the host
    starts: tuple[int, ...]  # keys each sequence has from before this batch, on the host
    paging: Paging | None
    alphas: Tensor | None = None  # [T] float32: NTK stretch of each token's sequence; None = 1 everywhere

    @cached_property
    def longest(self) -> int:
        """Keys of the longest sequence, those of this batch included."""
        return max(s + n for s, n in zip(self.starts, self.counts, strict=True))

    @cached_property
    def fresh(self) -> bool:
        """No sequence has keys from before this batch."""
        return not any(self.starts)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Of a paged batch: neighbours with a single row that are about as long together, each other alone.

        To read short sequences beside a long one costs as much as if they were long.
        """
        cuts: list[int] = []  # where groups begin
        last = 0
        for sequence, (start, count) in enumerate(zip(self.starts, self.counts, strict=True)):
            kind = max(start + count, _SHORT).bit_length() if count == 1 else -sequence
            if not cuts or kind != last or count > 1:
                cuts.append(sequence)
            last = kind
        ends = [*cuts[1:], len(self.counts)]
        rows = [0, *accumulate(sum(self.counts[a:b]) for a, b in zip(cuts, ends, strict=True))]
        return tuple(self._group(a, b, row) for a, b, row in zip(cuts, ends, rows[:-1], strict=True))

    def _group(self, first: int, end: int, row: int) -> Group:
        lengths = [s + n for s, n in zip(self.starts[first:end], self.counts[first:end], strict=True)]
        longest, rows = max(lengths), slice(row, row + sum(self.counts[first:end]))
        fresh = not any(self.starts[first:end])
        slots = None
        if not fresh:
            assert self.paging is not None
            places = torch.arange(longest, device=self.tokens.device)
            size = self.paging.page_size
            slots = self.paging.table[first:end].index_select(1, places // size) * size + places % size
            if min(lengths) < longest:
                slots = slots.where(places < self.lengths[first:end, None], 0)
        return Group(slice(first, end), rows, longest, min(lengths) == longest, fresh, slots)

    @cached_property
    def notes(self) -> dict[str, object]:
        """What a backend keeps about this batch from layer to layer, by a name of its own; empty at first."""
        return {}

    @property
    def last_rows(self) -> Tensor:
        """[S] the row of each sequence's newest token."""
        return self.bounds[1:].long() - 1

    @cached_property
    def padded_rows(self) -> Tensor:
        """[S, max(counts)] each padded place's row; past a sequence's end, its own first row."""
        columns = torch.arange(max(self.counts), device=self.bounds.device)
        starts, counts = self.bounds[:-1].long()[:, None], self.bounds.diff().long()[:, None]
        return starts + torch.where(columns < counts, columns, 0)

    @cached_property
    def packed_places(self) -> Tensor:
        """[T] the place of each row in the padded batch, its sequences end to end: the way back."""
        counts = self.bounds.diff().long()
        longest = max(self.counts)
        gaps = torch.arange(len(self.counts), device=counts.device) * longest - self.bounds[:-1].long()
        return torch.arange(self.tokens.shape[0], device=counts.device) + gaps.repeat_interleave(counts)


def pack(
    sequences: Sequence[Sequence[int]],
    *,
    alphas: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """Whole sequences, uncached: what training, embeddings and `Loaded.logits` feed the model.

    `alphas` gives one NTK stretch a sequence. Raises `ValueError` on an empty batch or sequence.
    """
    counts = tuple(len(s) for s in sequences)
    if not counts or min(counts) == 0:
        raise ValueError(f"a batch needs sequences of at least one token, got lengths {list(counts)[:8]}")
    flat = torch.tensor([t for s in sequences for t in s], dtype=torch.long)
    lengths = torch.tensor(counts, dtype=torch.long)
    bounds = torch.zeros(len(counts) + 1, dtype=torch.int32)
    bounds[1:] = lengths.cumsum(0)
    positions = torch.arange(len(flat)) - torch.repeat_interleave(bounds[:-1].long(), lengths)
    stretched = (
        None if alphas is None else torch.tensor(alphas, dtype=torch.float32).repeat_interleave(lengths)
    )
    return Batch(
        tokens=flat.to(device),
        positions=positions.to(device),
        bounds=bounds.to(device),
        lengths=lengths.to(device),
        counts=counts,
        starts=(0,) * len(counts),
        paging=None,
        alphas=None if stretched is None else stretched.to(device),
    )
