"""Who serves an op: a backend where it may, the reference everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from oneroof import ops
from oneroof.ops import dispatch


@pytest.fixture
def backend() -> Iterator[ModuleType]:
    """A module that answers `swiglu` with ones, except where the dtype is float64."""
    module = ModuleType("fake")

    def swiglu(gate_up: Tensor) -> Tensor:
        if gate_up.dtype == torch.float64:
            return NotImplemented
        return torch.ones(gate_up.shape[0], gate_up.shape[1] // 2)

    module.swiglu = swiglu  # type: ignore[attr-defined]
    dispatch.use("fake", module)
    yield module
    dispatch.use("reference", None)


def test_a_backend_serves_and_is_listed(backend: ModuleType) -> None:
    assert ops.swiglu(torch.zeros(2, 4)).sum() == 4
    assert ops.served()["swiglu"] == "fake" and ops.served()["rms_norm"] == "reference"


def test_not_implemented_falls_back(backend: ModuleType) -> None:
    assert ops.swiglu(torch.zeros(2, 4, dtype=torch.float64)).sum() == 0


def test_wanting_a_gradient_falls_back(backend: ModuleType) -> None:
    x = torch.randn(2, 4, requires_grad=True)
    ops.swiglu(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_a_differentiable_backend_keeps_serving(backend: ModuleType) -> None:
    backend.swiglu.differentiable = True
    dispatch.use("fake", backend)
    assert ops.swiglu(torch.zeros(2, 4, requires_grad=True)).sum() == 4


def test_compilation_sees_the_reference(backend: ModuleType) -> None:
    compiled = torch.compile(lambda x: ops.swiglu(x), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2, 4)).sum() == 0


def test_none_restores_the_references(backend: ModuleType) -> None:
    dispatch.use("reference", None)
    assert set(ops.served().values()) == {"reference"}
