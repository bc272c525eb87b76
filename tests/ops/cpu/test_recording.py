"""Recordings of native kernels: what they run is what ops give one by one, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import filled
from native_kernels import with_kernels
from torch import Tensor

from oneroof import ops
from oneroof.ops.cpu import backend
from oneroof.ops.cpu.recording import CpuRecording, _arrange, record
from oneroof.ops.matmul import FLOAT
from oneroof.ops.matrix import Matrix

pytestmark = with_kernels

ROWS, DIM = 12, 48
NORM = torch.rand(DIM)


@pytest.fixture(autouse=True, scope="module")
def _served() -> Iterator[None]:
    backend.install()
    weight()  # not while something is recorded
    yield
    ops.use("reference", None)


@cache
def weight() -> Matrix:
    return filled("int8", (1, 2 * DIM, DIM), "panels")


def body(x: Tensor) -> Tensor:
    total = x
    for _ in range(5):
        gated = ops.gated_matmul(ops.rms_norm(x, NORM, 1e-6), weight(), None, FLOAT)
        x, total = ops.add_rms_norm(gated, total, NORM, 1e-6)
    return ops.blend(x, total, ops.matmul(x, weight(), None, FLOAT, x.dtype)[:, 3:4])


def recorded() -> CpuRecording:
    weight()
    x = torch.empty(ROWS, DIM)
    made = record(lambda: body(x), (x, None), ROWS, ROWS)
    assert made is not None
    return made


def test_any_number_of_rows_to_the_bit() -> None:
    recording = recorded()
    for rows in (ROWS, 1, 5, 2, ROWS):
        x = torch.randn(rows, DIM)
        assert torch.equal(recording.run((x, None), rows, 0, 0), body(x))


def test_results_are_the_callers_own() -> None:
    recording, x = recorded(), torch.randn(2, DIM)
    first = recording.run((x, None), 2, 0, 0)
    kept = first.clone()
    recording.run((-x, None), 2, 0, 0)
    assert torch.equal(first, kept)


def test_memory_is_used_again() -> None:
    """Five rounds make 22 tensors; no more than five are alive at once."""
    assert recorded().nbytes <= 6 * ROWS * 2 * DIM * 4 + 64


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "around",
    [
        lambda x: body(x) + 1,
        lambda x: body(x.double().float()),
        lambda x: body(x).to(torch.float16),
        lambda x: body(x[:, ::2].contiguous().repeat(1, 2)),
        lambda x: body(x.t().reshape(ROWS, DIM)),
        lambda x: body(x).mul_(2),
        lambda x: x,  # made by no kernel
    ],
)
def test_what_is_no_kernel_is_not_recorded(around: Callable[[Tensor], Tensor], inference: bool) -> None:
    with torch.inference_mode(inference):
        x = torch.empty(ROWS, DIM)
        assert record(lambda: body(x), (x,), ROWS, ROWS) is not None
        assert record(lambda: around(x), (x,), ROWS, ROWS) is None


def test_nothing_is_computed_meanwhile() -> None:
    x, y = torch.zeros(ROWS, DIM), torch.full((ROWS, DIM), 7.0)
    qkv = torch.ones(ROWS, 3 * 16)

    def in_place() -> Tensor:
        angles = torch.empty(ROWS, 1, 16)
        ops.qk_norm_rope(qkv, 1, 1, None, None, 1e-6, angles, angles, False, None)
        return ops.blend(x, y, None)

    assert record(in_place, (x, y), ROWS, ROWS) is not None
    assert torch.equal(qkv, torch.ones(ROWS, 3 * 16))


def test_it_is_made_without_the_compiler() -> None:
    """Which takes seconds to import, before the first token."""
    program = (
        "import sys, torch, test_recording as t; t.backend.install(); t.recorded()\n"
        "assert not any(name.startswith('torch._dynamo') for name in sys.modules)"
    )
    folders = (Path(__file__).parent, Path(__file__).parents[2])
    places = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | places)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6), st.integers(1, 500)), min_size=0, max_size=25)
)
def test_what_is_in_use_together_lies_apart(buffers: list[tuple[int, int, int]]) -> None:
    lives = {i: (first, first + more) for i, (first, more, _) in enumerate(buffers)}
    sizes = {i: size for i, (_, _, size) in enumerate(buffers)}
    places, whole = _arrange(lives, sizes)
    for a, (first, last) in lives.items():
        assert places[a] % 64 == 0 and places[a] + sizes[a] <= whole
        for b in range(a):
            together = lives[b][0] <= last and lives[b][1] >= first
            apart = places[a] + sizes[a] <= places[b] or places[b] + sizes[b] <= places[a]
            assert apart or not together
