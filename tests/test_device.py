"""Devices, number formats and threads: what `auto` chooses, and what is refused."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch

from oneroof import device as devices
from oneroof.errors import UserError

CPU = torch.device("cpu")


def test_auto_is_the_accelerator_or_the_cpu() -> None:
    assert devices.resolve("auto").type == devices.available()[0]
    assert devices.available()[-1] == "cpu"


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:one", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="auto, cpu, cuda, npu are allowed"):
        devices.resolve(name)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: ("cpu",))
    with pytest.raises(UserError, match="cuda is not on this machine; cpu can be used; try --device cpu"):
        devices.resolve("cuda")


def test_an_index_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: ("cuda", "cpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert devices.resolve("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="0 to 1 are allowed"):
        devices.resolve("cuda:2")


@pytest.mark.parametrize(
    ("stored", "features", "chosen"),
    [
        ("float32", (), torch.float32),
        ("float16", ("avx512_bf16",), torch.float32),
        ("bfloat16", ("avx2",), torch.float32),
        ("bfloat16", ("avx2", "avx512_bf16"), torch.bfloat16),
        ("bfloat16", ("asimd", "bf16"), torch.bfloat16),
    ],
)
def test_auto_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, stored: str, features: tuple[str, ...], chosen: torch.dtype
) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: features)
    assert devices.resolve_dtype("auto", stored, CPU) == chosen


def test_auto_dtype_on_an_accelerator_is_the_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert devices.resolve_dtype("auto", "bfloat16", torch.device("cuda")) == torch.bfloat16
    assert devices.resolve_dtype("auto", "float16", torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert devices.resolve_dtype("auto", "bfloat16", torch.device("cuda")) == torch.float16


def test_a_dtype_that_is_asked_for_is_taken() -> None:
    assert devices.resolve_dtype("float16", "bfloat16", CPU) == torch.float16
    with pytest.raises(UserError, match="dtype int8 is unknown"):
        devices.resolve_dtype("int8", "bfloat16", CPU)


def test_threads_are_set_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert devices.use_threads(1) == torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert devices.use_threads("auto") == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert devices.use_threads("auto") == devices.allowed_cores()[0]
    finally:
        torch.set_num_threads(before)
    with pytest.raises(UserError, match="threads 0"):
        devices.use_threads(0)


NODES = [{0, 1, 2, 3}, {4, 5, 6, 7}]


@pytest.mark.parametrize(
    ("mask", "here", "threads", "bound"),
    [
        (range(8), 5, 4, {4, 5, 6, 7}),  # the node that it runs on
        (range(8), 1, 2, {0, 1, 2, 3}),
        ([0, 4, 5, 6], 0, 3, {4, 5, 6}),  # ... unless the mask leaves too few cores of it
        (range(8), -1, 4, {0, 1, 2, 3}),  # the system does not say where it runs
        (range(8), 5, 5, None),  # more threads than a node has
        (range(4), 1, 2, None),  # one node anyway
        ([3, 4], 4, 2, None),
    ],
)
def test_threads_are_kept_on_a_node_that_has_enough_of_the_mask(
    monkeypatch: pytest.MonkeyPatch, mask: list[int], here: int, threads: int, bound: set[int] | None
) -> None:
    asked: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(devices, "numa_nodes", lambda: NODES)
    monkeypatch.setattr(devices, "_last_core", lambda: here)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(mask))
    monkeypatch.setattr(devices.os, "sched_setaffinity", lambda task, cores: asked.append((task, cores)))
    said = devices.bind_threads(threads)
    assert said.startswith("not bound" if bound is None else f"bound to {len(bound)} cores")
    tasks = {int(path.name) for path in Path("/proc/self/task").iterdir()}
    assert {cores == bound for _, cores in asked} == (set() if bound is None else {True})
    assert {task for task, _ in asked} == (set() if bound is None else tasks)


def test_binding_this_process_never_leaves_its_mask() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("needs Linux")
    before = os.sched_getaffinity(0)
    try:
        devices.bind_threads(1)
        assert os.sched_getaffinity(0) <= before
    finally:
        for task in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(task.name), before)


def test_a_thread_that_ends_meanwhile_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[int] = []

    def set_affinity(task: int, cores: set[int]) -> None:
        if task != os.getpid():
            raise ProcessLookupError
        bound.append(task)

    monkeypatch.setattr(devices, "numa_nodes", lambda: NODES)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(devices.os, "sched_setaffinity", set_affinity)
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    assert devices.bind_threads(1).startswith("bound")
    assert bound == [os.getpid()]
    stop.set()
    other.join()


def test_where_the_system_forbids_it_nothing_is_said_to_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(task: int, cores: set[int]) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(devices, "numa_nodes", lambda: NODES)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(devices.os, "sched_setaffinity", forbidden)
    assert devices.bind_threads(1) == "not bound: the system refuses it (Operation not permitted)"


def test_the_cores_of_nodes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices._cores("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert devices._cores("\n") == set()  # a node of memory alone
    if Path("/sys/devices/system/node/node0").exists():
        assert set.union(*devices.numa_nodes()) >= os.sched_getaffinity(0)
        assert devices._last_core() in os.sched_getaffinity(0)
    monkeypatch.setattr(devices, "_read", lambda _: "7 (a) b) R 1")
    assert devices._last_core() == -1


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_either_cgroup_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "_cgroup_folders", lambda: [tmp_path])
    assert devices.cgroup_quota() == quota


def test_a_quota_below_the_mask_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cgroup_quota", lambda: 0.5)
    assert devices.allowed_cores() == (1, "the cgroup's quota of 0.5 cores")


def test_memory_is_within_the_cgroups_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cgroup_folders", list)
    room = devices.memory(CPU)
    assert 0 < room.free <= room.total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(devices, "_cgroup_folders", lambda: [tmp_path])
    assert devices.memory(CPU) == devices.Memory(total=1000000, free=600000)


def test_a_device_is_told_in_words() -> None:
    devices.synchronize(CPU)
    assert devices.describe(CPU).startswith("cpu: ")


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_answers() -> None:
    place = devices.resolve("auto")
    room = devices.memory(place)
    devices.synchronize(place)
    assert 0 < room.free <= room.total
    assert devices.describe(place).startswith(f"{place.type}: ")
