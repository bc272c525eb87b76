"""Writing a model's tensors as safetensors with shards and an index, in the family's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from oneroof.names import Rename
from oneroof.tensorfile import Report, Spec, write_shards
from oneroof.weights.names import Names

SHARD = 5_000_000_000  # bytes


def save(
    tensors: Mapping[str, Tensor],
    folder: Path,
    renames: Sequence[Rename],
    *,
    limit: int = SHARD,
    report: Report | None = None,
) -> None:
    """Write `tensors` (our names) into `folder`, in files of at most `limit` bytes; packs are joined.

    Raises UserError where the folder cannot be written or holds weights already, or a pack is incomplete.
    """
    specs = {name: Spec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream(specs, tensors.__getitem__, folder, renames, limit=limit, report=report)


def stream(
    specs: Mapping[str, Spec],
    read: Callable[[str], Tensor],
    folder: Path,
    renames: Sequence[Rename],
    *,
    limit: int = SHARD,
    report: Report | None = None,
) -> None:
    """`save` for tensors that are read (by our name) only when their turn comes."""
    packs = {pack.stored: pack for pack in Names(renames).join(specs)}
    known = dict(specs)
    ready = [pack.spec(known) for pack in packs.values()]
    write_shards(folder, ready, lambda name: packs[name].join(read), limit=limit, report=report)
