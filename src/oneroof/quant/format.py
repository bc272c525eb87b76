"""The formats that weights are kept in: floats as they are, int8 and int4 with scales, inputs as floats or
int8.

One class serves them all, since a product is told how to read its weight and its input; what differs is how
rows are rounded on the way in. Letters as in `layers/format.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oneroof import ops
from oneroof.layers.format import Format
from oneroof.ops.matmul import FLOAT, Input
from oneroof.ops.matrix import Layout, Matrix, empty
from oneroof.quant.rounding import to_int4, to_int4_with_zeros, to_int8


@dataclass(frozen=True)
class Recipe:
    """How a weight is kept, and how what it is multiplied with is read."""

    kind: str  # float32, bfloat16, float16, int8, int4, or `as it is`: the model's own number format
    group: int = 0  # inputs that share a scale; 0: the whole row
    zeros: bool = False  # int4: a zero point for each group, else 8
    input: Input = FLOAT

    def bits(self, dtype: torch.dtype, dim: int) -> float:
        """Of a weight, with its share of the scales."""
        if self.kind not in ("int8", "int4"):
            return 8.0 * dtype.itemsize
        share = min(self.group or dim, max(dim, 1))
        return (8 if self.kind == "int8" else 4) + (32 + 8 * self.zeros) / share


class Kept(Format):
    """A weight kept by a `Recipe`."""

    def __init__(self, matrix: Matrix, recipe: Recipe) -> None:
        self.matrix, self.recipe = matrix, recipe
        self.experts, self.rows, self.dim = matrix.experts, matrix.rows, matrix.dim

    @staticmethod
    def of(
        recipe: Recipe,
        rows: int,
        dim: int,
        *,
        dtype: torch.dtype,
        layout: Layout,
        device: torch.device,
        experts: int = 1,
    ) -> Kept:
        """One that is to be filled; `dtype` is the model's, which floats keep."""
        kind = str(dtype).removeprefix("torch.") if recipe.kind == "as it is" else recipe.kind
        matrix = empty(
            kind,
            rows,
            dim,
            layout=layout,
            device=device,
            experts=experts,
            group=recipe.group,
            zeros=recipe.zeros,
        )
        return Kept(matrix, recipe)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.matrix.nbytes

    def put(self, expert: int, first: int, rows_nK: Tensor) -> None:
        """Take in the float rows `first` .. of `expert`, rounded by the recipe."""
        matrix, group = self.matrix, self.matrix.group
        rows = rows_nK.to(matrix.values.device)
        if matrix.scales is None:
            matrix.write(expert, first, rows)
        elif matrix.kind == "int8":
            matrix.write(expert, first, *to_int8(rows, group))
        elif matrix.zeros is None:
            matrix.write(expert, first, *to_int4(rows, group))
        else:
            matrix.write(expert, first, *to_int4_with_zeros(rows, group))

    def dense(self, expert: int = 0, first: int = 0, count: int = -1) -> Tensor:
        """[n, K] float32: the numbers that rows `first` .. stand for."""
        return self.matrix.dense(expert, first, count)

    def linear(self, x_TK: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> Tensor:
        """``x @ weight^T + bias`` in `dtype`."""
        return ops.matmul(x_TK, self.matrix, bias_N, self.recipe.input, dtype)

    def gated(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        """``silu(g) * u`` of its two halves."""
        return ops.gated_matmul(x_TK, self.matrix, bias_N, self.recipe.input)

    def mix(
        self,
        x_TD: Tensor,
        weights_Tk: Tensor,
        chosen_Tk: Tensor,
        down: Format,
        *,
        first: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The mixture of which this is gate and up, and `down` what follows."""
        assert isinstance(down, Kept)
        how, inner = self.recipe.input, down.recipe.input
        return ops.mix(x_TD, weights_Tk, chosen_Tk, self.matrix, down.matrix, how, inner, first, dtype)

    def lookup(self, tokens_T: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, K] the rows of these tokens."""
        return ops.lookup(tokens_T, self.matrix, dtype)

    def split(self, dim: int, start: int, length: int) -> Kept:
        """The rows (`dim` 0) or inputs (1) `start` .. of it, cut between groups; ValueError within one."""
        old, group = self.matrix, self.matrix.group
        if dim == 1 and group and (start % group or (length % group and start + length < old.dim)):
            raise ValueError(f"inputs {start} to {start + length} cut a group of {group}")
        rows, width = (length, old.dim) if dim == 0 else (old.rows, length)
        device = old.values.device
        new = empty(
            old.kind,
            rows,
            width,
            layout=old.layout,
            device=device,
            experts=old.experts,
            group=group,
            zeros=old.zeros is not None,
        )
        first = start if dim == 0 else 0
        columns = slice(None) if dim == 0 else slice(start, start + length)
        groups = slice(start // group, -(-(start + length) // group)) if dim == 1 and group else slice(None)
        for e in range(old.experts):
            values = old.read(e, first, rows)[:, columns]
            held = [
                None if t is None else old.by_group(t, e)[first : first + rows]
                for t in (old.scales, old.zeros)
            ]
            scales, zeros = (None if t is None else t[:, groups] for t in held)
            new.write(e, 0, values, scales, zeros)
        return Kept(new, self.recipe)

    def join(self, others: list[Kept], dim: int) -> Kept:
        """This and `others` as one, along the rows (`dim` 0) or the inputs (1): `split` undone."""
        parts = [self, *others]
        rows = sum(p.rows for p in parts) if dim == 0 else self.rows
        width = self.dim if dim == 0 else sum(p.dim for p in parts)
        old = self.matrix
        new = empty(
            old.kind,
            rows,
            width,
            layout=old.layout,
            device=old.values.device,
            experts=old.experts,
            group=self.recipe.group,
            zeros=old.zeros is not None,
        )
        for e in range(old.experts):
            held = [
                [p.matrix.read(e, 0, p.rows) for p in parts],
                [p.matrix.by_group(t, e) for p in parts if (t := p.matrix.scales) is not None],
                [p.matrix.by_group(t, e) for p in parts if (t := p.matrix.zeros) is not None],
            ]
            across = dim == 1 and not new.group  # a row's one scale is that of all its parts
            values, scales, zeros = (
                None if not tensors else tensors[0] if across and i else torch.cat(tensors, dim)
                for i, tensors in enumerate(held)
            )
            assert values is not None
            new.write(e, 0, values, scales, zeros)
        return Kept(new, self.recipe)
