"""Rows of the contiguous cache: joining, advancing, leaving; every row stays one page, and no gap is left."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneroof.engine.slots import Slots
from oneroof.pages import KVCache, allocate

WIDTH = 12


def _cache(pages: int) -> KVCache:
    return allocate(
        depth=2, pages=pages, page_size=WIDTH, kv_heads=1, head_dim=2, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip


def _slots(pages: int) -> Slots:
    return Slots(_cache(pages), torch.device("cpu"), history=True)


def _write(slots: Slots, batch_slots: torch.Tensor, values: list[float]) -> None:
    """What the model would write: here each sequence's name at the places that are its own."""
    for layer in slots.cache.layers:
        layer.keys.flatten(0, 1)[batch_slots] = torch.tensor(values)[:, None, None]


def test_prompts_take_the_next_pages() -> None:
    slots = _slots(3)
    batch = slots.prompts([[1, 2, 3], [4]], [1.0, 1.0])
    assert batch.paging is not None and batch.paging.first_page == 0
    assert batch.paging.slots.tolist() == [0, 1, 2, WIDTH]
    slots.join(batch, torch.tensor([7, 8]), [1.0, 1.0])
    assert len(slots) == 2 and slots.room == 1
    step = slots.batch()
    assert step.tokens.tolist() == [7, 8] and step.positions.tolist() == [3, 1]
    assert step.lengths.tolist() == [4, 2] and step.longest == 4 and step.counts == (1, 1)
    assert step.paging is not None and step.paging.slots.tolist() == [3, WIDTH + 1]


def test_a_row_beyond_the_end_moves_into_the_hole_with_its_keys() -> None:
    slots = _slots(2)
    batch = slots.prompts([[1], [2, 3]], [1.0, 2.0])
    assert batch.paging is not None
    _write(slots, batch.paging.slots, [10.0, 20.0, 20.0])
    slots.join(batch, torch.tensor([5, 6]), [1.0, 2.0])
    slots.keep([1])
    step = slots.batch()
    assert step.tokens.tolist() == [6] and step.positions.tolist() == [2]
    assert step.paging is not None and step.paging.slots.tolist() == [2]
    assert slots.cache.layers[1].keys[0, :2].flatten().tolist() == [20.0] * 4
    assert step.alphas is not None and step.alphas.tolist() == [2.0]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_each_sequence_finds_its_own_keys_whatever_comes_and_goes(data: st.DataObject) -> None:
    slots, names, lengths, given_names = _slots(4), [], [], 0
    for _ in range(8):
        if slots.room and data.draw(st.booleans()):
            prompts = data.draw(
                st.lists(st.lists(st.just(1), min_size=1, max_size=3), min_size=1, max_size=slots.room)
            )
            new = [float(given_names + i + 1) for i in range(len(prompts))]
            given_names += len(prompts)
            batch = slots.prompts(prompts, [1.0] * len(prompts))
            assert batch.paging is not None
            _write(slots, batch.paging.slots, [n for n, p in zip(new, prompts, strict=True) for _ in p])
            slots.join(batch, torch.ones(len(prompts), dtype=torch.long), [1.0] * len(prompts))
            names, lengths = [*names, *new], [*lengths, *map(len, prompts)]
        elif names and max(lengths) < WIDTH - 1:
            batch = slots.batch()
            assert batch.paging is not None
            _write(slots, batch.paging.slots, names)
            slots.advance(torch.ones(len(names), dtype=torch.long))
            lengths = [n + 1 for n in lengths]
        if names and data.draw(st.booleans()):
            gone = data.draw(st.integers(0, len(names) - 1))
            rows = [r if r != gone else len(names) - 1 for r in range(len(names) - 1)]
            slots.keep(rows)
            names, lengths = [names[r] for r in rows], [lengths[r] for r in rows]
        for row, (name, length) in enumerate(zip(names, lengths, strict=True)):
            assert (slots.cache.layers[0].keys[row, :length] == name).all()


def test_a_cleared_row_holds_nothing() -> None:
    slots = _slots(1)
    slots.cache.layers[0].keys.fill_(float("nan"))
    slots.clear(0)
    assert not slots.cache.layers[0].keys.any()
