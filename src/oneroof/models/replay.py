"""A decoder's layers over one cache, recorded once by the backend that serves the ops and run again as one
call.

For few tokens the Python between kernels takes longer than many of them. Letters: T tokens, S sequences, D
model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from oneroof.batch import Batch, Paging
from oneroof.layers.rope import Angles
from oneroof.ops import Recorder, Recording, recorder
from oneroof.pages import KVCache

ROWS = 256  # tokens: from there on, a kernel takes long beside what is between two of them
_NOTE = "replay"


class Layers(Protocol):
    """The part of a decoder that is recorded."""

    def layers(self, x_TD: Tensor, batch: Batch, angles: Angles, cache: KVCache | None) -> Tensor:
        """[T, D] -> [T, D]."""


class _Kept(NamedTuple):
    """A recording, or that there can be none, and of what and by whom it is."""

    model: Layers
    recorder: Recorder
    interleaved: bool
    scaled: bool
    recording: Recording | None


def replay(model: Layers, x_TD: Tensor, batch: Batch, angles: Angles, cache: KVCache) -> Tensor | None:
    """``model.layers(...)``, to the bit; None where it is to be called instead.

    The first call makes the recording and keeps it with the cache. It reads the weights where they were then:
    who puts other tensors in their places needs a new cache.
    """
    record = recorder()
    if record is None or batch.paging is None or x_TD.shape[0] > ROWS or not x_TD.is_cpu:
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    kept = cache.notes.get(_NOTE)
    facts = (model, record, angles.interleaved, angles.query_scale is not None)
    if not isinstance(kept, _Kept) or any(a is not b for a, b in zip(kept, facts, strict=False)):
        kept = _Kept(*facts, _recording(record, model.layers, x_TD, batch, angles, cache))
        cache.notes[_NOTE] = kept
    if kept.recording is None:
        return None
    inputs = [None if t is None else t.contiguous() for t in _inputs(x_TD, batch, angles)]
    sequences, width = batch.paging.table.shape
    return kept.recording.run(inputs, x_TD.shape[0], sequences, width)


def _inputs(x_TD: Tensor, batch: Batch, angles: Angles) -> tuple[Tensor | None, ...]:
    assert batch.paging is not None
    where = (batch.positions, batch.bounds, batch.lengths, batch.paging.slots, batch.paging.table)
    return (x_TD, *where, angles.cos, angles.sin, angles.query_scale)


def _recording(
    record: Recorder,
    layers: Callable[[Tensor, Batch, Angles, KVCache], Tensor],
    x_TD: Tensor,
    batch: Batch,
    angles: Angles,
    cache: KVCache,
) -> Recording | None:
    """Of a batch of `ROWS` sequences with a token each, which holds no numbers."""

    def like(t: Tensor, rows: int = ROWS) -> Tensor:
        return torch.empty((rows, *t.shape[1:]), dtype=t.dtype)

    assert batch.paging is not None
    table = torch.empty((ROWS, 1), dtype=batch.paging.table.dtype)
    paging = Paging(table=table, slots=like(batch.paging.slots), page_size=batch.paging.page_size)
    made = Batch(
        tokens=like(batch.tokens),
        positions=like(batch.positions),
        bounds=like(batch.bounds, ROWS + 1),
        lengths=like(batch.lengths),
        counts=(1,) * ROWS,
        starts=(1,) * ROWS,
        paging=paging,
    )
    scale = angles.query_scale
    turned = Angles(
        like(angles.cos), like(angles.sin), angles.interleaved, None if scale is None else like(scale)
    )
    x = like(x_TD)
    return record(lambda: layers(x, made, turned, cache), _inputs(x, made, turned), ROWS, ROWS)
