"""Attention by the native kernel: near the reference, and to the bit the same however a text is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import threads, with_kernels
from torch import Tensor

from oneroof import ops
from oneroof.batch import Batch, Paging, pack
from oneroof.ops.cpu.attention import attention
from oneroof.pages import Kind, LayerCache, allocate

pytestmark = [with_kernels, pytest.mark.usefixtures("variant")]

TOLERANCE = {
    torch.float32: 5e-6,
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}  # half a unit at 4, and float32's
Steps = Sequence[Sequence[int]]  # how many rows each sequence gets, step by step


@dataclass(frozen=True)
class Shape:
    kv_heads: int
    group: int
    dim: int
    dtype: torch.dtype = torch.float32
    kind: Kind = "float"
    window: int = 0
    page_size: int = 16


@dataclass(frozen=True)
class Texts:
    """What several sequences have, row by row."""

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]

    @staticmethod
    def draw(shape: Shape, lengths: Sequence[int], seed: int = 0) -> Texts:
        torch.manual_seed(seed)
        heads = (shape.kv_heads * shape.group, shape.kv_heads, shape.kv_heads)
        parts = [[torch.randn(n, h, shape.dim).to(shape.dtype) for n in lengths] for h in heads]
        return Texts(*parts)

    def rows(self, done: Sequence[int], step: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        cut = [slice(a, a + n) for a, n in zip(done, step, strict=True)]
        q, k, v = (
            torch.cat([x[c] for x, c in zip(part, cut, strict=True)])
            for part in (self.queries, self.keys, self.values)
        )
        return q, k, v


def poisoned(shape: Shape, pages: int) -> LayerCache:
    cache = allocate(
        depth=1,
        pages=pages,
        page_size=shape.page_size,
        kv_heads=shape.kv_heads,
        head_dim=shape.dim,
        dtype=shape.dtype,
        device=torch.device("cpu"),
        kind=shape.kind,
    )
    cache.fill(slice(1, None), torch.nan)
    return cache.layers[0]


def batch_of(done: Sequence[int], step: Sequence[int], table: Tensor, page_size: int) -> Batch:
    """The next `step` rows of sequences that have `done`; those without rows stay out."""
    live = [s for s, n in enumerate(step) if n]
    counts, starts = torch.tensor([step[s] for s in live]), torch.tensor([done[s] for s in live])
    batch = pack([[0] * step[s] for s in live])
    positions = batch.positions + starts.repeat_interleave(counts)
    owner = torch.tensor(live).repeat_interleave(counts)
    slots = table[owner, positions // page_size] * page_size + positions % page_size
    return replace(
        batch,
        positions=positions,
        lengths=starts + counts,
        starts=tuple(starts.tolist()),
        paging=Paging(table=table[live], slots=slots, page_size=page_size),
    )


def read(texts: Texts, shape: Shape, steps: Steps, *, reference: bool = False) -> list[Tensor]:
    """Each sequence's result, where it came to the cache by `steps`."""
    totals = [sum(step[s] for step in steps) for s in range(len(steps[0]))]
    width = -(-max(totals) // shape.page_size)
    cache = poisoned(shape, len(totals) * width + 1)
    order = torch.randperm(len(totals) * width, generator=torch.Generator().manual_seed(1))
    table = (order + 1).view(len(totals), width)
    done = [0] * len(totals)
    found: list[list[Tensor]] = [[] for _ in totals]
    for step in steps:
        batch = batch_of(done, step, table, shape.page_size)
        one = ops.attention.reference if reference else attention
        out = one(*texts.rows(done, step), batch, cache, shape.window, True)
        assert isinstance(out, Tensor)
        for s, part in enumerate(out.split(list(step))):
            found[s].append(part)
        done = [a + n for a, n in zip(done, step, strict=True)]
    return [torch.cat(parts) for parts in found]


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)


shapes = st.builds(
    Shape,
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 7, 8, 16]),
    dim=st.sampled_from([8, 24, 32, 40, 64, 80, 96, 128, 256]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kind=st.sampled_from(["float", "float", "kv8"]),
    window=st.sampled_from([0, 0, 1, 7, 64, 300]),
    page_size=st.sampled_from([1, 2, 7, 16, 128]),
)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, steps=st.data(), count=st.integers(1, 3))
def test_cached_steps_are_near_the_reference(shape: Shape, steps: st.DataObject, count: int) -> None:
    rows = st.sampled_from([1, 1, 2, 5, 70, 300])
    step = st.lists(rows, min_size=count, max_size=count)
    drawn = steps.draw(st.lists(step, min_size=1, max_size=4))
    texts = Texts.draw(shape, [sum(s[i] for s in drawn) for i in range(count)])
    found = read(texts, shape, drawn)
    expected = read(texts, shape, drawn, reference=True)
    for a, b in zip(found, expected, strict=True):
        close(a, b, shape.dtype)


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes,
    lengths=st.lists(st.sampled_from([1, 3, 17, 64, 65, 130, 600]), min_size=1, max_size=3),
    causal=st.booleans(),
)
def test_uncached_is_near_the_reference(shape: Shape, lengths: list[int], causal: bool) -> None:
    q, k, v = Texts.draw(shape, lengths).rows([0] * len(lengths), lengths)
    batch = pack([[0] * n for n in lengths])
    found = attention(q, k, v, batch, None, shape.window, causal)
    assert isinstance(found, Tensor)
    close(found, ops.attention.reference(q, k, v, batch, None, shape.window, causal), shape.dtype)


@pytest.mark.parametrize("kind", ["float", "kv8"])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("heads", [(2, 7, 64), (1, 16, 40), (8, 2, 128), (3, 1, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_the_bit_however_it_is_cut(
    kind: Kind, window: int, heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """A text of 1,100 rows: whole, in chunks, one by one at its end, among others, by 1, 2 and 3 threads."""
    length, ends = 1100, 1092
    shape = Shape(*heads, dtype=dtype, kind=kind, window=window)
    texts = Texts.draw(shape, [length, 400, 40])
    alone = Texts(texts.queries[:1], texts.keys[:1], texts.values[:1])
    with threads(1):
        expected = read(alone, shape, [[length]])[0]
    steps_of: list[Steps] = [
        [[512], [512], [76]],
        [[1], [63], [200], [828], *[[1]] * 8],
        [[ends], *[[1]] * (length - ends)],
        [[200, 1, 0], [1, 99, 1], [699, 1, 2], [1, 99, 1], [199, 200, 36]],
    ]
    for steps in steps_of:
        for count in (1, 2, 3):
            for size in (16, 7) if count == 2 else (16,):
                with threads(count):
                    given_to = texts if len(steps[0]) == 3 else alone
                    found = read(given_to, replace(shape, page_size=size), steps)[0]
                assert torch.equal(found, expected), (steps[:4], count, size)


def test_a_cache_changes_nothing() -> None:
    shape = Shape(2, 3, 64)
    texts = Texts.draw(shape, [700, 5])
    q, k, v = texts.rows([0, 0], [700, 5])
    direct = attention(q, k, v, pack([[0] * 700, [0] * 5]), None, 0, True)
    assert isinstance(direct, Tensor)
    assert torch.equal(direct, torch.cat(read(texts, shape, [[700, 5]])))


@pytest.mark.parametrize("kind", ["float", "kv8"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["keys", "values"])
def test_what_is_no_number_reaches_those_who_see_it(kind: Kind, bad: float, where: str) -> None:
    """At position 70 of the second kv head, where rows before 70, or 30 after it, do not look."""
    shape = Shape(2, 3, 64, kind=kind, window=30)
    texts = Texts.draw(shape, [200])
    clean = read(texts, shape, [[150], [50]])[0]
    getattr(texts, where)[0][70, 1, 5] = bad
    found = read(texts, shape, [[150], [50]])[0]
    assert found[70:100, 3:, 5].isfinite().logical_not().all() or where == "keys"
    if bad != bad:
        assert found[70:100, 3:, 5].isnan().all()
    rest = torch.ones(200, 6, dtype=torch.bool)
    rest[70:100, 3:] = False
    assert torch.equal(found[rest], clean[rest])


def test_scores_of_infinity_and_rows_apart() -> None:
    """A score of minus infinity has no weight; queries, keys and values may be slices of wider rows."""
    shape = Shape(2, 2, 16)
    wide = torch.randn(90, 8 * 16)
    wide[3, 64] = -torch.inf
    wide[:, 0] = 1.0
    q, k, v = (wide[:, a * 16 : b * 16].view(90, -1, 16) for a, b in ((0, 4), (4, 6), (6, 8)))
    batch = pack([[0] * 40, [0] * 50])
    found = attention(q, k, v, batch, None, 0, False)
    assert isinstance(found, Tensor)
    expected = ops.attention.reference(*(x.contiguous() for x in (q, k, v)), batch, None, 0, False)
    seen = expected.isfinite() & found.isfinite()
    assert seen[40:].all() and seen[:, 2:].all()
    close(found[seen], expected[seen], shape.dtype)


def test_int8_pools_hold_what_the_reference_stores() -> None:
    shape = Shape(2, 1, 24, kind="kv8", page_size=4)
    q, k, v = torch.randn(5, 2, 24), torch.randn(5, 2, 24), torch.randn(5, 2, 24)
    k[0], k[1], v[2], v[3] = 0.0, k[1] * 1e-44, v[2] * 1e30, torch.nan
    batch = batch_of([0], [5], torch.tensor([[2, 1]]), 4)
    ours, theirs = poisoned(shape, 3), poisoned(shape, 3)
    attention(q, k, v, batch, ours, 0, True)
    ops.attention.reference(q, k, v, batch, theirs, 0, True)
    for name in ("keys", "values", "key_scales", "value_scales"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0, equal_nan=True)


def test_what_is_not_served_is_declined() -> None:
    batch = pack([[0, 0]])
    for dtype, dim in ((torch.float64, 16), (torch.float32, 12)):
        x = torch.zeros(2, 1, dim, dtype=dtype)
        assert attention(x, x, x, batch, None, 0, True) is NotImplemented
    x = torch.zeros(2, 1, 16)
    cache = poisoned(Shape(1, 1, 16, dtype=torch.bfloat16), 2)
    paged = batch_of([0], [2], torch.tensor([[1]]), 16)
    assert attention(x, x, x, paged, cache, 0, True) is NotImplemented
    nothing = torch.zeros(0, 1, 16)
    empty = replace(batch, positions=batch.positions[:0], bounds=torch.zeros(2, dtype=torch.int32))
    assert attention(nothing, nothing, nothing, empty, None, 0, True).shape == (0, 1, 16)
