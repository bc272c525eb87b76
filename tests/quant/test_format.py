"""A weight in a format is filled like a tensor, and cut and put together again without changing a number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import CPU
from torch import Tensor

from oneroof.layers.format import Rows
from oneroof.ops.cpu import backend
from oneroof.ops.cpu.library import native
from oneroof.ops.matmul import DYNAMIC
from oneroof.ops.matrix import Layout
from oneroof.quant.format import Kept, Recipe
from oneroof.quant.rounding import to_int4, to_int8

RECIPES = {
    "plain": Recipe("as it is"),
    "float16": Recipe("float16"),
    "int8": Recipe("int8"),
    "int8 in groups": Recipe("int8", group=16),
    "int8 x int8": Recipe("int8", input=DYNAMIC),
    "int4": Recipe("int4", group=16),
    "int4 with zero points": Recipe("int4", group=16, zeros=True),
}


@pytest.fixture(params=["rows", "panels"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """Panels are the native library's, whose kernels then serve."""
    name: Layout = request.param
    if name == "panels" and not backend.install():
        pytest.skip("no native kernels")
    return name


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Each in turn."""
    return RECIPES[request.param]


def drawn(experts: int, rows: int, dim: int) -> Tensor:
    return torch.randn(experts, rows, dim, generator=torch.Generator().manual_seed(0))


def kept(
    recipe: Recipe, layout: Layout, experts: int, rows: int, dim: int, dtype: torch.dtype = torch.float32
) -> Kept:
    made = Kept.of(recipe, rows, dim, dtype=dtype, layout=layout, device=CPU, experts=experts)
    for e, weight in enumerate(drawn(experts, rows, dim)):
        made.put(e, 0, weight.to(dtype))
    return made


def same(one: Kept, other: Kept) -> bool:
    shape = (one.experts, one.rows, one.dim) == (other.experts, other.rows, other.dim)
    return shape and all(torch.equal(one.dense(e), other.dense(e)) for e in range(one.experts))


def test_numbers_are_what_rounding_makes_of_them(recipe: Recipe, layout: Layout) -> None:
    found, weight = kept(recipe, layout, 2, 37, 100), drawn(2, 37, 100)
    for e in range(2):
        off = (found.dense(e) - weight[e]).abs().max()
        assert off == 0 if recipe.kind == "as it is" else off < 0.5
    if recipe.kind == "int8":
        whole, scales = to_int8(weight[1], recipe.group)
        assert torch.equal(found.matrix.read(1, 0, 37), whole)
        assert torch.equal(found.matrix.by_group(found.matrix.scales, 1), scales)  # type: ignore[arg-type]
    if recipe.kind == "int4" and not recipe.zeros:
        assert torch.equal(found.matrix.read(1, 0, 37), to_int4(weight[1], 16)[0])


def test_both_layouts_hold_the_same(recipe: Recipe) -> None:
    if native() is None:
        pytest.skip("no native kernels")
    assert same(kept(recipe, "rows", 2, 37, 100), kept(recipe, "panels", 2, 37, 100))


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 20), count=st.integers(1, 40), size=st.sampled_from([1, 16 * 30, 1 << 20]))
@pytest.mark.parametrize("place", ["rows", "panels"])
def test_rows_are_filled_some_at_a_time(place: Layout, first: int, count: int, size: int) -> None:
    if place == "panels" and native() is None:
        pytest.skip("no native kernels")
    weight = drawn(1, 61, 30)[0]
    whole = kept(RECIPES["int8"], place, 1, 61, 30)
    found = Kept.of(RECIPES["int8"], 61, 30, dtype=torch.float32, layout=place, device=CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oneroof.layers.format._AT_ONCE", size)
        for start, end in ((first, first + count), (0, first), (first + count, 61)):
            if start < end:
                rows = Rows(found, 0, start, end - start, torch.float32)
                rows.copy_(weight[start:end])
                assert torch.equal(rows.dense(), whole.dense(0, start, end - start))
    assert same(found, whole)


def test_memory_is_as_the_recipe_says(recipe: Recipe, layout: Layout) -> None:
    made = kept(recipe, layout, 3, 64, 128, torch.bfloat16)
    assert made.nbytes == 3 * 64 * 128 * recipe.bits(torch.bfloat16, 128) / 8
    assert sum(Rows(made, e, r, 16, torch.bfloat16).nbytes for e in range(3) for r in (0, 16, 32, 48)) == (
        made.nbytes
    )


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("cuts", [(16,), (32, 48), (16, 32, 64)])
def test_join_undoes_split(recipe: Recipe, layout: Layout, dim: int, cuts: tuple[int, ...]) -> None:
    whole = kept(recipe, layout, 2, 90, 104)
    ends = (*cuts, (90, 104)[dim])
    parts = [whole.split(dim, a, b - a) for a, b in zip((0, *cuts), ends, strict=True)]
    assert [(p.rows, p.dim)[dim] for p in parts] == [b - a for a, b in zip((0, *cuts), ends, strict=True)]
    for e in range(2):
        assert torch.equal(torch.cat([p.dense(e) for p in parts], dim), whole.dense(e))
    again = parts[0].join(parts[1:], dim)
    assert same(again, whole)
    assert again.matrix.groups == whole.matrix.groups and again.matrix.layout == layout


def test_products_of_parts_are_parts_of_the_product(recipe: Recipe, layout: Layout) -> None:
    whole, x = kept(recipe, layout, 1, 90, 104), torch.randn(5, 104)
    y = whole.linear(x, None, torch.float32)
    rows = [whole.split(0, 0, 37), whole.split(0, 37, 53)]
    beside = torch.cat([p.linear(x, None, torch.float32) for p in rows], -1)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(beside, y, **close)
    if layout == "panels":
        assert torch.equal(beside, y)
    inputs = [whole.split(1, 0, 48), whole.split(1, 48, 56)]
    total = sum(
        p.linear(x[:, a : a + p.dim], None, torch.float32) for a, p in zip((0, 48), inputs, strict=True)
    )
    if recipe.input == DYNAMIC:  # each part has a scale of its own for its input
        close = {"rtol": 0.05, "atol": 0.3}
    elif whole.matrix.scales is not None:  # or reads it as whole numbers of 16 bits
        close = {"rtol": 1e-3, "atol": 3e-3}
    torch.testing.assert_close(total, y, **close)


def test_a_group_is_not_cut() -> None:
    whole = kept(RECIPES["int4"], "rows", 1, 32, 104)
    for start, length in ((8, 16), (0, 24), (16, 40)):
        with pytest.raises(ValueError, match="cut a group of 16"):
            whole.split(1, start, length)
    assert whole.split(1, 96, 8).dim == 8  # the last one is short by itself


def test_what_a_layer_asks_for(recipe: Recipe, layout: Layout) -> None:
    whole, x = kept(recipe, layout, 1, 64, 48), torch.randn(5, 48)
    both = F.linear(x, whole.dense())
    loose = {"rtol": 0.05, "atol": 0.5} if recipe.input == DYNAMIC else {"rtol": 1e-3, "atol": 4e-3}
    torch.testing.assert_close(whole.linear(x, None, torch.float32), both, **loose)
    gate, up = both.chunk(2, -1)
    loose = {"rtol": 0.1, "atol": 4.0} if recipe.input == DYNAMIC else {"rtol": 1e-3, "atol": 3e-2}
    torch.testing.assert_close(whole.gated(x, None), F.silu(gate) * up, **loose)
    tokens = torch.tensor([63, 0, 5])
    assert torch.equal(whole.lookup(tokens, torch.bfloat16), whole.dense()[tokens].bfloat16())
    experts, down = kept(recipe, layout, 3, 64, 48), kept(recipe, layout, 3, 48, 32)
    chosen = torch.tensor([[0, 2], [2, 1], [1, 0], [0, 1], [2, 0]])
    found = experts.mix(x / 7, torch.full((5, 2), 0.5), chosen, down)
    expected = torch.stack(
        [
            sum(
                0.5 * (down.dense(e) @ (F.silu(g) * u))
                for e in row
                for g, u in [(experts.dense(e) @ (one / 7)).chunk(2)]
            )
            for one, row in zip(x, chosen.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0.1 if recipe.input == DYNAMIC else 1e-3, atol=0.3)
