"""From float rows to whole numbers with scales: the one definition of each, whatever layout they are kept in.

Letters: n rows, K inputs, G groups of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INT8, INT4 = 127, 7


def to_int8(rows_nK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """``q = round(w / s)`` with ``s = max |w| / 127`` of each group (0: of the row): int8 [n, K], float32
    [n, G].
    """
    return _symmetric(rows_nK, group, INT8)


def to_int4(rows_nK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The same in -8 .. 7, moved to 0 .. 15 for the zero point 8; s is signed: the largest is -8 s."""
    cut = _cut(rows_nK, group)
    place = cut.abs().argmax(-1, keepdim=True)
    scales = cut.gather(-1, place)[..., 0] / -(INT4 + 1)
    whole = _divided(cut, scales).round().clamp(-INT4 - 1, INT4)
    return (_joined(whole, rows_nK) + (INT4 + 1)).to(torch.uint8), scales


def to_int4_with_zeros(rows_nK: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """``w = s (q - z)`` over each group's own range, which includes 0: q in 0 .. 15, float32 s, z in 0 ..
    15.
    """
    cut = _cut(rows_nK, group)
    low, high = cut.amin(-1).clamp(max=0.0), cut.amax(-1).clamp(min=0.0)
    scales = (high - low) / 15
    zeros = _divided(-low[..., None], scales)[..., 0].round().clamp(0, 15)
    whole = (_divided(cut, scales).round() + zeros[..., None]).clamp(0, 15)
    return _joined(whole, rows_nK).to(torch.uint8), scales, zeros.to(torch.uint8)


def _symmetric(rows_nK: Tensor, group: int, largest: int) -> tuple[Tensor, Tensor]:
    cut = _cut(rows_nK, group)
    scales = cut.abs().amax(-1) / largest
    whole = _divided(cut, scales).round_().clamp_(-largest, largest)
    return _joined(whole, rows_nK).to(torch.int8), scales


def _cut(rows_nK: Tensor, group: int) -> Tensor:
    """[n, G, g] float32; what the last group lacks is 0."""
    rows = rows_nK.float()
    width = group or rows.shape[1]
    lacks = -rows.shape[1] % width
    return (F.pad(rows, (0, lacks)) if lacks else rows).view(rows.shape[0], -1, width)


def _divided(cut_nGg: Tensor, scales_nG: Tensor) -> Tensor:
    """0 where the scale is; numbers that are none become 0, as their scale tells of them."""
    inverse = torch.where(scales_nG == 0, 0.0, 1.0 / scales_nG)
    return (cut_nGg * inverse[..., None]).nan_to_num_(0.0, 0.0, 0.0)


def _joined(whole_nGg: Tensor, rows_nK: Tensor) -> Tensor:
    return whole_nGg.flatten(1)[:, : rows_nK.shape[1]]
