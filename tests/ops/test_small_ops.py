"""Norms, rotation, activation and mixture against their formulas written out."""

from __future__ import annotations

import sys

import pytest
import torch

from oneroof import ops
from oneroof.ops.mixture import mixture


def test_rms_norm_and_its_sum() -> None:
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    total = x + residual
    expected = total / torch.sqrt((total**2).mean(-1, keepdim=True) + 1e-6) * weight
    normed, summed = ops.add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(summed, total)
    torch.testing.assert_close(ops.rms_norm(total, weight, 1e-6), expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_turns_each_pair_by_its_angle(interleaved: bool) -> None:
    angle = torch.tensor([0.3, 1.1])
    x = torch.randn(1, 1, 4)
    pairs = [(0, 1), (2, 3)] if interleaved else [(0, 2), (1, 3)]
    cos, sin = torch.empty(1, 1, 4), torch.empty(1, 1, 4)
    expected = torch.empty(1, 1, 4)
    for turn, (a, b) in zip(angle, pairs, strict=True):
        cos[..., a], cos[..., b], sin[..., a], sin[..., b] = turn.cos(), turn.cos(), -turn.sin(), turn.sin()
        rotated = torch.complex(x[0, 0, a], x[0, 0, b]) * torch.polar(torch.tensor(1.0), turn)
        expected[..., a], expected[..., b] = rotated.real, rotated.imag
    torch.testing.assert_close(ops.rotate(x, cos, sin, interleaved), expected)


def test_swiglu_gates_with_the_first_half() -> None:
    x = torch.randn(2, 6)
    torch.testing.assert_close(ops.swiglu(x), x[:, :3] * torch.sigmoid(x[:, :3]) * x[:, 3:])


@pytest.mark.parametrize("width", [5, 16])  # rows of 20 bytes, and of 64 as the grouped product wants them
@pytest.mark.parametrize("tokens", [0, 1, 2, 17, 80])
@pytest.mark.parametrize("small", [True, False])  # of small experts, a few rows see all
def test_mixture_equals_the_loop_over_tokens(
    tokens: int, width: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts 0 and 5 are never chosen, expert 2 always."""
    if not small:
        monkeypatch.setattr(sys.modules["oneroof.ops.mixture"], "_better_dense", lambda *_: False)
    gate_up, down = torch.randn(6, 2 * width, 8), torch.randn(6, 8, width)
    x, weights = torch.randn(tokens, 8), torch.rand(tokens, 2)
    chosen = torch.stack([torch.full((tokens,), 2), torch.randint(3, 5, (tokens,))], 1)
    expected = torch.zeros(tokens, 8)
    for t in range(tokens):
        for j in range(2):
            e = int(chosen[t, j])
            expected[t] += weights[t, j] * (down[e] @ ops.swiglu(x[t : t + 1] @ gate_up[e].T)[0])
    torch.testing.assert_close(ops.mixture(x, weights, chosen, gate_up, down), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 3, 20, 80])
@pytest.mark.parametrize("small", [True, False])
def test_mixture_in_16_bits_is_near_float32(
    tokens: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(sys.modules["oneroof.ops.mixture"], "_better_dense", lambda *_: False)
    gate_up, down = torch.randn(6, 32, 8).bfloat16(), torch.randn(6, 8, 16).bfloat16()
    x, weights = torch.randn(tokens, 8).bfloat16(), torch.rand(tokens, 2)
    chosen = torch.stack([torch.randint(0, 3, (tokens,)), torch.randint(3, 6, (tokens,))], 1)
    expected = ops.mixture(x.float(), weights, chosen, gate_up.float(), down.float())
    found = ops.mixture(x, weights, chosen, gate_up, down)
    assert found.dtype == torch.bfloat16 and found.shape == (tokens, 8)
    assert (found.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("width", [3, 16])
def test_mixture_has_gradients_where_an_expert_is_idle(width: int) -> None:
    gate_up = torch.randn(4, 2 * width, 8, requires_grad=True)
    down = torch.randn(4, 8, width, requires_grad=True)
    x = torch.randn(5, 8, requires_grad=True)
    weights = torch.rand(5, 2, requires_grad=True)
    chosen = torch.tensor([[1, 2]] * 5)
    mixture(x, weights, chosen, gate_up, down).pow(2).sum().backward()
    for tensor in (gate_up, down, x, weights):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()
    assert gate_up.grad is not None and not gate_up.grad[0].any() and gate_up.grad[1].any()


def test_blend_adds_what_the_gate_lets_through() -> None:
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(ops.blend(x, y, None), x + y)
    gate = torch.tensor([[0.0], [100.0], [-100.0]])
    torch.testing.assert_close(ops.blend(x, y, gate), x + torch.tensor([[0.5], [1.0], [0.0]]) * y)


def test_route_chooses_with_the_bias_and_weighs_without() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]])
    weights, chosen, found = ops.route(p.log(), torch.tensor([[-1.0, 0.0, 0.5]]), 2, True, 1e-12)
    assert chosen.tolist() == [[2, 1]]
    torch.testing.assert_close(weights, torch.tensor([[0.4, 0.6]]))
    torch.testing.assert_close(found, p)
    weights, chosen, _ = ops.route(p.log(), None, 2, False, 0.0)
    assert chosen.tolist() == [[0, 1]]
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.3]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_linear_of_any_row_count(dtype: torch.dtype, rows: int) -> None:
    x, weight, bias = (
        torch.randn(rows, 16, dtype=dtype),
        torch.randn(7, 16, dtype=dtype),
        torch.randn(7, dtype=dtype),
    )
    expected = x.double() @ weight.double().T + bias.double()
    out = ops.linear(x, weight, bias)
    assert out.dtype == dtype and out.shape == (rows, 7)
    torch.testing.assert_close(
        out.double(), expected, rtol=2e-2, atol=5e-2 if dtype != torch.float32 else 1e-4
    )
