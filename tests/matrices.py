"""Matrices of random numbers, in either layout, for tests of what reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from oneroof.ops.matrix import Layout, Matrix, empty

CPU = torch.device("cpu")


def values(kind: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """What a matrix of `kind` holds; about 1 where it is floats."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "int8":
        return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    if kind == "int4":
        return torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator).to(getattr(torch, kind))


def filled(
    kind: str, shape: tuple[int, int, int], layout: Layout, *, group: int = 0, zeros: bool = False
) -> Matrix:
    """[E, N, K] written in two pieces an expert, the second first; the same numbers in both layouts.

    A group or zero points that `kind` cannot have are left out.
    """
    experts, rows, dim = shape
    group, zeros = group if kind.startswith("int") else 0, zeros and kind == "int4"
    made = empty(kind, rows, dim, layout=layout, device=CPU, experts=experts, group=group, zeros=zeros)
    scales = torch.rand(experts, rows, made.groups, generator=torch.Generator().manual_seed(2)) + 0.5
    scales /= 70 if kind == "int8" else 4
    every, points = values(kind, shape), values("int4", (experts, rows, made.groups), 1)
    cut = rows // 3
    for e in range(experts):
        for first, end in ((cut, rows), (0, cut)):
            made.write(e, first, every[e, first:end], scales[e, first:end], points[e, first:end])
    return made
