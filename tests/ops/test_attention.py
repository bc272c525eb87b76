"""Attention over packed, cached and windowed batches, against the sum written out for one query at a time."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneroof.batch import Batch, Paging, pack
from oneroof.ops import attention
from oneroof.pages import allocate

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def plain(q: Tensor, keys: Tensor, values: Tensor, position: int, window: int, causal: bool) -> Tensor:
    """One query [H, d] over one sequence's keys [L, K, d]."""
    first = max(0, position - window + 1) if window else 0
    last = position + 1 if causal else keys.shape[0]
    rows = []
    for head in range(HEADS):
        kv = head // (HEADS // KV_HEADS)
        scores = keys[first:last, kv] @ q[head] / math.sqrt(HEAD_DIM)
        rows.append(scores.softmax(0) @ values[first:last, kv])
    return torch.stack(rows)


def draw(rows: int, heads: int, seed: int) -> Tensor:
    return torch.randn(rows, heads, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("counts", [(5,), (4, 4), (7, 2, 5), (1, 1), (20, 1, 1, 1)])
def test_uncached(counts: tuple[int, ...], window: int, causal: bool) -> None:
    batch = pack([[0] * n for n in counts])
    q, k, v = draw(sum(counts), HEADS, 1), draw(sum(counts), KV_HEADS, 2), draw(sum(counts), KV_HEADS, 3)
    out = attention(q, k, v, batch, None, window, causal)
    row = 0
    for ks, vs in zip(k.split(counts), v.split(counts), strict=True):
        for position in range(ks.shape[0]):
            expected = plain(q[row], ks, vs, position, window, causal)
            torch.testing.assert_close(out[row], expected, rtol=1e-5, atol=1e-6)
            row += 1


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.lists(st.integers(1, 5), min_size=3, max_size=3), min_size=1, max_size=4),
    page_size=st.sampled_from([1, 2, 4, 32]),
    window=st.sampled_from([0, 2, 6]),
    order=st.permutations(range(3)),
)
def test_cached_steps_equal_the_whole(
    steps: list[list[int]], page_size: int, window: int, order: list[int]
) -> None:
    """Three sequences grow by different counts a step through scattered pages; freed places hold NaN."""
    totals = [sum(step[s] for step in steps) for s in range(3)]
    pages = -(-max(totals) // page_size)
    cache = allocate(
        depth=1,
        pages=3 * pages + 1,
        page_size=page_size,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    ).layers[0]
    table = torch.arange(1, 3 * pages + 1).view(pages, 3).T[order].contiguous()
    contiguous = page_size == 32 and order == [0, 1, 2]  # read without gathering: what is stale is a number
    for pool in (cache.keys, cache.values):
        pool[1:] = 9.0 if contiguous else torch.nan
    data = [
        (draw(n, HEADS, s), draw(n, KV_HEADS, s + 9), draw(n, KV_HEADS, s + 99)) for s, n in enumerate(totals)
    ]
    done = [0, 0, 0]
    for step in steps:
        batch = _step(done, step, table, page_size, 1 if contiguous else -1)
        q, k, v = (torch.cat([data[s][i][done[s] : done[s] + step[s]] for s in range(3)]) for i in range(3))
        out = attention(q, k, v, batch, cache, window, True).split(tuple(step))
        for s in range(3):
            for i in range(step[s]):
                position = done[s] + i
                expected = plain(data[s][0][position], data[s][1], data[s][2], position, window, True)
                torch.testing.assert_close(out[s][i], expected, rtol=1e-5, atol=1e-6)
        done = [a + b for a, b in zip(done, step, strict=True)]


def _step(done: list[int], step: list[int], table: Tensor, page_size: int, first_page: int) -> Batch:
    batch = pack([[0] * n for n in step])
    starts = torch.tensor(done)
    positions = batch.positions + starts.repeat_interleave(torch.tensor(step))
    owner = torch.arange(3).repeat_interleave(torch.tensor(step))
    slots = table[owner, positions // page_size] * page_size + positions % page_size
    lengths = starts + torch.tensor(step)
    return replace(
        batch,
        positions=positions,
        lengths=lengths,
        starts=tuple(done),
        paging=Paging(table=table, slots=slots, page_size=page_size, first_page=first_page),
    )


def test_contiguous_pages_are_read_in_place() -> None:
    """`first_page` and the gathered table give the same result."""
    pool = allocate(
        depth=1,
        pages=4,
        page_size=16,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    ).layers[0]
    pool.keys.normal_(), pool.values.normal_()
    table = torch.tensor([[1], [2]])
    base = _decode_batch(table, 16)
    q, k, v = draw(2, HEADS, 1), draw(2, KV_HEADS, 2), draw(2, KV_HEADS, 3)
    gathered = attention(q, k, v, base, pool, 0, True)
    assert base.paging is not None
    view = attention(q, k, v, replace(base, paging=replace(base.paging, first_page=1)), pool, 0, True)
    torch.testing.assert_close(view, gathered)


def _decode_batch(table: Tensor, page_size: int) -> Batch:
    positions = torch.tensor([9, 4])
    return replace(
        pack([[0], [0]]),
        positions=positions,
        lengths=positions + 1,
        starts=tuple(positions.tolist()),
        paging=Paging(table=table, slots=table[:, 0] * page_size + positions, page_size=page_size),
    )


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("large", [False, True])  # copies are made sequence by sequence
def test_short_sequences_beside_long_ones_are_problems_of_their_own(
    window: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(sys.modules["oneroof.ops.attention"], "_GATHERED", 0)
    lengths, size = [3, 200, 300, 310, 900], 16
    pages = [-(-n // size) for n in lengths]
    cache = allocate(
        depth=1,
        pages=sum(pages) + 1,
        page_size=size,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    ).layers[0]
    for pool in (cache.keys, cache.values):
        pool[1:] = torch.nan
    table = torch.zeros(len(lengths), max(pages), dtype=torch.int64)
    first = 1
    for row, count in enumerate(pages):
        table[row, :count] = torch.arange(first, first + count)
        first += count
    data = [(draw(1, HEADS, n), draw(n, KV_HEADS, n + 1), draw(n, KV_HEADS, n + 2)) for n in lengths]
    for row, (_, k, v) in enumerate(data):
        places = torch.arange(lengths[row] - 1)
        slots = table[row, places // size] * size + places % size
        cache.keys.flatten(0, 1)[slots], cache.values.flatten(0, 1)[slots] = k[:-1], v[:-1]
    positions = torch.tensor(lengths) - 1
    batch = replace(
        pack([[0]] * len(lengths)),
        positions=positions,
        lengths=positions + 1,
        starts=tuple(positions.tolist()),
        paging=Paging(
            table=table,
            slots=table[torch.arange(len(lengths)), positions // size] * size + positions % size,
            page_size=size,
        ),
    )
    assert [(g.sequences.start, g.sequences.stop) for g in batch.groups] == [(0, 2), (2, 4), (4, 5)]
    q, k, v = torch.cat([d[0] for d in data]), *(torch.stack([d[i][-1] for d in data]) for i in (1, 2))
    out = attention(q, k, v, batch, cache, window, True)
    for row, (query, keys, values) in enumerate(data):
        expected = plain(query[0], keys, values, lengths[row] - 1, window, True)
        torch.testing.assert_close(out[row], expected, rtol=1e-5, atol=1e-6)
