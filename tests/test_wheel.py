"""What a user gets from pip: the source distribution, the wheel, and an installation without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest

import oneroof
from oneroof.ops.cpu import library

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
MODEL = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
PLAIN = {
    name: value for name, value in os.environ.items() if not name.startswith(("ONEROOF_", "SKBUILD_", "LD_"))
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake to make wheels with"),
]


def pip(verb: str, *words: str, environment: Mapping[str, str] = PLAIN) -> None:
    """Run pip with what is installed here, without a network."""
    apart = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    words = (sys.executable, "-m", "pip", verb, *apart, *words)
    ran = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def doctor(installed: Path) -> str:
    """What `oneroof doctor` says of the package in this folder."""
    ran = subprocess.run(
        [sys.executable, "-m", "oneroof", "doctor"],
        check=True,
        capture_output=True,
        text=True,
        cwd=installed,
        env=PLAIN | {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(installed / "cache")},
    )
    return ran.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("sources")
    program = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    words = [sys.executable, "-c", program, str(folder)]
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT, env=PLAIN)
    return next(folder.glob("*.tar.gz"))


def unpacked(sources: Path, folder: Path) -> Path:
    with tarfile.open(sources) as archive:
        archive.extractall(folder, filter="data")
    return folder / sources.name.removesuffix(".tar.gz")


def test_the_sources_hold_what_is_compiled_and_the_demo_model(sources: Path) -> None:
    with tarfile.open(sources) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    room = ROOT / "src" / "oneroof" / "ops" / "cpu"
    native = [path for path in room.iterdir() if path.suffix in (".cpp", ".h")]
    assert native and {path.relative_to(ROOT).as_posix() for path in native} <= names
    assert {"CMakeLists.txt", "LICENSE", "README.md", "src/oneroof/py.typed"} <= names
    assert {f"src/oneroof/demo_model/{name}" for name in MODEL} <= names
    assert [name for name in names if name.endswith((".so", "native.txt"))] == []


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_a_wheel_for_every_python_and_torch_is_made_from_the_sources(sources: Path, tmp_path: Path) -> None:
    pip("wheel", "--wheel-dir", str(tmp_path), str(sources))
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.startswith(f"oneroof-{oneroof.__version__}-py3-none-linux_")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(
            archive.read(f"oneroof-{oneroof.__version__}.dist-info/METADATA").decode()
        )
        archive.extractall(tmp_path / "installed")
    assert {"oneroof/ops/cpu/liboneroof_cpu.so", "oneroof/ops/cpu/native.txt", "oneroof/py.typed"} <= names
    assert {"oneroof/__init__.pyi", *(f"oneroof/demo_model/{name}" for name in MODEL)} <= names
    assert [name for name in names if name.endswith((".cpp", ".h"))] == []
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert metadata["Version"] == oneroof.__version__
    shown = doctor(tmp_path / "installed")
    assert f"({library.BEST})" in shown and str(tmp_path / "installed" / "oneroof" / "ops") in shown


@pytest.mark.skipif(
    shutil.which("readelf") is None, reason="there is no readelf to look into the library with"
)
@pytest.mark.skipif(not library.library().exists(), reason=f"the native kernels are {library.missing()}")
def test_the_library_needs_the_system_only() -> None:
    ran = subprocess.run(["readelf", "-d", str(library.library())], capture_output=True, text=True)
    needed = [line.partition("[")[2].rstrip("]") for line in ran.stdout.splitlines() if "(NEEDED)" in line]
    system = ("libc.so", "libm.so", "libpthread.so", "libdl.so", "ld-linux")
    assert needed and [name for name in needed if not name.startswith(system)] == []


@pytest.mark.parametrize("lacking", ["what CXX names", "all of them"])
def test_without_a_compiler_the_package_installs_and_says_so(tmp_path: Path, lacking: str) -> None:
    environment = PLAIN | {"CXX": "/nothing/c++", "CC": "/nothing/cc"}
    if lacking == "all of them":
        environment = {name: value for name, value in PLAIN.items() if name not in ("CXX", "CC")}
        environment["PATH"] = str(tmp_path / "bin")
        (tmp_path / "bin").mkdir()
        for tool in ("cmake", "ninja"):
            if found := shutil.which(tool):
                (tmp_path / "bin" / tool).symlink_to(found)
    before = library.library().exists()
    installed = tmp_path / "installed"
    pip("install", "--target", str(installed), str(ROOT), environment=environment)
    assert library.library().exists() == before  # that of the checkout is left alone
    assert not (installed / "oneroof" / "ops" / "cpu" / "liboneroof_cpu.so").exists()
    shown = doctor(installed)
    told = "not built: no C++ compiler was found when oneroof was installed"
    assert f"the references (the native kernels are {told})" in shown
    assert f"! the native CPU kernels are {told}; install oneroof again where there is" in shown


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_kernels_that_do_not_compile_are_done_without(sources: Path, tmp_path: Path) -> None:
    folder = unpacked(sources, tmp_path)
    (folder / "src" / "oneroof" / "ops" / "cpu" / "variant.cpp").write_text(
        "#error this compiler is too old\n"
    )
    installed = tmp_path / "installed"
    pip("install", "--target", str(installed), str(folder))
    assert f"the native kernels are {library.NOT_COMPILED}" in doctor(installed)
