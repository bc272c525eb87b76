"""The tile kernels of amx.h, over instructions that are emulated in C++: few machines have them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes import addressof
from pathlib import Path

import pytest
import torch
from native_kernels import with_kernels
from torch import Tensor

from oneroof import device
from oneroof.ops import matrix
from oneroof.ops.cpu import library, products
from oneroof.ops.cpu.structures import KINDS, Product
from oneroof.ops.matmul import DYNAMIC, FLOAT, Input
from oneroof.ops.matrix import LANES, Matrix

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "src" / "oneroof" / "ops" / "cpu"
COMPILER = shutil.which("g++")
FLAGS = (
    "-std=c++17 -shared -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -pthread"
    " -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mavx512vnni -mavx512bf16"
)
LACKING = " ".join(device.lacking(library.VARIANTS["avx512bf16"]))
STATIC = Input("static", 0.02)
HOW = {"float": 0, "dynamic": 1, "static": 2}

pytestmark = [
    with_kernels,
    pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the tiles with"),
    pytest.mark.skipif(bool(LACKING), reason=f"this CPU has no {LACKING}, which the rest is compiled for"),
]


def compiled(made: Path, *words: str) -> Path:
    """A library of these sources, beside those that every one has."""
    call = [str(COMPILER), *FLAGS.split(), f"-I{SOURCES}", "-o", str(made), *words]
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizer in g++
    ran = subprocess.run(call, capture_output=True, text=True, env=plain)
    if "unrecognized" in ran.stderr:
        pytest.skip(f"the compiler is too old: {ran.stderr.splitlines()[0]}")
    assert ran.returncode == 0, ran.stderr
    return made


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("amx") / "tiles.so"
    return ctypes.CDLL(str(compiled(made, "-O1", str(HERE / "amx_emulated.cpp"))))


@pytest.fixture
def loops() -> Iterator[None]:
    """The products of the package go through the dot instructions of VNNI meanwhile."""
    found = library.native()
    if found is None or library.status()["avx512vnni"] != library.WORKS:
        pytest.skip(f"avx512vnni is {library.status().get('avx512vnni', 'not there')}")
    found.lib.oneroof_select(b"avx512vnni")
    yield
    found.lib.oneroof_select(found.variant.encode())


def weight_of(kind: str, rows: int, dim: int, group: int = 0, zeros: bool = False) -> Matrix:
    made = matrix.empty(
        kind, rows, dim, layout="panels", device=torch.device("cpu"), group=group, zeros=zeros
    )
    if kind == "bfloat16":
        made.write(0, 0, torch.randn(rows, dim).bfloat16())
        return made
    low, high = (0, 16) if kind == "int4" else (-128, 128)
    values = torch.randint(low, high, (rows, dim), dtype=torch.int16)
    points = torch.randint(0, 16, (rows, made.groups), dtype=torch.uint8) if zeros else None
    made.write(0, 0, values, torch.rand(rows, made.groups) + 0.01, points)
    return made


def multiply(tiles: ctypes.CDLL, x_TK: Tensor, weight: Matrix, how: Input, at_once: int = 2) -> Tensor | None:
    """[T, N] in float32 by tiles, `at_once` panels in a task; None where tiles decline."""
    tokens, columns = x_TK.shape[0], -(-weight.rows // LANES) * LANES
    out = torch.full((tokens, columns), torch.nan)
    product = Product(
        *(products._weight(weight), x_TK.data_ptr(), out.data_ptr(), 0, tokens, x_TK.stride(0), columns),
        *(KINDS[x_TK.dtype], 0, HOW[how.kind], how.scale),
    )
    served = tiles.emulated_multiply(ctypes.c_void_p(addressof(product)), ctypes.c_int(at_once))
    return out[:, : weight.rows] if served else None


def by_loops(x_TK: Tensor, weight: Matrix, how: Input) -> Tensor:
    """The same by the package, with the fixture `loops`."""
    found = products.matmul(x_TK, weight, None, how, torch.float32)
    assert isinstance(found, Tensor)
    return found


SHAPES = [  # inputs, group
    (896, 0),
    (72, 0),
    (1020, 0),
    (5, 0),
    (256, 32),
    (200, 64),  # a last group of 8
    (104, 40),
    (1000, 128),
    (52, 24),
]


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("how", [FLOAT, DYNAMIC, STATIC], ids=lambda how: how.kind)
@pytest.mark.parametrize(("dim", "group"), SHAPES)
@pytest.mark.parametrize("kind", ["int8", "int4", "int4 zeros"])
def test_whole_numbers_have_the_bits_of_the_other_loops(
    tiles: ctypes.CDLL, kind: str, dim: int, group: int, how: Input
) -> None:
    torch.manual_seed(dim + group)
    weight = weight_of(kind.split()[0], 90, dim, group, kind.endswith("zeros"))  # five panels and a part
    for tokens, at_once, dtype in ((5, 6, torch.float32), (16, 2, torch.bfloat16), (33, 1, torch.float32)):
        x = torch.randn(tokens, dim + 3).to(dtype)[:, :dim]
        found = multiply(tiles, x, weight, how, at_once)
        assert found is not None and torch.equal(found, by_loops(x, weight, how))


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("tokens", [17, 31, 32, 48, 70])
def test_every_number_of_rows(tiles: ctypes.CDLL, tokens: int) -> None:
    weight = weight_of("int8", 48, 320, 64)
    x = torch.randn(tokens, 320)
    x[3, 5], x[7, 300], x[11] = torch.nan, torch.inf, 0
    for how in (FLOAT, DYNAMIC):
        found, expected = multiply(tiles, x, weight, how), by_loops(x, weight, how)
        assert found is not None and torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
        assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.usefixtures("loops")
def test_the_largest_sums(tiles: ctypes.CDLL) -> None:
    """Beyond what a float32 holds exactly."""
    weight = weight_of("int8", 16, 8192)
    weight.write(0, 0, torch.full((16, 8192), -128), torch.ones(16, 1))
    x = torch.ones(6, 8192)
    found = multiply(tiles, x, weight, FLOAT)
    assert found is not None and torch.equal(found, by_loops(x, weight, FLOAT))
    torch.testing.assert_close(found, torch.full((6, 16), -128.0 * 8192))


def test_few_rows_of_whole_numbers_are_left_to_the_other_loops(tiles: ctypes.CDLL) -> None:
    assert multiply(tiles, torch.randn(4, 64), weight_of("int8", 16, 64), FLOAT) is None


@pytest.mark.parametrize("dim", [896, 72, 100, 31, 1020])
def test_a_row_of_bfloat16_has_the_same_bits_beside_any_others(tiles: ctypes.CDLL, dim: int) -> None:
    torch.manual_seed(dim)
    weight = weight_of("bfloat16", 40, dim)
    x = torch.randn(50, dim + 2).bfloat16()[:, :dim]
    found = multiply(tiles, x, weight, FLOAT)
    assert found is not None
    exact = x.double() @ weight.read(0, 0, 40).double().t()
    scale = x.double().abs() @ weight.read(0, 0, 40).double().abs().t()
    assert ((found - exact).abs() <= 2e-7 * dim**0.5 * scale).all()
    for first, count, at_once in ((0, 1, 3), (49, 1, 2), (7, 3, 1), (20, 16, 3), (5, 17, 2), (13, 33, 1)):
        part = multiply(tiles, x[first : first + count], weight, FLOAT, at_once)
        assert part is not None and torch.equal(part, found[first : first + count])


def test_a_weight_without_a_length_of_blocks_is_left_to_the_other_loops(tiles: ctypes.CDLL) -> None:
    """Whatever the rows: 101 pairs are no multiple of a number from 4 to 16."""
    weight = weight_of("bfloat16", 16, 202)
    for tokens in (1, 16, 40):
        assert multiply(tiles, torch.randn(tokens, 202).bfloat16(), weight, FLOAT) is None


def test_the_rounding_of_bfloat16_is_the_manuals(tiles: ctypes.CDLL) -> None:
    """Even and odd inputs of a block have sums of their own, which meet before they are added to the chain.

    Denormal numbers are 0.
    """
    weight = weight_of("bfloat16", 16, 64)
    weight.write(0, 0, torch.ones(16, 64).bfloat16())
    x = torch.zeros(3, 64).bfloat16()
    x[0, 0], x[0, 1], x[0, 2], x[0, 3] = 2.0**24, -(2.0**24), 1, 1  # 2^24 + 1 is 2^24, -2^24 + 1 is exact
    x[1, 0], x[1, 32], x[1, 34] = 2.0**24, 1, 1  # the second block's 2 comes at once
    x[2, 0] = 2.0**-130
    found = multiply(tiles, x, weight, FLOAT)
    assert found is not None
    assert found[:, 0].tolist() == [1.0, 2.0**24 + 2, 0.0]


@pytest.mark.slow
def test_the_whole_variant(tmp_path: Path) -> None:
    """The library with this one instruction set, emulated, passes what the others do; a minute to compile."""
    define = ("-DONEROOF_EMULATE_AMX", "-DONEROOF_VARIANT=amx", "-DONEROOF_EACH_VARIANT=X(amx)")
    made = compiled(tmp_path / "liboneroof_cpu.so", "-O1", *define, *map(str, sorted(SOURCES.glob("*.cpp"))))
    asked = {"ONEROOF_CPU_LIBRARY": str(made), "ONEROOF_CPU": "amx", "XDG_CACHE_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "pytest", "-q", "-k", "amx", str(HERE / "test_products.py")]
    ran = subprocess.run(
        words, env=os.environ | asked, capture_output=True, text=True, cwd=HERE.parents[2], timeout=1800
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert " passed" in ran.stdout
