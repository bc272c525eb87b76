"""What a checkpoint folder holds, told without the package under test: whole, or cut for ranks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]


def raw(tensor: Tensor) -> bytes:
    """Its bytes."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def stored(folder: Path) -> Tensors:
    """Every tensor of a plain folder."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    for path in sorted(folder.glob("*.bin")):
        found |= torch.load(path, weights_only=True)
    return found


def of_ranks(folder: Path) -> list[Tensors]:
    """Each rank's own."""
    layout = json.loads((folder / "layout.json").read_text())
    return [load_file(folder / f"rank_{i}" / "model.safetensors") for i in range(layout["tp"] * layout["pp"])]


def put_together(folder: Path) -> Tensors:
    """Every tensor of a sharded folder, by what docs/models.md says of layout.json; each place is there."""
    layout, ranks = json.loads((folder / "layout.json").read_text()), of_ranks(folder)
    found: Tensors = {}
    placed: list[set[str]] = [set() for _ in ranks]
    for name, row in layout["tensors"].items():
        whole = torch.empty(row["shape"], dtype=next(x[name] for x in ranks if name in x).dtype)
        missing = torch.ones(row["shape"], dtype=torch.bool)
        dealt = {rank: (start, stop) for rank, start, stop in row.get("experts", [])}
        for rank, start, stop in row["pieces"]:
            placed[rank].add(name)
            piece = ranks[rank][name]
            assert piece.dtype == whole.dtype
            target, hole = whole, missing
            if rank in dealt:
                first, last = dealt[rank]
                target, hole = target[first:last], hole[first:last]
            if row["axis"] is None:
                assert (start, stop) == (0, 0)
                target.copy_(piece)
                hole.fill_(False)
                continue
            parts = piece.chunk(row["blocks"], row["axis"])
            blocks = target.chunk(row["blocks"], row["axis"]), hole.chunk(row["blocks"], row["axis"])
            for part, block, empty in zip(parts, *blocks, strict=True):
                block.narrow(row["axis"], start, stop - start).copy_(part)
                empty.narrow(row["axis"], start, stop - start).fill_(False)
        assert not missing.any(), name
        found[name] = whole
    assert [set(x) for x in ranks] == placed
    return found


def assert_same(one: Tensors, other: Tensors) -> None:
    """The same names, dtypes, shapes and bytes."""
    assert set(one) == set(other)
    for name, tensor in one.items():
        again = other[name]
        assert (tensor.dtype, tensor.shape) == (again.dtype, again.shape), name
        assert raw(tensor) == raw(again), name


def digests(folder: Path) -> dict[str, str]:
    """Each file below a folder, by its name there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
