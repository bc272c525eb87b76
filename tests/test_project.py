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
    any(shutil.which(name) for name in ("nvidia-smi", "npu-smi"))
    or any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/davinci0")),
    reason="this machine has an accelerator",
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
    assert shown and set(shown) <= set(COMMANDS)


PIP = """
echo "$@" >>"$(dirname "$0")/calls"
case "$*" in
*--index-url*) exit ${INDEX:-1} ;;
*--dry-run*) echo "Would install $PLAN" ;;
-) exit 1 ;;
esac
"""  # stands for .venv/bin/python: no torch is there, indices answer as the test wants


def environment(folder: Path, python: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's script in a copy that has nothing else, with an interpreter of our making."""
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "scripts" / "environment.sh", folder / "scripts")
    (folder / "pyproject.toml").write_text("")
    fake = folder / "python"
    script(fake, python)
    words = ["sh", str(folder / "scripts" / "environment.sh"), "core"]
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
    assert "would install CUDA packages; try TORCH_INDEX=URL" in ran.stderr
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


def test_the_script_and_the_project_admit_the_same_torch() -> None:
    texts = [
        (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "scripts/environment.sh")
    ]
    assert len({re.search(r"torch(>=[\d.]+,<[\d.]+)", text)[1] for text in texts}) == 1  # type: ignore[index]
