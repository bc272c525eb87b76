"""What this machine is, as oneroof sees it: versions, devices, CPU, memory, what serves each op, the demo.

It looks and measures nothing; whatever cannot be found out is said to be missing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import oneroof.ops  # noqa: F401  # the references, whose table `served` reads
from oneroof import device as devices
from oneroof.errors import UserError
from oneroof.hub import DEMO
from oneroof.ops.cpu import backend, library
from oneroof.ops.dispatch import served
from oneroof.report import source

_BESIDE = ("torch_npu", "triton", "transformers", "modelscope")  # of use where they are
_VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "ONEROOF_CPU",
    "ONEROOF_CPU_LIBRARY",
)
_MIB = 1 << 20

Rows = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Findings:
    """What was found, by section: a section's rows are name -> what is there."""

    sections: dict[str, Rows]
    advice: tuple[str, ...]  # what the user may want to mend, a line each


def examine() -> Findings:
    """Look at this machine and this installation. Takes a second, mostly torch's import.

    The native kernels are tried in a child process where that was not done before, and serve from then on.
    """
    native = False
    with suppress(UserError):  # ONEROOF_CPU asks for what is not there, which their status tells
        native = backend.install()
    threads = backend.threads() if native else torch.get_num_threads()
    sections: dict[str, Rows] = {
        "versions": _versions(),
        "devices": _devices(threads),
        "cpu": _cpu(native, threads),
        "memory": _memory(),
        "native kernels": {**library.status()},
        "ops": {**served()},
        "demo model": _demo(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    return Findings({name: rows for name, rows in sections.items() if rows}, tuple(_advice(sections)))


def _versions() -> Rows:
    rows: Rows = {
        "oneroof": f"{metadata.version('oneroof')} (commit {source()})" if _version("oneroof") else None,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "torch": str(torch.__version__),
    }
    rows |= {name: _version(name) for name in required()}
    for name, extra in optional().items():
        rows[name] = _version(name) or f"not there; pip install 'oneroof[{extra}]' brings it"
    return rows | {name: version for name in _BESIDE if (version := _version(name))}


def required() -> tuple[str, ...]:
    """The libraries that this installation says it needs, torch aside; nothing where it was not installed."""
    return tuple(name for name, extra in _declared() if not extra and name != "torch")


def optional() -> dict[str, str]:
    """The libraries that some commands need, and the extra of this package that brings each."""
    return {name: extra for name, extra in _declared() if extra not in ("", "test")}


def _declared() -> list[tuple[str, str]]:
    """The name of each library that this installation declares, and the extra that it belongs to, if one."""
    try:
        listed = metadata.requires("oneroof") or []
    except metadata.PackageNotFoundError:
        return []
    found = [re.match(r"([\w.-]+)[^;]*(?:;.*extra == ['\"]([\w-]+))?", line) for line in listed]
    return [(match[1], match[2] or "") for match in found if match]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices(threads: int) -> Rows:
    rows: Rows = {"auto": devices.available()[0]}
    for kind in devices.available():
        count = 1 if kind == "cpu" else torch.accelerator.device_count()
        for index in range(count):
            place = torch.device(kind) if kind == "cpu" else torch.device(kind, index)
            rows[str(place)] = devices.describe(place, threads)
    return rows


def _cpu(native: bool, threads: int) -> Rows:
    cores, why = devices.allowed_cores()
    quota = devices.cgroup_quota()
    return {
        "name": devices.cpu_name(),
        "features": " ".join(devices.cpu_features()) or "unknown",
        "bfloat16": ": ".join(devices.natural_dtype("bfloat16", torch.device("cpu"), native=native)),
        "cores online": os.cpu_count(),
        "cores allowed": f"{cores} ({why})",
        "cgroup quota": quota if quota is not None else "none",
        "threads": threads,
        "compiler": shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
    }


def _memory() -> Rows:
    rows: Rows = {}
    for kind in devices.available():
        room = devices.memory(torch.device(kind))
        rows[f"{kind} total MiB"], rows[f"{kind} free MiB"] = room.total // _MIB, room.free // _MIB
    return rows


def _demo() -> Rows:
    files = [path for path in _files(DEMO) if path.suffix == ".safetensors"]
    if not files:
        return {"present": "no"}
    return {"present": "yes", "folder": str(DEMO), "bytes": sum(path.stat().st_size for path in _files(DEMO))}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []


def _advice(sections: dict[str, Rows]) -> list[str]:
    lines = [
        f"{name} is not installed; pip install {name}"
        for name in required()
        if sections["versions"][name] is None
    ]
    if missing := library.missing():
        remedy = "install oneroof again where there is a C++ compiler (g++)"
        lines.append(f"the native CPU kernels are {missing}; {remedy}")
    lines += [
        f"the native kernels for {name} give {found} here and are left alone; please report it"
        for name, found in sections["native kernels"].items()
        if found == library.WRONG
    ]
    if sections["demo model"]["present"] == "no":
        lines.append("the demo model is missing; install oneroof again")
    if sections["devices"]["auto"] == "cpu" and shutil.which("nvidia-smi"):
        lines.append("there is an NVIDIA driver but this torch has no CUDA; install a CUDA build of torch")
    if sections["devices"]["auto"] != "npu" and Path("/dev/davinci0").exists():
        lines.append(
            "there is an Ascend NPU but torch_npu is not at work; pip install torch-npu that fits torch"
        )
    return lines
