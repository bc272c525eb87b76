"""What the doctor finds on this machine, and what it advises."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch

from oneroof.audit import doctor
from oneroof.ops.cpu import library
from oneroof.ops.dispatch import served


def test_versions_devices_and_ops_are_found() -> None:
    sections = doctor.examine().sections
    assert sections["versions"]["torch"] == str(torch.__version__)
    assert sections["devices"]["auto"] in ("cpu", "cuda", "npu")
    assert sections["ops"] == served() and "attention" in sections["ops"]
    assert int(str(sections["memory"]["cpu total MiB"])) > 0


def test_what_is_at_work_among_the_native_kernels_is_told() -> None:
    sections = doctor.examine().sections
    assert sections["native kernels"] == library.status()
    assert "(" in str(sections["native kernels"]["at work"])  # with the reason


def test_an_installation_without_a_compiler_is_advised_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "native.txt").write_text("not built: no C++ compiler was found when oneroof was installed\n")
    monkeypatch.setenv("ONEROOF_CPU_LIBRARY", str(tmp_path / "liboneroof_cpu.so"))
    monkeypatch.setattr(library, "_choose", library._choose.__wrapped__)  # not kept for the next test
    assert any(
        "kernels are not built: no C++ compiler was found when oneroof was installed; install" in line
        for line in doctor.examine().advice
    )


def test_wrong_native_kernels_are_advised_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "status", lambda: {"avx2": "works", "avx512": library.WRONG})
    advice = [line for line in doctor.examine().advice if "native kernels for" in line]
    assert len(advice) == 1 and "for avx512 give wrong results here" in advice[0]


def test_a_missing_demo_model_is_advised_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "DEMO", tmp_path / "nothing")
    findings = doctor.examine()
    assert findings.sections["demo model"] == {"present": "no"}
    assert any("demo model is missing" in line for line in findings.advice)


def test_a_demo_model_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    monkeypatch.setattr(doctor, "DEMO", tmp_path)
    assert doctor.examine().sections["demo model"] == {"present": "yes", "folder": str(tmp_path), "bytes": 5}


def test_a_missing_library_is_advised_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "required", lambda: ("no-such-library",))
    assert any("no-such-library is not installed" in line for line in doctor.examine().advice)


def test_what_some_commands_need_is_listed_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "torch<2.16,>=2.11",
        "numpy<3,>=2.1",
        'no-such-library>=0.19; extra == "serve"',
        'pytest>=8.3; extra == "plot"',
        'ruff>=0.11; extra == "test"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: listed)
    assert doctor.required() == ("numpy",)
    findings = doctor.examine()
    versions = findings.sections["versions"]
    assert versions["no-such-library"] == "not there; pip install 'oneroof[serve]' brings it"
    assert versions["pytest"] == pytest.__version__
    assert "ruff" not in versions
    assert not any("no-such-library" in line for line in findings.advice)


def test_what_is_required_is_what_the_package_declares() -> None:
    """Not a list of its own, which would ask for what the core no longer needs."""
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "dependencies"
    ]
    assert sorted(("torch", *doctor.required())) == sorted(re.split("[<>=]", line)[0] for line in declared)
