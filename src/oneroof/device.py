"""CPU, NVIDIA GPU and Ascend NPU behind one face: which device, what number format, how many threads.

Whatever is asked as `auto` is resolved here, in one place, and what was chosen is logged with the reason.
Environment variables about devices are read here and nowhere below.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from oneroof import log
from oneroof.errors import UserError

Int64s = npt.NDArray[np.int64]

KINDS = ("cpu", "cuda", "npu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FEATURES = (  # what a CPU may have that our work is quick with, by the names of /proc/cpuinfo
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Memory:
    """Of a device, in bytes."""

    total: int
    free: int  # what a new process could still take


def available() -> tuple[str, ...]:
    """The kinds of device that this process can use; `cpu` is always the last."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator is not None else "cpu"
    return (found, "cpu") if found in KINDS[1:] else ("cpu",)


def resolve(name: str) -> torch.device:
    """The device of `name`: auto, cpu, cuda or npu, with an index or without (`cuda:1`).

    Raises UserError for another word, for a device that is not there, and for an index beyond the last.
    """
    here = available()
    if name == "auto":
        why = "the accelerator of this machine" if here[0] != "cpu" else "there is no accelerator"
        log.info(f"device {here[0]} (auto: {why})")
        return torch.device(here[0])
    kind, _, index = name.partition(":")
    if kind not in KINDS or (index and not index.isdecimal()):
        raise UserError(f"device {name} is unknown; auto, {', '.join(KINDS)} are allowed; try --device auto")
    if kind not in here:
        raise UserError(
            f"device {kind} is not on this machine; {' and '.join(here)} can be used; try --device {here[0]}"
        )
    if index and kind != "cpu" and int(index) >= torch.accelerator.device_count():
        count = torch.accelerator.device_count()
        raise UserError(
            f"device {name} is beyond the {count} of this machine; 0 to {count - 1} are allowed; try {kind}:0"
        )
    return torch.device(name if kind != "cpu" else "cpu")


def resolve_dtype(name: str, stored: str, device: torch.device, *, native: bool = False) -> torch.dtype:
    """The number format `name` (auto, float32, bfloat16, float16), of a checkpoint in `stored`, on `device`.

    `auto` keeps the checkpoint's where the device computes in it natively, and says why where it does not.
    `native`: the CPU kernels serve, which read 16-bit numbers at the memory's rate on any CPU.
    """
    if name not in ("auto", *DTYPES):
        raise UserError(f"dtype {name} is unknown; auto, {', '.join(DTYPES)} are allowed; try --dtype auto")
    if name != "auto":
        return DTYPES[name]
    chosen, why = natural_dtype(stored, device, native=native)
    log.info(f"dtype {chosen} (auto: {why})")
    return DTYPES[chosen]


def natural_dtype(stored: str, device: torch.device, *, native: bool = False) -> tuple[str, str]:
    """The number format that a checkpoint in `stored` is best run in on `device`, and why."""
    if stored == "float32":
        return "float32", "the checkpoint's"
    if device.type == "cpu":
        if native:
            return stored, "the checkpoint's, which the native kernels read as it is"
        if stored == "float16":
            return "float32", "the checkpoint's float16 is slow on a CPU"
        if _NATIVE_BFLOAT16.isdisjoint(cpu_features()):
            return "float32", "this CPU has no bfloat16 instructions"
        return stored, "the checkpoint's, and this CPU has instructions for it"
    if stored == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "float16", "this GPU has no bfloat16 arithmetic"
    return stored, "the checkpoint's"


def allowed_cores() -> tuple[int, str]:
    """How many CPU threads this process may keep busy, and what limits it: affinity or a cgroup's quota."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    if quota is not None and quota < mask:
        return max(1, int(quota)), f"the cgroup's quota of {quota:g} cores"
    return mask, f"the affinity mask of {mask} cores"


def use_threads(threads: int | Literal["auto"]) -> int:
    """Set the CPU threads of one operation for this process, and return how many.

    `auto` takes OMP_NUM_THREADS where it is set, else what the machine allows this process.
    """
    if threads == "auto":
        asked = os.environ.get("OMP_NUM_THREADS", "")
        cores, why = (int(asked), "OMP_NUM_THREADS") if asked.isdecimal() and int(asked) else allowed_cores()
        log.debug(f"threads {cores} (auto: {why})")
    else:
        if threads < 1:
            raise UserError(f"threads {threads} was asked; 1 or more is allowed; try --threads auto")
        cores = threads
    if cores != torch.get_num_threads():
        torch.set_num_threads(cores)
    return cores


def bind_threads(threads: int) -> str:
    """Keep this process on the cores of one NUMA node if they are enough for `threads`; says what was done.

    Threads that wander between nodes read weights from far memory. The node is the one that the system put
    this process on, or else the first with enough cores. Never a core outside the affinity mask, and nothing
    happens where the mask lies in one node or more threads are wanted than a node has cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return "not bound: this system has no affinity masks"
    mask = os.sched_getaffinity(0)
    nodes = [cores for node in numa_nodes() if (cores := node & mask)]
    if len(nodes) < 2:
        return f"not bound: the affinity mask of {len(mask)} cores lies in one NUMA node"
    here = _last_core()
    enough = sorted((cores for cores in nodes if len(cores) >= threads), key=lambda cores: here not in cores)
    if not enough:
        return f"not bound: {threads} threads are more than a NUMA node's cores"
    said = bind_to(enough[0])
    return f"{said} of one NUMA node" if said.startswith("bound") else said


def cores_of_rank(rank: int, ranks: int) -> set[int]:
    """The cores of one of `ranks` on this machine: the affinity mask shared out, node by node.

    Where there are fewer cores than ranks, some have the same one. Empty where there are no masks.
    """
    if not hasattr(os, "sched_getaffinity"):
        return set()
    mask = os.sched_getaffinity(0)
    nodes = [sorted(node & mask) for node in numa_nodes() if node & mask] or [sorted(mask)]
    row = [core for node in nodes for core in node]
    row += sorted(mask - set(row))
    if len(row) < ranks:
        return {row[rank % len(row)]}
    return set(row[len(row) * rank // ranks : len(row) * (rank + 1) // ranks])


def bind_to(cores: set[int]) -> str:
    """Keep all threads of this process on `cores`; says what was done."""
    for task in Path("/proc/self/task").iterdir():  # threads that libraries have begun keep the old mask
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:
            continue  # it has ended meanwhile
        except OSError as error:  # a container may forbid it
            return f"not bound: the system refuses it ({error.strerror})"
    return f"bound to {len(cores)} cores"


def numa_nodes() -> list[set[int]]:
    """The cores of each NUMA node, as Linux numbers them; empty where the system does not say."""
    folders = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"), key=lambda f: int(f.name[4:]))
    return [_cores(_read(folder / "cpulist")) for folder in folders]


def _cores(text: str) -> set[int]:
    """`0-3,8` as 0, 1, 2, 3 and 8."""
    spans = [span.partition("-") for span in text.strip().split(",") if span]
    return {core for first, _, last in spans for core in range(int(first), int(last or first) + 1)}


def _last_core() -> int:
    """The core that this process ran on last."""
    words = _read("/proc/self/stat").rpartition(")")[2].split()  # the bracket ends field 2 of proc(5)
    return int(words[36]) if len(words) > 36 else -1  # field 39


def memory(device: torch.device) -> Memory:
    """Total and free memory of `device`; of the host, also what the cgroup leaves."""
    if device.type != "cpu":
        free, total = torch.get_device_module(device).mem_get_info(device)
        return Memory(total=int(total), free=int(free))
    rows = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if "MemAvailable" not in rows:  # not Linux: only what there is in all is known
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Memory(total=total, free=total)
    kib = {name: int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")}
    limit = _cgroup_memory()
    if limit is None or limit.total >= kib["MemTotal"]:
        return Memory(total=kib["MemTotal"], free=kib["MemAvailable"])
    return Memory(total=limit.total, free=min(limit.free, kib["MemAvailable"]))


def upload(numbers: Int64s | Sequence[int], device: torch.device) -> torch.Tensor:
    """`numbers` on `device` as int64, without waiting for what the device is at work on."""
    found = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
    return found if device.type == "cpu" else found.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until all that was asked of `device` is done, so that a clock tells the truth."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device, threads: int | None = None) -> str:
    """The device in words, as a report names it: `cpu: Intel(R) Xeon(R) Processor, 2 threads`.

    `threads` are those of what serves on a CPU; None: torch's.
    """
    if device.type == "cpu":
        return f"cpu: {cpu_name()}, {torch.get_num_threads() if threads is None else threads} threads"
    return f"{device.type}: {torch.get_device_module(device).get_device_name(device)}"


@cache
def cpu_name() -> str:
    """The processor's name as the system gives it, else its architecture."""
    return _cpu_row("model name") or platform.processor() or platform.machine()


@cache
def cpu_features() -> tuple[str, ...]:
    """Which of the instruction sets that matter here this CPU has, by Linux's names; empty elsewhere."""
    flags = set(f"{_cpu_row('flags')} {_cpu_row('Features')}".split())
    return tuple(name for name in _FEATURES if name in flags)


def lacking(needs: Sequence[str]) -> list[str]:
    """Which of `needs`, by Linux's names, this CPU does not claim; nothing where the system does not say."""
    flags = set(f"{_cpu_row('flags')} {_cpu_row('Features')}".split())
    return [name for name in needs if name not in flags] if flags else []


@cache
def cpu_identity() -> str:
    """What tells this CPU from another that would run other instructions: its model, microcode and flags."""
    rows = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "Features")
    return "\n".join(_cpu_row(name) for name in rows)


def native_kernels() -> str:
    """Which native CPU kernels ONEROOF_CPU asks for: auto, reference, or an instruction set."""
    return os.environ.get("ONEROOF_CPU", "").strip() or "auto"


def native_library() -> Path | None:
    """The file that ONEROOF_CPU_LIBRARY puts in the place of the library that was installed."""
    named = os.environ.get("ONEROOF_CPU_LIBRARY", "")
    return Path(named).absolute() if named else None


def cache_folder() -> Path | None:
    """Where this user's programs keep what they can find out again; None where there is no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(named) if named.startswith("/") else Path.home() / ".cache") / "oneroof"
    except RuntimeError:  # no home
        return None


def cgroup_quota() -> float | None:
    """Cores' worth of time that the cgroup and its ancestors grant; None where there is no limit."""
    grants: list[float] = []
    for folder in _cgroup_folders():
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us").strip(),
            _read(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
            grants.append(int(words[0]) / int(words[1]))
    return min(grants, default=None)


def _cgroup_memory() -> Memory | None:
    tightest: Memory | None = None
    for folder in _cgroup_folders():
        limit = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        used = (_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")).strip()
        if limit.isdecimal() and used.isdecimal() and (tightest is None or int(limit) < tightest.total):
            tightest = Memory(total=int(limit), free=max(0, int(limit) - int(used)))
    return tightest


def _cgroup_folders() -> list[Path]:
    """The folders of this process's cgroups and of their ancestors, version 2 and version 1."""
    root = Path("/sys/fs/cgroup")
    found: list[Path] = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        top = root / controllers if controllers else root
        inside = top / path.lstrip("/")
        found += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(top)]
    return found


def _cpu_row(name: str) -> str:
    return _cpu_rows().get(name, "")


@cache
def _cpu_rows() -> dict[str, str]:
    """What Linux says of the first processor; of many, all would take long."""
    rows: dict[str, str] = {}
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                if rows and not line.strip():
                    break
                key, _, value = line.partition(":")
                rows[key.strip()] = value.strip()
    except OSError:  # not Linux
        return {}
    return rows


def _read(path: str | Path) -> str:
    """A small file of the system, or nothing where it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
