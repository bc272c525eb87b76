"""The native library: found beside this file, opened with ctypes, the best of its instruction sets chosen.

Which one works is found by running it in a child process: a CPU, or a hypervisor that says more than is
true, then kills the child and not us. The outcome is kept in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from oneroof import device, log
from oneroof.errors import UserError

_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c")
VARIANTS = {  # the instruction sets of CMakeLists.txt, and Linux's names of what each needs; best last
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": _AVX512,
    "avx512vnni": (*_AVX512, "avx512_vnni"),
    "avx512bf16": (*_AVX512, "avx512_vnni", "avx512_bf16"),
    "amx": (*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
}
WORKS = "works"
WRONG = "wrong results"
NOT_COMPILED = "not built: nothing was compiled when oneroof was installed"
BEST = "the best that works on this CPU"

_SECONDS = 20  # that a check may take; it takes milliseconds
_PROGRAM = f"""
import ctypes, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
check = ctypes.CDLL(sys.argv[1]).oneroof_check
for name in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        signal.alarm({_SECONDS})
        wrong = check(name.encode())  # 0: right; negative: the system does not allow it
        os._exit(0 if wrong == 0 else 1 if wrong > 0 else 2)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""  # a process for each set; only ctypes is imported, so that all of it takes a twentieth of a second


@dataclass(frozen=True)
class Native:
    """The opened library, with one of its instruction sets selected."""

    lib: ctypes.CDLL
    variant: str
    why: str


@dataclass(frozen=True)
class _Choice:
    native: Native | None
    why: str  # this one, or none
    found: dict[str, str]  # what the probe found of each instruction set


def native() -> Native | None:
    """The native kernels, chosen once a process; None where the references serve.

    Raises UserError where ONEROOF_CPU asks for what is unknown or does not work here.
    """
    return _choose().native


def status() -> dict[str, str]:
    """What is at work and why, where the library is, and what each instruction set was found to be."""
    try:
        choice = _choose()
    except UserError as error:
        choice = _Choice(None, str(error), {})
    used = choice.native.variant if choice.native else "the references"
    rows = {"at work": f"{used} ({choice.why})"}
    if library().exists():
        rows["library"] = f"{library()} ({_note() or 'nothing is known of its making'})"
        rows |= choice.found
    return rows


def library() -> Path:
    """Where the library is, or would be."""
    return device.native_library() or Path(__file__).with_name("liboneroof_cpu.so")


def missing() -> str:
    """Why there is no library, as it was noted when oneroof was installed; nothing where there is one."""
    if library().exists():
        return ""
    note = _note()
    return note if note.startswith("not built") else NOT_COMPILED


def _note() -> str:
    try:
        return library().with_name("native.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@cache
def _choose() -> _Choice:
    asked = device.native_kernels()
    allowed = ("auto", "reference", *VARIANTS)
    if asked not in allowed:
        raise UserError(
            f"ONEROOF_CPU {asked} is unknown; {', '.join(allowed)} are allowed; try ONEROOF_CPU=auto"
        )
    if asked == "reference":
        return _Choice(None, "ONEROOF_CPU asks for them", {})
    lib = missing() or _open(library())
    if isinstance(lib, str):
        if asked != "auto":
            raise UserError(
                f"ONEROOF_CPU {asked}: the native kernels are {lib}; auto and reference are allowed;"
                " try ONEROOF_CPU=auto, or install oneroof again where there is a C++ compiler"
            )
        return _Choice(None, f"the native kernels are {lib}", {})
    found = _probe(_compiled(lib), asked)
    working = [name for name in VARIANTS if found.get(name) == WORKS]
    if asked != "auto" and asked not in working:
        raise UserError(
            f"ONEROOF_CPU {asked}: {found.get(asked, 'not compiled')};"
            f" {', '.join(('auto', 'reference', *working))} are allowed; try ONEROOF_CPU=auto"
        )
    for name in reversed(working) if asked == "auto" else [asked]:
        if lib.oneroof_select(name.encode()) == 0:
            why = BEST if asked == "auto" else "ONEROOF_CPU asks for it"
            log.debug(f"native CPU kernels {name} ({why})")
            return _Choice(Native(lib, name, why), why, found)
    return _Choice(None, "no instruction set of the native kernels works on this CPU", found)


@cache
def _open(path: Path) -> ctypes.CDLL | str:
    """The library, or why it does not open."""
    try:
        lib = ctypes.CDLL(str(path))
        lib.oneroof_variants.restype = ctypes.c_char_p
        lib.oneroof_select.argtypes = [ctypes.c_char_p]
    except (OSError, AttributeError) as error:
        return f"not to be opened: {error}"
    return lib


def _compiled(lib: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(lib.oneroof_variants().decode().split())


def _probe(compiled: Sequence[str], asked: str) -> dict[str, str]:
    """What each of `VARIANTS` is on this CPU; those that it does not claim are tried only where asked for.

    A virtual machine may hide what would run today, because it moves to another CPU tomorrow.
    """
    found, tried = {}, []
    for name, needs in VARIANTS.items():
        lacks = device.lacking(needs)
        if name not in compiled:
            found[name] = "not compiled"
        elif lacks and name != asked:
            found[name] = f"not on this CPU: it has no {' '.join(lacks)}"
        else:
            tried.append(name)
    about = _about(tried)
    known = _recall(about, tried)
    if known is None:
        known = _run(tried)
        _remember(about, known)
    return {name: (found | known)[name] for name in VARIANTS}


def _run(names: Sequence[str]) -> dict[str, str]:
    """Check each instruction set in a process of its own."""
    words = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(library()), *names]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS * (len(names) + 1))
    except (OSError, subprocess.TimeoutExpired) as error:
        return dict.fromkeys(names, f"not tried: {error}")
    log.debug(f"the probe of the native kernels: {ran.stdout.split()} {ran.stderr}".rstrip())
    codes = dict(line.split() for line in ran.stdout.splitlines())
    return {name: _word(int(codes[name])) if name in codes else _silence(ran) for name in names}


def _word(code: int) -> str:
    if code >= 0:
        return {
            0: WORKS,
            1: WRONG,
            2: "not on this CPU: the system does not allow it",
        }.get(code, f"failed with status {code}")
    name = signal.Signals(-code).name
    return f"not on this CPU: killed by {name}" if name == "SIGILL" else f"killed by {name}"


def _silence(ran: subprocess.CompletedProcess[str]) -> str:
    last = ran.stderr.strip().rpartition("\n")[2]
    return f"not tried: the probe ended with status {ran.returncode} {last}".rstrip()


def _about(names: Sequence[str]) -> str:
    """What an outcome holds for: this library file, this CPU and its microcode, this kernel, these names."""
    file = library().stat()
    facts = [
        str(library()),
        str(file.st_mtime_ns),
        str(file.st_size),
        os.uname().release,
        device.cpu_identity(),
    ]
    return "\n".join([*facts, *names])


def _recall(about: str, names: Sequence[str]) -> dict[str, str] | None:
    """The outcome that was kept, if it is of the same facts and whole."""
    path = _kept()
    try:
        kept = json.loads(path.read_bytes()) if path else {}
        found = kept["found"]
        whole = kept["digest"] == _digest(about, found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(found) if whole and set(found) == set(names) else None


def _remember(about: str, found: dict[str, str]) -> None:
    """Keep the outcome for the next start; what could not be tried is tried again."""
    path = _kept()
    if path is None or any(word.startswith("not tried") for word in found.values()):
        return
    text = json.dumps({"found": found, "digest": _digest(about, found)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError as error:
        log.debug(f"{path} cannot be written ({error.strerror}); the next start probes the CPU again")


def _digest(about: str, found: object) -> str:
    return hashlib.sha256(json.dumps([about, found], sort_keys=True).encode()).hexdigest()


def _kept() -> Path | None:
    folder = device.cache_folder()
    return folder / "native.json" if folder else None
