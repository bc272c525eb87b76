"""From a step of the scheduler to the `Batch` that the model reads: one buffer on the host, one transfer.

Parts with a single row come first: their attention is one problem. Letters: T tokens, S sequences, N pages a
row.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from oneroof.batch import Batch, Paging
from oneroof.device import upload
from oneroof.engine.scheduler import Part

_UNKNOWN = -1  # a token that was chosen in flight and is on the device alone


def ordered(parts: Listed[Part]) -> list[Part]:
    """`parts` in the order in which `assemble` wants them: single rows first, of short sequences first."""
    singles = sorted((p for p in parts if p.count == 1), key=lambda p: p.end)
    return singles + [p for p in parts if p.count > 1]


def assemble(parts: Listed[Part], *, page_size: int, latest: Tensor | None, device: torch.device) -> Batch:
    """The batch of `parts`, which are `ordered`. `latest` [lanes] int64: the newest token of each lane."""
    counts, starts = tuple(p.count for p in parts), tuple(p.start for p in parts)
    rows, sequences = sum(counts), len(parts)
    width = max(-(-p.end // page_size) for p in parts)
    sizes = (rows, rows, rows, sequences + 1, sequences, sequences * width)
    buffer = np.zeros(sum(sizes), dtype=np.int64)
    ends = accumulate(sizes)
    tokens, positions, slots, bounds, lengths, flat = (
        buffer[end - size : end] for size, end in zip(sizes, ends, strict=True)
    )
    table = flat.reshape(sequences, width)
    bounds[1:] = list(accumulate(counts))
    row = 0
    for i, part in enumerate(parts):
        sequence, end = part.sequence, row + part.count
        pages = np.array(
            sequence.pages[:width]
        )  # a view would keep them from growing for as long as it lives
        table[i, : len(pages)] = pages
        lengths[i] = part.end
        if part.count == 1:
            page, offset = divmod(part.start, page_size)
            known = part.start < len(sequence.tokens)
            tokens[row] = sequence.tokens[part.start] if known else _UNKNOWN
            positions[row], slots[row] = part.start, pages[page] * page_size + offset
        else:
            places = np.arange(part.start, part.end)
            tokens[row : end - len(part.drafts)] = sequence.tokens[part.start : part.end - len(part.drafts)]
            tokens[end - len(part.drafts) : end] = part.drafts
            positions[row:end] = places
            slots[row:end] = pages[places // page_size] * page_size + places % page_size
        row = end
    lanes = [p.sequence.lane for p in parts] if latest is not None and tokens.min() < 0 else None
    placed = upload(buffer, device).split(sizes)
    read = placed[0]
    if lanes is not None and latest is not None:
        read = read.where(read >= 0, latest[upload(np.repeat(lanes, counts), device)])
    return Batch(
        tokens=read,
        positions=placed[1],
        bounds=placed[3].to(torch.int32),
        lengths=placed[4],
        counts=counts,
        starts=starts,
        paging=Paging(table=placed[5].view(sequences, width), slots=placed[2], page_size=page_size),
        alphas=_alphas(parts, counts, device),
    )


def _alphas(parts: Listed[Part], counts: Listed[int], device: torch.device) -> Tensor | None:
    if all(p.sequence.alpha == 1.0 for p in parts):
        return None
    each = [p.sequence.alpha for p, count in zip(parts, counts, strict=True) for _ in range(count)]
    return torch.tensor(each, dtype=torch.float32, device=device)
