"""Products with plain weights where gradients are wanted: near float64, the same bits at any number of
threads, and a training run that goes where the references' goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import Structure
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import threads, with_kernels
from reference import prompts
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from oneroof import load, ops
from oneroof.batch import pack
from oneroof.models.decoder import Decoder
from oneroof.ops.cpu import backend, gemm, library, training

pytestmark = [with_kernels, pytest.mark.usefixtures("variant")]

UNIT = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half a last place, relative
floats = st.sampled_from(tuple(UNIT))
sizes = st.sampled_from([1, 2, 5, 16, 31, 33, 64, 100, 257])
Made = Callable[..., Path]
LEFT_TO_TORCH = training._left_to_torch


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_to_torch() -> Iterator[None]:
    """Kernels are tested also where torch would be as quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_left_to_torch", lambda dtype: False)
        yield


@contextmanager
def served() -> Iterator[None]:
    """The native backend meanwhile, as a program would have it."""
    assert backend.install()
    try:
        yield
    finally:
        ops.use("reference", None)


def near(found: Tensor, exact: Tensor, terms: Tensor, dtype: torch.dtype) -> None:
    """A sum in float32, rounded to `dtype`, is `exact`; `terms` is the sum of its terms' sizes."""
    assert found.dtype == dtype and found.shape == exact.shape
    small = 1e-6 if dtype == torch.float16 else 1e-30  # below its normal numbers
    wrong = (found.double() - exact).abs() - (3e-6 * terms + 1.01 * UNIT[dtype] * exact.abs() + small)
    assert not wrong.numel() or float(wrong.max()) <= 0


def laid(x: Tensor, how: str) -> Tensor:
    """The same numbers: one after the other, with gaps between rows, or column by column."""
    if how == "gaps":
        return torch.cat([x, x.new_full((x.shape[0], 3), torch.nan)], 1)[:, : x.shape[1]]
    return x.t().contiguous().t() if how == "columns" else x


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 7, 12, 50, 130]),
    dim=sizes,
    width=sizes,
    dtype=floats,
    how=st.sampled_from(["plain", "gaps", "columns"]),
    back=st.sampled_from(["plain", "gaps", "columns"]),
    biased=st.booleans(),
)
def test_a_product_and_its_gradients(
    tokens: int, dim: int, width: int, dtype: torch.dtype, how: str, back: str, biased: bool
) -> None:
    x = laid(torch.randn(tokens, dim).to(dtype), how).requires_grad_()
    weight = torch.randn(width, dim).to(dtype).requires_grad_()
    bias = torch.randn(width).to(dtype).requires_grad_() if biased else None
    dy = laid(torch.randn(tokens, width).to(dtype), back)
    y = training.linear(x, weight, bias)
    assert isinstance(y, Tensor)
    y.backward(dy)
    a, b, d = x.detach().double(), weight.detach().double(), dy.double()
    extra = bias.detach().double() if bias is not None else torch.zeros(width)
    near(y.detach(), a @ b.t() + extra, a.abs() @ b.abs().t() + extra.abs(), dtype)
    assert x.grad is not None and weight.grad is not None
    near(x.grad, d @ b, d.abs() @ b.abs(), dtype)
    near(weight.grad, d.t() @ a, d.t().abs() @ a.abs(), dtype)
    if bias is not None:
        assert bias.grad is not None
        near(bias.grad, d.sum(0), d.abs().sum(0), dtype)


def test_long_sums_and_many_rows() -> None:
    """More than one block of K, and more than one band of rows."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1700, 1300).to(dtype).requires_grad_()
        weight = torch.randn(70, 1300).to(dtype).requires_grad_()
        y = training.linear(x, weight, None)
        assert isinstance(y, Tensor)
        a, b = x.detach().double(), weight.detach().double()
        near(y.detach(), a @ b.t(), a.abs() @ b.abs().t(), dtype)
        y.backward(y.detach())
        assert x.grad is not None and weight.grad is not None
        d = y.detach().double()
        near(x.grad, d @ b, d.abs() @ b.abs(), dtype)
        near(weight.grad, d.t() @ a, d.abs().t() @ a.abs(), dtype)


class Experts:
    """Inputs of a mixture in some dtype; experts above `alive` are chosen by nobody."""

    def __init__(
        self, tokens: int, dim: int, width: int, experts: int, k: int, dtype: torch.dtype, alive: int = 0
    ) -> None:
        self.x = torch.randn(tokens, dim).to(dtype)
        self.weights = torch.rand(tokens, k)
        scores = torch.rand(tokens, experts)
        if alive:
            scores[:, alive:] = -1
        self.chosen = scores.topk(k, dim=-1).indices
        self.gate_up = (torch.randn(experts, 2 * width, dim) * dim**-0.5).to(dtype)
        self.down = (torch.randn(experts, dim, width) * width**-0.5).to(dtype)
        self.dy = torch.randn(tokens, dim).to(dtype)

    def run(
        self, op: Callable[..., object], dtype: torch.dtype | None = None, wanted: str = "xwgd"
    ) -> dict[str, Tensor]:
        """What `op` gives, and the gradients that are wanted."""
        given = {"x": self.x, "w": self.weights, "g": self.gate_up, "d": self.down}
        leaves = {
            name: t.detach().to(dtype or t.dtype).requires_grad_(name in wanted) for name, t in given.items()
        }
        y = op(leaves["x"], leaves["w"], self.chosen, leaves["g"], leaves["d"])
        assert isinstance(y, Tensor)
        y.backward(self.dy.to(y.dtype))
        return {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def one_by_one(x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The mixture in whatever dtype, pair by pair of a token and its expert."""
    gate, up = torch.einsum("td,tkfd->tkf", x, gate_up[chosen]).chunk(2, dim=-1)
    hidden = torch.nn.functional.silu(gate) * up * weights[..., None]
    return torch.einsum("tkf,tkdf->td", hidden, down[chosen])


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 3, 40, 150]),
    dim=st.sampled_from([1, 16, 33, 100]),
    width=st.sampled_from([1, 12, 32, 70]),
    experts=st.sampled_from([1, 4, 9]),
    k=st.sampled_from([1, 2, 4]),
    dtype=floats,
)
def test_a_mixture_and_its_gradients(
    tokens: int, dim: int, width: int, experts: int, k: int, dtype: torch.dtype
) -> None:
    case = Experts(tokens, dim, width, experts, min(k, experts), dtype)
    found, exact = case.run(training.mixture), case.run(one_by_one, torch.float64)
    assert found.keys() == exact.keys()
    tolerance = (
        2e-6 if dtype == torch.float32 else 5 * UNIT[dtype]
    )  # of the largest number, or what may cancel
    for name, value in found.items():
        assert value.dtype == (torch.float32 if name == "w" else dtype)
        most = float(exact[name].abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(value.double(), exact[name], rtol=0, atol=tolerance * (most + dim**0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_no_further_from_the_truth_than_the_references(dtype: torch.dtype) -> None:
    case = Experts(200, 96, 64, 8, 2, dtype)
    found, reference = case.run(training.mixture), case.run(ops.mixture.reference)
    for name, exact in case.run(one_by_one, torch.float64).items():
        ours, theirs = (float((r[name].double() - exact).norm()) for r in (found, reference))
        assert ours <= 1.02 * theirs, name


@pytest.mark.parametrize("wanted", ["".join(c) for n in (1, 2, 3) for c in itertools.combinations("xwgd", n)])
def test_only_the_gradients_that_are_wanted(wanted: str) -> None:
    torch.manual_seed(0)
    case = Experts(30, 32, 16, 4, 2, torch.float32)
    every, some = case.run(training.mixture), case.run(training.mixture, wanted=wanted)
    assert some.keys() == {"y", *wanted}
    assert all(torch.equal(some[name], every[name]) for name in some)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradient_of_a_product_that_is_wanted(wanted: tuple[bool, bool, bool]) -> None:
    given = [torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)]
    every = [t.clone().requires_grad_() for t in given]
    some = [t.clone().requires_grad_(w) for t, w in zip(given, wanted, strict=True)]
    for inputs in (every, some):
        y = training.linear(*inputs)
        assert isinstance(y, Tensor)
        y.sum().backward()  # whose gradient is one number, spread
    for one, same, kept in zip(some, every, wanted, strict=True):
        assert one.grad is None if not kept else torch.equal(one.grad, same.grad)  # type: ignore[arg-type]


def test_an_expert_that_nobody_chose_learns_nothing() -> None:
    found = Experts(20, 16, 8, 6, 2, torch.float32, alive=3).run(training.mixture)
    for name in "gd":
        assert found[name][3:].count_nonzero() == 0 and found[name][:3].count_nonzero() > 0


def test_bits_do_not_depend_on_threads_or_on_other_rows() -> None:
    torch.manual_seed(0)
    case = Experts(300, 128, 80, 6, 2, torch.bfloat16)
    x, weight = torch.randn(300, 700), torch.randn(290, 700).requires_grad_()

    def everything() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = training.linear(leaf, weight, None)
        assert isinstance(y, Tensor)
        return [
            *case.run(training.mixture).values(),
            y,
            *torch.autograd.grad(y.square().sum(), (leaf, weight)),
        ]

    with threads(1):
        expected = everything()
    for count in (2, 3):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))
    y = training.linear(x, weight, None)
    assert isinstance(y, Tensor)
    for rows in (slice(0, 1), slice(7, 20), slice(299, 300)):
        part = training.linear(x[rows], weight, None)
        assert isinstance(part, Tensor) and torch.equal(part, y[rows])


def test_a_weight_that_is_used_twice() -> None:
    weight = torch.randn(24, 24).requires_grad_()
    x = torch.randn(9, 24)
    found = []
    for op in (training.linear, ops.linear.reference):
        y = op(op(x, weight, None), weight, None)  # type: ignore[operator]
        found += torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_may_be_made_again(reentrant: bool) -> None:
    torch.manual_seed(0)
    case = Experts(30, 32, 16, 4, 2, torch.float32)
    with served():
        plain = case.run(ops.mixture)
        again = case.run(lambda *given: recompute(ops.mixture, *given, use_reentrant=reentrant))
    for name, value in plain.items():
        if reentrant:  # at first no gradient is wanted: the reference's numbers
            torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(again[name], value)


def test_there_is_no_second_gradient() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    y = training.linear(x, weight, None)
    assert isinstance(y, Tensor)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_what_is_declined() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4).requires_grad_(), torch.randn(5)
    assert isinstance(training.linear(x, weight, bias), Tensor)
    assert training.linear(x, weight.detach(), bias) is NotImplemented
    assert training.linear(x.double(), weight.double(), None) is NotImplemented
    assert training.linear(x.bfloat16(), weight, None) is NotImplemented
    assert training.linear(x[:, :3], weight, None) is NotImplemented
    assert training.linear(x, weight, bias[:4]) is NotImplemented
    with torch.no_grad():
        assert training.linear(x, weight, None) is NotImplemented
    with torch.autocast("cpu", torch.bfloat16):
        assert training.linear(x, weight, None) is NotImplemented
    case = Experts(3, 4, 4, 2, 1, torch.float32)
    gate_up = case.gate_up.requires_grad_()
    assert training.mixture(case.x, case.weights, case.chosen, gate_up[:, :6], case.down) is NotImplemented
    assert training.mixture(case.x, case.weights[:2], case.chosen, gate_up, case.down) is NotImplemented
    with pytest.raises(IndexError, match=r"0 \.\. 1"):
        training.mixture(case.x, case.weights, case.chosen + 2, gate_up, case.down)


@pytest.mark.parametrize(("name", "left"), [("avx2", False), ("avx512bf16", True), ("amx", True)])
def test_bfloat16_is_left_to_torch_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, name: str, left: bool
) -> None:
    found = library.native()
    assert found is not None
    monkeypatch.setattr(training, "native", lambda: replace(found, variant=name))
    monkeypatch.setattr(training, "_left_to_torch", LEFT_TO_TORCH)
    x, weight = torch.randn(3, 4), torch.randn(5, 4).requires_grad_()
    assert isinstance(training.linear(x, weight, None), Tensor)
    half = training.linear(x.bfloat16(), weight.bfloat16(), None)
    assert (half is NotImplemented) == left


def test_the_backend_serves_where_a_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Size] = []
    product = training.product
    monkeypatch.setattr(training, "product", lambda a, *rest: (asked.append(a.shape), product(a, *rest))[1])
    x, weight = torch.randn(3, 4), torch.randn(5, 4).requires_grad_()
    with served():
        ops.linear(x, weight.detach(), None)
        assert asked == []
        ops.linear(x, weight, None).sum().backward()
        assert asked == [(3, 4), (5, 3)]


def losses(decoder: Decoder, steps: int) -> list[float]:
    """Of a few dozen steps on a few texts that are always the same."""
    texts = prompts([33, 17, 1, 40], vocabulary=decoder.config.vocabulary)
    batch = pack(texts)
    targets = torch.cat([torch.tensor([*text[1:], text[0]]) for text in texts])
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(decoder.logits(decoder(batch)).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def fresh(folder: Path, dtype: str) -> Decoder:
    """A plain decoder whose weights may all be trained."""
    decoder = load(folder, dtype=dtype, plain=True).model
    for parameter in decoder.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return decoder


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [
        ("qwen2", "float32", 1e-4),
        ("qwen3_moe", "float32", 1e-4),
        ("qwen2", "bfloat16", 0.05),
        ("qwen3_moe", "bfloat16", 0.3),  # a choice of experts that tips over is a step of its own
    ],
)
def test_a_run_goes_where_the_references_go(
    checkpoint: Made, monkeypatch: pytest.MonkeyPatch, family: str, dtype: str, tolerance: float
) -> None:
    """Losses of 30 steps of AdamW, each within `tolerance` nats of the references'."""
    products = 0

    def counted(name: str, given: Structure) -> None:
        nonlocal products
        products += 1
        call(name, given)

    call = gemm._call
    monkeypatch.setattr(gemm, "_call", counted)
    folder = checkpoint(family)
    expected = losses(fresh(folder, dtype), 30)
    assert expected[0] > 8 and expected[-1] < 0.1 and products == 0
    with served():
        found = losses(fresh(folder, dtype), 30)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=tolerance)
    assert found[-1] < 0.1 and products > 30 * 4 * 3
