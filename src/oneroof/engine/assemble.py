"""From a step of the scheduler to the `Batch` that the model reads: one sheet of numbers on the host, one
transfer.

Parts with a single row come first: their attention is one problem. Letters: T tokens, S sequences, N pages a
row.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from oneroof.batch import Batch, Paging
from oneroof.device import Int64s, upload
from oneroof.engine.scheduler import Part

_UNKNOWN = -1  # a token that was chosen in flight and is on the device alone


@dataclass(frozen=True)
class Sheet:
    """A batch as numbers: tokens [T], positions [T], slots [T], bounds [S + 1], lengths [S], pages [S, N]."""

    numbers: Int64s
    counts: tuple[int, ...]
    width: int  # N
    alphas: list[float] | None = None  # one a sequence

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of its parts."""
        rows, sequences = sum(self.counts), len(self.counts)
        return rows, rows, rows, sequences + 1, sequences, sequences * self.width

    @property
    def unknown(self) -> bool:
        """Some token is on the device alone."""
        return bool(self.parts()[0].min() < 0)

    def parts(self) -> list[Int64s]:
        """Views of them."""
        ends = accumulate(self.sizes)
        return [self.numbers[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def batch(
        self,
        *,
        page_size: int,
        device: torch.device,
        latest: Tensor | None = None,
        lanes: Listed[int] | None = None,
    ) -> Batch:
        """On `device`. A token that is not known is `latest`'s of its sequence's lane."""
        lengths = self.parts()[4]
        placed = upload(self.numbers, device).split(self.sizes)
        read = placed[0]
        if lanes is not None and latest is not None:
            read = read.where(read >= 0, latest[upload(np.repeat(lanes, self.counts), device)])
        stretched = None
        if self.alphas is not None:
            each = [alpha for alpha, n in zip(self.alphas, self.counts, strict=True) for _ in range(n)]
            stretched = torch.tensor(each, dtype=torch.float32, device=device)
        return Batch(
            tokens=read,
            positions=placed[1],
            bounds=placed[3].to(torch.int32),
            lengths=placed[4],
            counts=self.counts,
            starts=tuple(int(n) - c for n, c in zip(lengths.tolist(), self.counts, strict=True)),
            paging=Paging(
                table=placed[5].view(len(self.counts), self.width), slots=placed[2], page_size=page_size
            ),
            alphas=stretched,
        )


def ordered(parts: Listed[Part]) -> list[Part]:
    """`parts` in the order in which `write_sheet` wants them: single rows first, of short sequences first."""
    singles = sorted((p for p in parts if p.count == 1), key=lambda p: p.end)
    return singles + [p for p in parts if p.count > 1]


def write_sheet(parts: Listed[Part], page_size: int) -> Sheet:
    """The sheet of `parts`, which are `ordered`."""
    counts, sequences = tuple(p.count for p in parts), len(parts)
    width = max(-(-p.end // page_size) for p in parts)
    alphas = [p.sequence.alpha for p in parts]
    numbers = np.zeros(3 * sum(counts) + 2 * sequences + 1 + sequences * width, dtype=np.int64)
    sheet = Sheet(numbers, counts, width, None if all(a == 1.0 for a in alphas) else alphas)
    tokens, positions, slots, bounds, lengths, flat = sheet.parts()
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
    return sheet
