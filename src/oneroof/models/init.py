"""Random weights: for pre-training from nothing, and for measuring shapes whose files are not at hand."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from oneroof.layers.format import Place, Rows
from oneroof.layout import UNCUT, Cut, cut_of
from oneroof.models.decoder import Decoder

_AT_ONCE = 1 << 22  # numbers drawn at once where a weight is kept in a format


def initialize(model: Decoder, seed: int) -> None:
    """Norms 1, biases 0, all else normal with the config's `init_range`; a seed gives the same on any device.

    Each tensor has a stream of its own, by its name, so that a cut model, or a rank, draws the same values.
    """
    for name, tensor in model.tensors().items():
        if name.endswith("norm.weight") and isinstance(tensor, Tensor):
            tensor.fill_(1.0)
        elif name.endswith("bias") and isinstance(tensor, Tensor):
            tensor.zero_()
        else:
            cut = cut_of(model.config, model.share, name) or UNCUT
            _normal(tensor, cut, model.config.init_range, zlib.crc32(f"{seed} {name}".encode()))


def _normal(tensor: Place, cut: Cut, spread: float, seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    if not cut.uncut:  # a rank's slice of what all ranks draw
        shape = [*tensor.shape]
        shape[cut.axis] = cut.whole
        drawn = torch.empty(shape).normal_(0.0, spread, generator=generator).to(tensor.dtype)
        tensor.copy_(drawn.narrow(cut.axis, cut.start, cut.stop - cut.start))
        return
    if isinstance(tensor, Rows):
        _normal_rows(tensor, spread, generator)
        return
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous():
        tensor.normal_(0.0, spread, generator=generator)
        return
    tensor.copy_(torch.empty(tensor.shape).normal_(0.0, spread, generator=generator))


def _normal_rows(rows: Rows, spread: float, generator: torch.Generator) -> None:
    """The same numbers some rows at a time: torch draws normal numbers by sixteens."""
    count, dim = rows.shape
    step = count if dim % 16 else max(16, _AT_ONCE // dim // 16 * 16)
    for start in range(0, count, step):
        some = torch.empty(min(step, count - start), dim).normal_(0.0, spread, generator=generator)
        part = Rows(rows.format, rows.expert, rows.first + start, len(some), rows.dtype)
        part.copy_(some.to(rows.dtype))
