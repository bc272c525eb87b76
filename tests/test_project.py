"""What stands beside the package: the READMEs, the pages, and the script that makes the environment."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]

without_accelerator = pytest.mark.skipif(
    shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists(),
    reason="this machine has a GPU",
)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```$", text, flags=re.MULTILINE | re.DOTALL)


def shape(text: str) -> list[str]:
    """Headings by level and tables by their rows, in order."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [re.match(r"#+|\|", row)[0] for row in prose.splitlines() if row.startswith(("#", "|"))]  # type: ignore[index]


def test_the_two_readmes_are_in_step() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in PAGES[:2])
    assert blocks(english) == blocks(chinese)
    assert shape(english) == shape(chinese)
    assert re.findall(r"\]\((docs/[^)]*)\)", english) == re.findall(r"\]\((docs/[^)]*)\)", chinese)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost


def test_the_readme_names_only_commands_that_exist() -> None:
    from oneroof.cli.main import COMMANDS

    shown = re.findall(r"bin/oneroof (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown and set(shown) <= {name.split()[0] for name in COMMANDS}


PIP = """
echo "$@" >>"$(dirname "$0")/calls"
case "$*" in
*--index-url*) echo "ERROR: the index says no" >&2; echo >&2; exit ${INDEX:-1} ;;
*--dry-run*) echo "Would install $PLAN" ;;
*--editable*) echo "ERROR: no room is left" >&2; exit ${EDITABLE:-0} ;;
-) exit 1 ;;
esac
"""  # stands for .venv/bin/python: no torch is there, indices answer as the test wants


def environment(
    folder: Path, python: str, want: str = "core", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the environment's script in a copy that has nothing else, with an interpreter of our making."""
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "scripts" / "environment.sh", folder / "scripts")
    (folder / "pyproject.toml").write_text("")
    fake = folder / "python"
    script(fake, python)
    words = ["sh", str(folder / "scripts" / "environment.sh"), want]
    plain = {"PYTHON": str(fake), "PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(words, capture_output=True, text=True, env=plain)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def calls(folder: Path) -> str:
    return (folder / ".venv" / "bin" / "calls").read_text()


def test_an_old_python_is_told(tmp_path: Path) -> None:
    ran = environment(tmp_path / "a b", 'if [ "$1" = -V ]; then echo Python 3.9.2; else exit 1; fi')
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("environment: found Python 3.9.2; Python 3.11 or newer is needed;")


def test_a_missing_venv_module_is_told(tmp_path: Path) -> None:
    ran = environment(tmp_path / "a b", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    assert ran.returncode == 2
    assert "has no venv module" in ran.stderr and "python3-venv" in ran.stderr


@without_accelerator
def test_a_machine_without_a_gpu_gets_no_cuda(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    script(folder / ".venv" / "bin" / "python", PIP)
    ran = environment(folder, "exit 0", PLAN="torch-2.13.0 nvidia-cublas-12.9")
    assert ran.returncode == 2
    assert "the usual index would add CUDA; try TORCH_INDEX=URL" in ran.stderr
    assert "pytorch.org/whl/cpu: ERROR: the index says no (the rest is in .venv/pip.log)\n" in ran.stderr
    assert "--editable" not in calls(folder)


@without_accelerator
def test_the_usual_index_serves_where_it_holds_a_cpu_wheel(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    script(folder / ".venv" / "bin" / "python", PIP)
    assert environment(folder, "exit 0", PLAN="torch-2.13.0+cpu sympy-1.14").returncode == 0
    assert "--retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu" in calls(folder)
    assert "install torch==2.13.*" in calls(folder)
    before = calls(folder)
    assert environment(folder, "exit 0").returncode == 0
    assert calls(folder).removeprefix(before).strip() == "-c import pip"  # the second time nothing is done


def test_an_index_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    script(folder / ".venv" / "bin" / "python", PIP)
    assert environment(folder, "exit 0", TORCH_INDEX="https://host/torch", INDEX="0").returncode == 0
    assert "--index-url https://host/torch torch>=2.11,<2.16" in calls(folder)
    assert "download.pytorch.org" not in calls(folder)


@without_accelerator
@pytest.mark.parametrize(
    ("program", "prints", "gpu"),
    [
        ("nvidia-smi", "echo NVIDIA-SMI has failed; exit 9", False),
        ("nvidia-smi", "echo No devices found.", False),
        ("npu-smi", "exit 0", False),
        ("nvidia-smi", "[ $1 = -L ] && echo GPU 0: A card", True),
    ],
)
def test_only_a_gpu_that_answers_gets_cuda(tmp_path: Path, program: str, prints: str, gpu: bool) -> None:
    folder = tmp_path / "a b"
    script(folder / ".venv" / "bin" / "python", PIP)
    script(tmp_path / "bin" / program, prints)
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    assert environment(folder, "exit 0", PATH=path, PLAN="", INDEX="0").returncode == 0
    assert ("download.pytorch.org/whl/cpu" not in calls(folder)) is gpu


def test_pips_own_words_say_what_went_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    script(folder / ".venv" / "bin" / "python", PIP)
    ran = environment(folder, "exit 0", TORCH_INDEX="https://host/torch")
    assert ran.returncode == 2
    assert "could not be installed from https://host/torch: ERROR: the index says no (" in ran.stderr
    ran = environment(folder, "exit 0", TORCH_INDEX="https://host/torch", INDEX="0", EDITABLE="1")
    assert ran.returncode == 2
    assert "environment: oneroof could not be installed: ERROR: no room is left (" in ran.stderr
    assert not (folder / ".venv" / "oneroof-core").exists()


def test_a_folder_that_was_copied_or_moved_is_set_up_anew(tmp_path: Path) -> None:
    script(tmp_path / "first" / ".venv" / "bin" / "python", PIP)
    index = {"TORCH_INDEX": "https://host/torch", "INDEX": "0"}
    assert environment(tmp_path / "first", "exit 0", **index).returncode == 0
    second = Path(shutil.copytree(tmp_path / "first", tmp_path / "second"))
    assert environment(second, "exit 0", **index).returncode == 0
    assert calls(second).count("--editable") == 2
    script(second / ".venv" / "bin" / "pip", f'exec "{tmp_path}/first/.venv/bin/python" "$@"')
    venv = f"""case "$*" in *"-m venv --clear .venv")
        rm -r .venv; mkdir -p .venv/bin; cp "{tmp_path}/first/.venv/bin/python" .venv/bin ;;
        esac"""
    ran = environment(second, venv, **index)
    assert ran.returncode == 0 and "making .venv" in ran.stderr
    assert calls(second).count("--editable") == 1
    assert environment(second, "exit 1").returncode == 0  # now it is its own, and done


def test_another_folders_oneroof_in_the_environment_is_replaced(tmp_path: Path) -> None:
    script(tmp_path / ".venv" / "bin" / "python", PIP)
    index = {"TORCH_INDEX": "https://host/torch", "INDEX": "0"}
    link = tmp_path / ".venv/lib/python3.12/site-packages/oneroof.pth"
    link.parent.mkdir(parents=True)
    for place, times in ((tmp_path, 1), (tmp_path, 1), (tmp_path / "other", 2)):
        link.write_text(f"{place.resolve()}/src\n")
        assert environment(tmp_path, "exit 0", **index).returncode == 0
        assert calls(tmp_path).count("--editable") == times


CMAKE = """
echo "$@" >>"$(dirname "$0")/compiled"
echo "pool.cpp:1:1: error: the compiler says no"; exit ${BROKEN:-0}
"""
INDEX = {"TORCH_INDEX": "https://host/torch", "INDEX": "0"}


def with_kernels(folder: Path) -> Path:
    """An environment that is set up, and the C++ file in it; a program of ours stands for cmake."""
    script(folder / ".venv" / "bin" / "python", PIP)
    source = folder / "src" / "oneroof" / "ops" / "cpu" / "pool.cpp"
    source.parent.mkdir(parents=True)
    source.write_text("// the first\n")
    assert environment(folder, "exit 0", **INDEX).returncode == 0
    script(folder / "cmake", CMAKE)
    cache = folder / "build" / "native" / "CMakeCache.txt"
    cache.parent.mkdir(parents=True)
    cache.write_text(
        f"CMAKE_COMMAND:INTERNAL={folder}/cmake\nCMAKE_MAKE_PROGRAM:FILEPATH={folder}/cmake\n"
        f"CMAKE_HOME_DIRECTORY:INTERNAL={folder.resolve()}\n"
    )
    return source


def test_changed_kernels_are_compiled_and_nothing_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    source, compiled = with_kernels(folder), folder / "compiled"
    assert environment(folder, "exit 0").returncode == 0
    assert not compiled.exists()
    for name in ("pool.cpp", "another.h"):
        source.with_name(name).write_text("// the second\n")
        for _ in range(2):
            assert environment(folder, "exit 0").returncode == 0
    assert compiled.read_text() == "--build build/native --parallel 2\n" * 2
    assert environment(folder, "exit 0", "native").returncode == 0  # who asks gets it looked at
    assert compiled.read_text().count("--build") == 3
    assert calls(folder).count("--editable") == 1


def test_kernels_that_do_not_compile_are_told_until_they_do(tmp_path: Path) -> None:
    source = with_kernels(tmp_path)
    source.write_text("oh\n")
    for _ in range(2):
        ran = environment(tmp_path, "exit 0", BROKEN="1")
        assert ran.returncode == 2
        assert (
            "pool.cpp:1:1: error: the compiler says no\nenvironment: the native CPU kernels could"
            in ran.stderr
        )
    assert environment(tmp_path, "exit 0").returncode == 0


@pytest.mark.parametrize("gone", ["cmake", "build/native/CMakeCache.txt"])
def test_pip_compiles_the_kernels_where_it_brought_the_tools(tmp_path: Path, gone: str) -> None:
    source = with_kernels(tmp_path)
    source.write_text("// the second\n")
    (tmp_path / gone).unlink()
    assert environment(tmp_path, "exit 0").returncode == 0
    assert "-m pip install --no-deps --editable ." in calls(tmp_path)


def test_a_missing_compiler_is_told_and_looked_for_again(tmp_path: Path) -> None:
    source = with_kernels(tmp_path)
    source.with_name("native.txt").write_text("not built: no C++ compiler was found\n")
    ran = environment(tmp_path, "exit 0", "native")
    assert ran.returncode == 0
    assert "the native CPU kernels are not built: no C++ compiler was found; make native tries" in ran.stderr
    assert not (tmp_path / "build" / "native").exists()  # where CMake remembers that there is none
    assert "-m pip install --no-deps --editable ." in calls(tmp_path)


def test_the_script_and_the_project_admit_the_same_torch() -> None:
    texts = [
        (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "scripts/environment.sh")
    ]
    assert len({re.search(r"torch(>=[\d.]+,<[\d.]+)", text)[1] for text in texts}) == 1  # type: ignore[index]
