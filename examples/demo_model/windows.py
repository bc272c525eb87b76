"""Streams of ids to training batches: windows of equal length, cut anew each epoch, mixed by share.

A window may hold several documents, each ended by the end of text. Letters: T tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneroof.batch import Batch, pack

Ids = NDArray[np.int16]


def batch_of(windows: list[Ids]) -> tuple[Batch, Tensor]:
    """Windows of n + 1 ids -> a packed batch of their first n, and the ids [T] that follow each."""
    targets = torch.from_numpy(np.concatenate([w[1:] for w in windows]).astype(np.int64))
    return pack([w[:-1].tolist() for w in windows]), targets


def epochs(stream: Ids, length: int, draw: np.random.Generator) -> Iterator[Ids]:
    """Windows of `length` + 1 ids without end: every epoch a random offset and a random order."""
    if len(stream) < 2 * length + 1:
        raise ValueError(f"a stream of {len(stream)} ids is too short for windows of {length}")
    while True:
        starts = np.arange(draw.integers(length), len(stream) - length, length)
        for start in draw.permutation(starts):
            yield stream[start : start + length + 1]


def training(
    streams: Mapping[str, Ids], shares: Mapping[str, float], length: int, tokens: int, seed: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of `tokens` tokens in windows of `length`, without end; a window's stream is drawn by its
    share.
    """
    draw = np.random.default_rng(seed)
    sources = [epochs(streams[name], length, draw) for name in shares]
    weights = np.array(list(shares.values())) / sum(shares.values())
    while True:
        chosen = draw.choice(len(sources), size=tokens // length, p=weights)
        yield batch_of([next(sources[i]) for i in chosen])


def reading(stream: Ids, length: int, tokens: int) -> Iterator[tuple[Batch, Tensor]]:
    """The whole stream once, in order, in batches of at most `tokens`; each id but the first is a target
    once.
    """
    cuts = [*range(0, len(stream) - 1, length), len(stream) - 1]
    windows = [stream[a : b + 1] for a, b in pairwise(cuts)]
    for i in range(0, len(windows), max(1, tokens // length)):
        yield batch_of(windows[i : i + max(1, tokens // length)])
