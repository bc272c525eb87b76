"""Data parallelism of processes that torchrun started: on a busy machine, one thread each outruns one process
of many.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The ranks know each other within; a process that torchrun did not start is alone."""
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first(value: float) -> float:
    """Rank 0's value."""
    if count() == 1:
        return value
    held = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(held, 0)
    return float(held)


def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all ranks, taken in float32, into each tensor."""
    if count() == 1:
        return
    flat = torch.cat([t.flatten().float() for t in tensors])
    dist.all_reduce(flat)
    for tensor, mean in zip(tensors, (flat / count()).split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
