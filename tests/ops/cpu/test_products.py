"""Products by the native kernels: near the reference, exact where sums are whole, and each row its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import filled
from native_kernels import threads, with_kernels
from torch import Tensor

from oneroof import ops
from oneroof.ops.cpu import products
from oneroof.ops.matmul import DYNAMIC, FLOAT, Input
from oneroof.ops.matrix import KINDS, Matrix

pytestmark = [with_kernels, pytest.mark.usefixtures("variant")]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-10}  # of a result, generously
LOST = 2e-5  # of the largest input times the sum of |w|, where inputs are read as 16-bit whole numbers
STATIC = Input("static", 0.03)
kinds = st.sampled_from(KINDS)
floats = st.sampled_from(FLOATS)
tokens = st.sampled_from([0, 1, 2, 3, 5, 12, 13, 30, 260])
heights = st.sampled_from([1, 15, 16, 17, 40, 64, 200])
widths = st.sampled_from([1, 3, 8, 31, 64, 100, 520, 1100])
groups = st.sampled_from([0, 8, 32, 128])


def inputs(count: int, dim: int, dtype: torch.dtype, gap: int = 0, seed: int = 0) -> Tensor:
    """Rows with `gap` numbers between them."""
    made = torch.randn(count, dim + gap, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype)[:, :dim]


def product(
    x: Tensor,
    weight: Matrix,
    bias: Tensor | None = None,
    how: Input = FLOAT,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    found = products.matmul(x, weight, bias, how, dtype)
    assert isinstance(found, Tensor)
    return found


def within(found: Tensor, x: Tensor, weight: Matrix, bias: Tensor | None, slack: float = 1.0) -> None:
    """`found` is the product, up to the rounding of its sums, of its output, and of whole inputs."""
    numbers, wide = weight.dense(0).double(), x.double()
    exact = wide @ numbers.t() + (0 if bias is None else bias.double())
    sums = wide.abs() @ numbers.abs().t()
    allowed = sums * (weight.dim + 8) * 2**-24 + exact.abs() * UNIT[found.dtype] + 1e-6
    if weight.scales is not None and len(x):
        allowed += LOST * wide.abs().amax(-1, keepdim=True) * numbers.abs().sum(-1)
    off = (found.double() - exact).abs()
    assert (off <= slack * allowed).all(), float((off / allowed).max())


@settings(max_examples=60, deadline=None)
@given(
    kind=kinds,
    count=tokens,
    rows=heights,
    dim=widths,
    group=groups,
    zeros=st.booleans(),
    dtype=floats,
    out=floats,
    gap=st.sampled_from([0, 1, 6]),
    biased=st.booleans(),
)
def test_products(
    kind: str,
    count: int,
    rows: int,
    dim: int,
    group: int,
    zeros: bool,
    dtype: torch.dtype,
    out: torch.dtype,
    gap: int,
    biased: bool,
) -> None:
    weight = filled(kind, (1, rows, dim), "panels", group=group, zeros=zeros)
    x, bias = inputs(count, dim, dtype, gap), inputs(1, rows, dtype)[0].contiguous() if biased else None
    found = product(x, weight, bias, FLOAT, out)
    assert found.shape == (count, rows) and found.dtype == out
    within(found, x, weight, bias)


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(["int8", "int4"]),
    how=st.sampled_from([DYNAMIC, STATIC]),
    count=tokens,
    rows=heights,
    dim=widths,
    zeros=st.booleans(),
    dtype=floats,
    out=floats,
    gap=st.sampled_from([0, 3]),
    biased=st.booleans(),
)
def test_whole_sums_are_the_references_to_the_bit(
    kind: str,
    how: Input,
    count: int,
    rows: int,
    dim: int,
    zeros: bool,
    dtype: torch.dtype,
    out: torch.dtype,
    gap: int,
    biased: bool,
) -> None:
    weight = filled(kind, (1, rows, dim), "panels", zeros=zeros)
    x, bias = inputs(count, dim, dtype, gap), inputs(1, rows, dtype)[0].contiguous() if biased else None
    found = product(x, weight, bias, how, out)
    assert torch.equal(found, ops.matmul.reference(x, weight, bias, how, out))


def test_the_largest_whole_sums_are_exact() -> None:
    """Every product 127 * 127: beyond 2^24 after 1041 inputs, where a float32 would lose its last bit."""
    weight = filled("int8", (1, 32, 4099), "panels")
    weight.write(0, 0, torch.full((32, 4099), 127, dtype=torch.int8), torch.ones(32, 1))
    x = torch.full((14, 4099), 127.0)
    x[:, 5] = 1.0
    for rows in (x[:1], x):
        found = product(rows, weight, None, Input("static", 1.0))
        assert (found.double() == float(torch.tensor(127.0 * 127 * 4098 + 127))).all()


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["int8", "int4"]),
    how=st.sampled_from([DYNAMIC, STATIC]),
    count=tokens,
    group=st.sampled_from([8, 32, 1024]),
    dim=st.sampled_from([31, 100, 1100, 2500]),
    zeros=st.booleans(),
)
def test_whole_sums_of_groups(kind: str, how: Input, count: int, group: int, dim: int, zeros: bool) -> None:
    weight = filled(kind, (1, 40, dim), "panels", group=group, zeros=zeros)
    x = inputs(count, dim, torch.float32)
    found, expected = product(x, weight, None, how), ops.matmul.reference(x, weight, None, how, torch.float32)
    size = expected.abs().max() if count else 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 * float(size))


@settings(max_examples=15, deadline=None)
@given(
    kind=kinds,
    how=st.sampled_from([FLOAT, DYNAMIC]),
    group=st.sampled_from([0, 32]),
    rows=st.sampled_from([17, 64, 200]),
    dim=st.sampled_from([31, 64, 520, 1100]),
    dtype=floats,
)
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(
    kind: str, how: Input, group: int, rows: int, dim: int, dtype: torch.dtype
) -> None:
    weight = filled(kind, (1, rows, dim), "panels", group=group, zeros=True)
    how = how if kind.startswith("int") else FLOAT
    x = inputs(300, dim, dtype)
    with threads(1):
        alone = torch.cat([product(x[i : i + 1], weight, None, how) for i in range(len(x))])
    for count, team in ((2, 3), (5, 1), (12, 2), (13, 2), (25, 3), (257, 2), (300, 3)):
        with threads(team):
            assert torch.equal(product(x[:count], weight, None, how), alone[:count]), (count, team)
            assert torch.equal(product(x[1 : count + 1].clone(), weight, None, how), alone[1 : count + 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [FLOAT, DYNAMIC, STATIC], ids=["float", "dynamic", "static"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [4, 40])
def test_what_is_no_number_stays_in_its_row(kind: str, how: Input, dtype: torch.dtype, count: int) -> None:
    if how is not FLOAT and not kind.startswith("int"):
        pytest.skip("floats are not multiplied with bytes")
    weight = filled(kind, (1, 40, 100), "panels")
    x = inputs(count, 100, dtype)
    expected = product(x, weight, None, how)
    for row, wrong in ((1, torch.nan), (2, torch.inf), (count - 1, -torch.inf)):
        x[row, 37 * row % 100] = wrong
    found = product(x, weight, None, how)
    assert found[1].isnan().all() and not found[[2, count - 1]].isfinite().any()
    others = [row for row in range(count) if row not in (1, 2, count - 1)]
    assert torch.equal(found[others], expected[others])


@settings(max_examples=25, deadline=None)
@given(
    kind=kinds,
    count=st.sampled_from([0, 1, 3, 13, 40]),
    half=st.sampled_from([5, 16, 48]),
    dim=st.sampled_from([31, 64, 200]),
    dtype=floats,
    biased=st.booleans(),
)
def test_gated_products(kind: str, count: int, half: int, dim: int, dtype: torch.dtype, biased: bool) -> None:
    weight = filled(kind, (1, 2 * half, dim), "panels")
    x = inputs(count, dim, dtype) / dim**0.5
    bias = inputs(1, 2 * half, dtype)[0].contiguous() if biased else None
    found = products.gated_matmul(x, weight, bias, FLOAT)
    assert isinstance(found, Tensor)
    both = F.linear(x.double(), weight.dense(0).double(), None if bias is None else bias.double())
    gate, up = both.chunk(2, -1)
    assert found.dtype == dtype and found.shape == (count, half)
    torch.testing.assert_close(found.double(), F.silu(gate) * up, rtol=2 * UNIT[dtype], atol=2e-3)
    if dtype == torch.float32 and not kind.startswith("int"):
        torch.testing.assert_close(found.double(), F.silu(gate) * up, rtol=1e-5, atol=1e-5)


def routing(count: int, experts: int, k: int, lopsided: bool) -> tuple[Tensor, Tensor]:
    """Weights, and experts that are different for each choice of a token; `lopsided`: two have most."""
    generator = torch.Generator().manual_seed(count)
    liking = torch.rand(count, experts, generator=generator)
    if lopsided:
        liking[:, :2] += 0.6
    return torch.rand(count, k, generator=generator), liking.topk(k, dim=-1).indices


@settings(max_examples=25, deadline=None)
@given(
    kind=kinds,
    how=st.sampled_from([FLOAT, DYNAMIC]),
    count=st.sampled_from([0, 1, 2, 7, 40, 300]),
    k=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([16, 48]),
    dim=st.sampled_from([24, 64, 136]),
    dtype=floats,
    lopsided=st.booleans(),
)
def test_mixtures(
    kind: str, how: Input, count: int, k: int, width: int, dim: int, dtype: torch.dtype, lopsided: bool
) -> None:
    gate_up = filled(kind, (6, 2 * width, dim), "panels", group=8)
    down = filled(kind, (6, dim, width), "panels", group=8)
    how = how if kind.startswith("int") else FLOAT
    x, (weights, chosen) = inputs(count, dim, dtype) / dim**0.5, routing(count, 6, k, lopsided)
    found = products.mix(x, weights, chosen, gate_up, down, how, how)
    assert isinstance(found, Tensor) and found.dtype == dtype and found.shape == x.shape
    if not count:
        return
    wide = x.float()
    expected = ops.mix.reference(wide, weights, chosen, gate_up, down, how, how)
    off = (found.float() - expected).abs() / expected.abs().amax(-1, keepdim=True)
    least = 1e-5 if kind not in ("int8", "int4") else 2e-4 if how is FLOAT else 2e-2
    assert off.max() < max(least, 4 * UNIT[dtype]), float(off.max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [FLOAT, DYNAMIC], ids=["float", "dynamic"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_token_gets_the_same_from_a_mixture_in_any_company(
    kind: str, how: Input, dtype: torch.dtype
) -> None:
    if how is not FLOAT and not kind.startswith("int"):
        pytest.skip("floats are not multiplied with bytes")
    gate_up, down = (filled(kind, (6, *shape), "panels") for shape in ((64, 40), (40, 32)))
    x, (weights, chosen) = inputs(300, 40, dtype), routing(300, 6, 2, True)

    def mixed(part: slice) -> Tensor:
        found = products.mix(x[part], weights[part], chosen[part], gate_up, down, how, how)
        assert isinstance(found, Tensor)
        return found

    alone = torch.cat([mixed(slice(t, t + 1)) for t in range(300)])
    for count, team in ((2, 1), (9, 3), (40, 2), (300, 1), (300, 3)):
        with threads(team):
            assert torch.equal(mixed(slice(0, count)), alone[:count]), (count, team)
    x[7] = torch.nan
    assert torch.equal(mixed(slice(0, 7)), alone[:7]) and mixed(slice(0, 40))[7].isnan().all()
    assert torch.equal(mixed(slice(0, 40))[8:], alone[8:40])


def test_a_token_may_name_an_expert_twice() -> None:
    gate_up, down = (filled("int8", (3, *shape), "panels") for shape in ((64, 40), (40, 32)))
    x, weights, chosen = inputs(1, 40, torch.float32), torch.tensor([[0.5, 0.25]]), torch.tensor([[1, 1]])
    found = products.mix(x, weights, chosen, gate_up, down, FLOAT, FLOAT)
    assert isinstance(found, Tensor)
    expected = ops.mix.reference(x, weights, chosen, gate_up, down, FLOAT, FLOAT)
    assert ((found - expected).abs() <= 2e-3 * expected.abs().max()).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_are_looked_up_as_the_numbers_they_are(kind: str, dtype: torch.dtype) -> None:
    weight = filled(kind, (1, 37, 70), "panels", group=24, zeros=True)
    tokens = torch.tensor([36, 0, 16, 16, 15])
    found = products.lookup(tokens, weight, dtype)
    assert isinstance(found, Tensor)
    assert torch.equal(found, weight.dense(0)[tokens].to(dtype))
    assert products.lookup(tokens[:0], weight, dtype).shape == (0, 70)  # type: ignore[union-attr]
    for token in (-1, 37):
        with pytest.raises(IndexError):
            products.lookup(torch.tensor([0, token]), weight, dtype)


def test_what_is_not_served_is_declined() -> None:
    weight, x = filled("int8", (1, 16, 64), "panels"), torch.randn(2, 64)
    declined = [
        products.matmul(x, filled("int8", (1, 16, 64), "rows"), None, FLOAT, torch.float32),
        products.matmul(x.double(), weight, None, FLOAT, torch.float32),
        products.matmul(
            torch.randn(1, 65552), filled("int8", (1, 16, 65552), "panels"), None, FLOAT, x.dtype
        ),
        products.matmul(x, weight, None, FLOAT, torch.float64),
        products.matmul(torch.randn(64, 2).t(), weight, None, FLOAT, torch.float32),
        products.matmul(x, weight, torch.zeros(16, dtype=torch.float64), FLOAT, torch.float32),
        products.matmul(x, filled("float32", (1, 16, 64), "panels"), None, DYNAMIC, torch.float32),
        products.lookup(torch.tensor([1]), filled("int8", (1, 16, 64), "rows"), torch.float32),
    ]
    assert all(one is NotImplemented for one in declined)
    assert torch.equal(  # and the op itself goes to the reference, which reads panels too
        ops.matmul(x.double(), weight, None, FLOAT, torch.float32),
        ops.matmul.reference(x.double(), weight, None, FLOAT, torch.float32),
    )
