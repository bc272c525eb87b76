"""Norms, rotation, SwiGLU, router and the largest of a row by the native kernels, near the references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import threads, with_kernels
from torch import Tensor

from oneroof import ops
from oneroof.ops.cpu import pointwise

pytestmark = [with_kernels, pytest.mark.usefixtures("variant")]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # of a result that is rounded once
floats = st.sampled_from(FLOATS)
tokens = st.sampled_from([0, 1, 2, 7, 33])
widths = st.sampled_from([1, 8, 15, 16, 17, 64, 100, 896, 1031])


def close(found: Tensor, exact: Tensor, dtype: torch.dtype, units: float = 1.01) -> None:
    """`found` is `exact`, float32, rounded to `dtype` (float32: within some of its last places)."""
    assert found.dtype == dtype
    tolerance = UNIT[dtype] * (units if dtype != torch.float32 else 1)
    torch.testing.assert_close(found.float(), exact, rtol=tolerance, atol=1e-6, equal_nan=True)


def apart(rows: int, width: int, dtype: torch.dtype, gap: int) -> Tensor:
    """Rows with `gap` numbers between them."""
    return torch.randn(rows, width + gap).to(dtype)[:, :width]


@settings(max_examples=80, deadline=None)
@given(rows=tokens, width=widths, dtype=floats, gap=st.sampled_from([0, 3]), residual=st.booleans())
def test_norms(rows: int, width: int, dtype: torch.dtype, gap: int, residual: bool) -> None:
    x, weight = apart(rows, width, dtype, gap), torch.randn(width).to(dtype)
    if residual:
        other = apart(rows, width, dtype, 2 * gap)
        found = pointwise.add_rms_norm(x, other, weight, 1e-6)
        assert isinstance(found, tuple)
        y, total = found
        assert torch.equal(total, x + other)
    else:
        made = pointwise.rms_norm(x, weight, 1e-6)
        assert isinstance(made, Tensor)
        y, total = made, x
    close(y, ops.rms_norm.reference(total.float(), weight.float(), 1e-6), dtype)


def test_norms_of_other_shapes() -> None:
    x, weight = torch.randn(3, 4, 64), torch.randn(64)
    found = pointwise.rms_norm(x, weight, 1e-6)
    assert isinstance(found, Tensor)
    close(found, ops.rms_norm.reference(x, weight, 1e-6), torch.float32)
    assert pointwise.rms_norm(x.transpose(0, 1), weight, 1e-6) is NotImplemented
    assert pointwise.rms_norm(x.double(), weight.double(), 1e-6) is NotImplemented
    assert pointwise.rms_norm(x, weight.bfloat16(), 1e-6) is NotImplemented


@settings(max_examples=80, deadline=None)
@given(
    rows=tokens,
    heads=st.sampled_from([(1, 1), (4, 2), (14, 2)]),
    dim=st.sampled_from([8, 16, 34, 64, 80, 128]),
    dtype=floats,
    interleaved=st.booleans(),
    normed=st.booleans(),
    scaled=st.booleans(),
)
def test_heads(
    rows: int,
    heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    interleaved: bool,
    normed: bool,
    scaled: bool,
) -> None:
    width = (heads[0] + 2 * heads[1]) * dim
    qkv = apart(rows, width, dtype, 5)
    turns = torch.randn(rows, 1, dim // 2) * 100
    cos, sin = turns.cos(), turns.sin()
    if interleaved:
        cos, sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
    else:
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    norms = [torch.randn(dim).to(dtype) if normed else None for _ in range(2)]
    scale = torch.rand(rows, 1, 1) + 1 if scaled else None
    exact = ops.qk_norm_rope.reference(
        qkv.float(),
        *heads,
        *(w if w is None else w.float() for w in norms),
        1e-6,
        cos,
        sin,
        interleaved,
        scale,
    )
    values = qkv.view(rows, heads[0] + 2 * heads[1], dim)[:, -heads[1] :].clone()
    found = pointwise.qk_norm_rope(qkv, *heads, *norms, 1e-6, cos, sin, interleaved, scale)
    assert isinstance(found, tuple) and torch.equal(found[2], values)
    for part, expected in zip(found, exact, strict=True):
        assert part.shape == expected.shape
        torch.testing.assert_close(part.float(), expected, rtol=UNIT[dtype] * 1.01, atol=1e-5)


def test_heads_that_are_declined() -> None:
    qkv, angles = torch.randn(2, 4 * 16), torch.randn(2, 1, 16)
    weight = torch.randn(16)
    assert (
        pointwise.qk_norm_rope(qkv, 2, 1, weight, None, 1e-6, angles, angles, False, None) is NotImplemented
    )
    assert (
        pointwise.qk_norm_rope(qkv.double(), 2, 1, None, None, 1e-6, angles, angles, False, None)
        is NotImplemented
    )
    assert (
        pointwise.qk_norm_rope(qkv, 2, 1, None, None, 1e-6, angles.double(), angles, False, None)
        is NotImplemented
    )


@settings(max_examples=60, deadline=None)
@given(rows=tokens, width=widths, dtype=floats, gap=st.sampled_from([0, 3]))
def test_swiglu(rows: int, width: int, dtype: torch.dtype, gap: int) -> None:
    x = apart(rows, 2 * width, dtype, gap) * 8
    found = pointwise.swiglu(x)
    assert isinstance(found, Tensor)
    close(found, ops.swiglu.reference(x.float()), dtype)


def test_swiglu_far_out() -> None:
    gate = torch.tensor([[-torch.inf, -200.0, -90.0, 0.0, 90.0, torch.inf, torch.nan, -88.0]])
    found = pointwise.swiglu(torch.cat((gate, torch.ones(1, 8)), -1))
    assert isinstance(found, Tensor)
    expected = torch.nn.functional.silu(gate)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-30, equal_nan=True)
    assert found[0, 0].isnan() or found[0, 0] == 0


@settings(max_examples=60, deadline=None)
@given(
    rows=tokens,
    experts=st.sampled_from([1, 4, 16, 31, 128]),
    top=st.integers(1, 8),
    biased=st.booleans(),
    normalize=st.booleans(),
    dtype=floats,
    gap=st.sampled_from([0, 3]),
)
def test_route(
    rows: int, experts: int, top: int, biased: bool, normalize: bool, dtype: torch.dtype, gap: int
) -> None:
    scores = apart(rows, experts, dtype, gap)
    bias = torch.randn(experts) * 0.1 if biased else None
    top = min(top, experts)
    found = pointwise.route(scores, bias, top, normalize, 1e-9)
    assert isinstance(found, tuple)
    weights, chosen, p = found
    expected = ops.route.reference(scores, bias, top, normalize, 1e-9)
    torch.testing.assert_close(p, expected[2], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights.sort(-1).values, expected[0].sort(-1).values, rtol=1e-5, atol=1e-7)
    ranks = p if bias is None else p + bias
    assert torch.equal(ranks.gather(1, chosen), ranks.topk(top).values)
    own = p.gather(1, chosen)
    torch.testing.assert_close(weights, own / own.sum(-1, keepdim=True) if normalize else own)


def test_route_of_equals_and_of_what_is_no_number() -> None:
    odd, low = torch.nan, -torch.inf
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.1, 0.2, odd, 0.3], [low, 5.0, low, low], [low] * 4])
    found = pointwise.route(scores, None, 2, True, 1e-9)
    assert isinstance(found, tuple)
    assert found[1].tolist() == [[0, 1], [0, 1], [1, 0], [0, 1]]
    assert found[0].tolist()[0] == [0.5, 0.5] and found[0].tolist()[2] == [1.0, 0.0]
    assert found[2][1].isnan().all() and found[2][3].isnan().all() and found[0][1].isnan().all()


@settings(max_examples=60, deadline=None)
@given(rows=tokens, width=widths, dtype=floats, gap=st.sampled_from([0, 3]), gated=st.booleans())
def test_blend(rows: int, width: int, dtype: torch.dtype, gap: int, gated: bool) -> None:
    x, y = apart(rows, width, dtype, gap), apart(rows, width, dtype, 0)
    gate = apart(rows, 1, dtype, gap) * 4 if gated else None
    found = pointwise.blend(x, y, gate)
    assert isinstance(found, Tensor)
    close(found, ops.blend.reference(x.float(), y.float(), gate.float() if gate is not None else None), dtype)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 2, 5]),
    width=st.sampled_from([1, 15, 128, 129, 1000, 70000]),
    gap=st.sampled_from([0, 7]),
    kind=st.sampled_from(["plain", "equal", "nan", "nothing", "infinite"]),
)
def test_likeliest(rows: int, width: int, gap: int, kind: str) -> None:
    x = apart(rows, width, torch.float32, gap)
    if kind == "equal":
        x = x.round()
    if kind == "nan":
        x[:, [width // 3, width // 2]] = torch.nan
    if kind == "nothing":
        x[:] = -torch.inf
    if kind == "infinite":
        x[:, width // 2] = torch.inf
    found = pointwise.likeliest(x, -5)
    assert isinstance(found, Tensor)
    for row, place in zip(x, found.tolist(), strict=True):
        if row.max().isfinite():
            assert place == (row == row.max()).nonzero()[0, 0]
        else:
            assert place == -5
    assert torch.equal(found, ops.likeliest.reference(x, -5)) or kind == "equal"


@settings(max_examples=40, deadline=None)
@given(rows=tokens, half=st.sampled_from([1, 4, 20, 64]), interleaved=st.booleans())
def test_waves(rows: int, half: int, interleaved: bool) -> None:
    turns = torch.randn(rows, half) * torch.tensor([1.0, 1e3, 1e5]).repeat(half)[:half]
    found = pointwise.waves(turns, 0.7, interleaved)
    assert isinstance(found, tuple)
    expected = ops.waves.reference(turns.double(), 0.7, interleaved)
    for wave, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(wave, exact.float(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_do_not_depend_on_their_neighbours(dtype: torch.dtype) -> None:
    x, other, weight = (torch.randn(n, 512).to(dtype) for n in (300, 300, 1))

    def all_of(first: int, end: int) -> list[Tensor]:
        added = pointwise.add_rms_norm(x[first:end], other[first:end], weight[0], 1e-6)
        gated = pointwise.swiglu(x[first:end])
        angles = torch.linspace(-1, 1, 300 * 64).view(300, 1, 64)[first:end]
        turned = pointwise.qk_norm_rope(
            x[first:end].clone(), 4, 2, weight[0, :64], weight[0, 64:128], 1e-6, angles, angles, False, None
        )
        assert isinstance(added, tuple) and isinstance(gated, Tensor) and isinstance(turned, tuple)
        return [*added, gated, *turned]

    with threads(1):
        expected = all_of(0, 300)
    for count in (1, 2, 3):
        with threads(count):
            for found, whole in zip(all_of(0, 300), expected, strict=True):
                assert torch.equal(found, whole)
            for row in (0, 299):
                for found, whole in zip(all_of(row, row + 1), expected, strict=True):
                    assert torch.equal(found[0], whole[row])
