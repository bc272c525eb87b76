"""The references of the products, counted from the numbers that a matrix stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import filled

from oneroof import ops
from oneroof.ops.matmul import DYNAMIC, FLOAT, Input, quantize
from oneroof.ops.matrix import KINDS

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
kinds = st.sampled_from(KINDS)
groups = st.sampled_from([0, 8, 24])


@settings(max_examples=60, deadline=None)
@given(
    kind=kinds, group=groups, zeros=st.booleans(), dtype=st.sampled_from(FLOATS), out=st.sampled_from(FLOATS)
)
def test_a_product_is_that_of_the_numbers(
    kind: str, group: int, zeros: bool, dtype: torch.dtype, out: torch.dtype
) -> None:
    weight = filled(kind, (1, 21, 50), "rows", group=group, zeros=zeros)
    x, bias = torch.randn(4, 50).to(dtype), torch.randn(21).to(dtype)
    expected = F.linear(x.float(), weight.dense(0), bias.float())
    found = ops.matmul.reference(x, weight, bias, FLOAT, out)
    assert found.dtype == out
    torch.testing.assert_close(found, expected.to(out))


@pytest.mark.parametrize("how", [DYNAMIC, Input("static", 0.05)], ids=["dynamic", "static"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [0, 16])
def test_whole_inputs_give_whole_sums(how: Input, kind: str, group: int) -> None:
    weight = filled(kind, (1, 21, 50), "rows", group=group, zeros=True)
    x = torch.randn(4, 50)
    q, scale = quantize(x, how)
    assert torch.equal(q, q.round()) and q.abs().max() <= 127
    expected = (q.double() @ weight.dense(0).double().t()) * scale.double()
    found = ops.matmul.reference(x, weight, None, how, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    near = F.linear(x, weight.dense(0))
    assert (found - near).abs().max() < 0.03 * near.abs().max()


def test_an_input_is_made_whole_by_its_own_largest() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [torch.nan, 1.0, 2.0], [torch.inf, 1.0, 2.0]])
    q, scale = quantize(x, DYNAMIC)
    assert q[0].tolist() == [64.0, -127.0, 32.0] and scale[0, 0] == torch.tensor(2.0) / 127
    assert not q[1:].any() and scale[1, 0] == 0 and not scale[2:].isfinite().any()
    q, scale = quantize(x, Input("static", 0.01))
    assert q[0].tolist() == [100.0, -127.0, 50.0] and scale[:2, 0].tolist() == [scale[0, 0]] * 2
    assert not scale[2:].isfinite().any()
    assert quantize(torch.zeros(0, 3), DYNAMIC)[0].shape == (0, 3)


def test_gated_halves() -> None:
    weight = filled("int8", (1, 42, 30), "rows")
    x, bias = torch.randn(3, 30), torch.randn(42)
    gate, up = F.linear(x, weight.dense(0), bias).chunk(2, -1)
    torch.testing.assert_close(ops.gated_matmul.reference(x, weight, bias, FLOAT), F.silu(gate) * up)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_is_each_tokens_own_sum(kind: str) -> None:
    gate_up, down = filled(kind, (5, 24, 20), "rows"), filled(kind, (5, 20, 12), "rows")
    x, weights = torch.randn(6, 20) / 20, torch.rand(6, 2)
    chosen = torch.tensor([[0, 1], [1, 0], [4, 2], [2, 4], [1, 4], [0, 2]])  # nobody wants expert 3
    found = ops.mix.reference(x, weights, chosen, gate_up, down, FLOAT, FLOAT)
    for t in range(6):
        total = torch.zeros(20)
        for j in range(2):
            e = int(chosen[t, j])
            gate, up = (gate_up.dense(e) @ x[t]).chunk(2)
            total += weights[t, j] * (down.dense(e) @ (F.silu(gate) * up))
        torch.testing.assert_close(found[t], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_are_looked_up(kind: str, dtype: torch.dtype) -> None:
    weight = filled(kind, (1, 21, 30), "rows", group=8, zeros=True)
    tokens = torch.tensor([20, 3, 3, 0])
    assert torch.equal(ops.lookup.reference(tokens, weight, dtype), weight.dense(0)[tokens].to(dtype))
    assert ops.lookup.reference(tokens[:0], weight, dtype).shape == (0, 30)
