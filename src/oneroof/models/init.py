"""Random weights: for pre-training from nothing, and for measuring shapes whose files are not at hand."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from oneroof.models.decoder import Decoder


def initialize(model: Decoder, seed: int) -> None:
    """Norms 1, biases 0, all else normal with the config's `init_range`; a seed gives the same on any device.

    Each tensor has a stream of its own, by its name, so that a cut model draws the same values.
    """
    for name, tensor in model.tensors().items():
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
        elif name.endswith("bias"):
            tensor.zero_()
        else:
            _normal(tensor, model.config.init_range, zlib.crc32(f"{seed} {name}".encode()))


def _normal(tensor: Tensor, spread: float, seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous():
        tensor.normal_(0.0, spread, generator=generator)
        return
    tensor.copy_(torch.empty(tensor.shape).normal_(0.0, spread, generator=generator))
