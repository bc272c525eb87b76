"""The floor under a step's time: the bytes that it has to read over the rate at which memory gives them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from oneroof.config import ModelConfig
from oneroof.device import memory, synchronize
from oneroof.load import Loaded
from oneroof.models.sizes import keys, sizes, visited
from oneroof.ops.cpu.probe import read_rate
from oneroof.pages import Kind, bytes_per_token

_BLOCK = 1 << 30  # bytes: more than any cache holds
_WIDTH = 4096  # of the block seen as a matrix
TABLE = "model.embed_tokens.weight"  # of which a step reads some rows, unless the head is tied to it


@dataclass(frozen=True)
class Traffic:
    """Bytes that one step reads at least."""

    weights: float
    cache: float

    @property
    def bytes(self) -> float:
        """In all."""
        return self.weights + self.cache


def traffic(config: ModelConfig, itemsize: int, batch: int, positions: float) -> Traffic:
    """Of a step that gives each of `batch` texts a token, with `positions` keys behind each; all in one
    format.

    Of experts, as many as `batch` tokens visit if every choice is as likely: ``E (1 - (1 - k / E)^batch)``.
    """
    values = sizes(config).active + _more_experts(config, batch)
    seen = batch * keys(config, positions)
    return Traffic(values * itemsize, seen * 2 * config.kv_heads * config.head_dim * itemsize)


def held_traffic(loaded: Loaded, kv: Kind, batch: int, positions: float) -> Traffic:
    """The same of a model as it is held, whatever each weight's format, and of a cache of kind `kv`.

    Of a model that is cut for ranks, of this one, whose threads `streamed` measures.
    """
    config, weights, mine = loaded.config, 0.0, loaded.model.share
    share = 1.0 if config.experts is None else visited(config, batch) / config.experts.count
    for name, place in loaded.model.tensors().items():
        if config.tied_head or name != TABLE:
            weights += place.nbytes * (share if ".experts." in name else 1.0)
    key = bytes_per_token(
        depth=1, kv_heads=len(mine.kv_heads), head_dim=config.head_dim, dtype=loaded.dtype, kind=kv
    )
    seen = keys(config, positions) * len(mine.layers) / config.depth
    return Traffic(weights, batch * seen * key)


def streamed(device: torch.device) -> float:
    """Bytes a second that `device` reads from its memory: the best of some tries.

    On a CPU the native kernels' own reader tells, on their threads; else a sum and a matrix-vector product
    do.
    """
    if device.type == "cpu" and (rate := read_rate()) is not None:
        return rate
    size = min(_BLOCK, memory(device).free // 4)
    block = torch.ones(max(1, size // 4 // _WIDTH), _WIDTH, device=device)
    vector = torch.ones(_WIDTH, device=device)
    best = 0.0
    for product in (False, True) * 3:
        synchronize(device)
        began = time.perf_counter()
        torch.mv(block, vector) if product else block.sum()
        synchronize(device)
        best = max(best, block.nbytes / (time.perf_counter() - began))
    return best


def _more_experts(config: ModelConfig, batch: int) -> float:
    """Parameters of the experts that `batch` tokens visit beyond those of one token."""
    if config.experts is None:
        return 0.0
    more = visited(config, batch) - config.experts.top_k
    return sum(config.sparse_layers) * more * 3 * config.dim * config.experts.width
