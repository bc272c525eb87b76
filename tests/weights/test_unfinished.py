"""Killed at any moment, `shard` and `merge` are gone on with; what is of somebody else stays as it was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Checkpoint
from ranks_on_disk import assert_same, digests, put_together
from safetensors.torch import load_file

import oneroof
from oneroof.errors import UserError
from oneroof.export import ranks
from oneroof.export.ranks import merge, shard
from oneroof.layout import Grid
from oneroof.load import load
from oneroof.tensorfile import locked
from oneroof.weights import reshard, unfinished

SOURCE = {"PYTHONPATH": str(Path(oneroof.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
JOURNAL = ".unfinished.json"

# Forks children that run the command and end without a word at their first, second, .. step on the disk.
KILLED = """
import hashlib, os, shutil, sys
from pathlib import Path
import torch
from oneroof import tensorfile
from oneroof.export.ranks import merge, shard
from oneroof.layout import Grid
from oneroof.weights import reshard, unfinished

torch.set_num_threads(1)
source, at, what, stride = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
reshard._AT_ONCE = 8192  # several slabs a tensor
run = (lambda out: shard(source, out, Grid(tp=2), standalone=stride == 2)) if what == "shard" else (
    lambda out: merge(source, out, limit=60_000))

def child(out, steps):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = steps
    def counted(function):
        def call(*given, **named):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return function(*given, **named)
        return call
    os.fsync = counted(lambda number: None)
    for owner, name in ((os, "ftruncate"), (Path, "mkdir"), (Path, "unlink"), (Path, "replace"),
                        (tensorfile, "_bytes"), (shutil, "copyfileobj"), (unfinished, "write_text")):
        setattr(owner, name, counted(getattr(owner, name)))
    try:
        run(out)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

def content(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*") if p.is_file()}

assert child(at / "clean", -1) == 0
expected = content(at / "clean")
count, status = 0, 9
while status == 9:  # killed at each step, then left alone
    count += stride
    out = at / "once"
    status = child(out, count)
    assert status in (0, 9), (count, status)
    assert child(out, -1) == 0, count
    assert content(out) == expected, count
    shutil.rmtree(out)
status, runs = 9, 0
while status == 9:  # killed again and again
    runs += 1
    status = child(at / "often", 20 + 3 * runs)
assert status == 0 and content(at / "often") == expected
print(runs, count)
"""


@pytest.mark.parametrize("stride", [11, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["shard", "merge"])
def test_killed_at_any_step_it_is_gone_on_with(
    checkpoint: Checkpoint, tmp_path: Path, what: str, stride: int
) -> None:
    source = checkpoint("qwen2", num_hidden_layers=2, tokenizer="none", dtype="bfloat16")
    if what == "merge":
        shard(source, tmp_path / "cut", Grid(tp=2))
        source = tmp_path / "cut"
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(tmp_path), what, str(stride)],
        capture_output=True,
        text=True,
        env=os.environ | SOURCE,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    runs, steps = map(int, ran.stdout.split())
    assert steps > 40 and runs > 3


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tmp_path: Path) -> None:
    source, draw = tmp_path / "in", random.Random(3)
    tensors = _large(source, width=8192, layers=4)
    run = [sys.executable, "-m", "oneroof", "shard", str(source), str(tmp_path / "out"), "--tp", "3"]
    killed = torn = 0
    while True:
        process = subprocess.Popen(run, env=os.environ | SOURCE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        if killed:
            said = process.stderr.readline()  # where it had ended but not left, there is nothing to do
            assert "was begun before" in said or "is complete already" in said
        else:
            while not (tmp_path / "out" / JOURNAL).exists():
                time.sleep(0.005)
        try:
            process.wait(draw.uniform(0.0, 0.3 + 0.1 * killed))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        killed += 1
        torn += any((tmp_path / "out").rglob(".model.safetensors.part"))
    assert_same(put_together(tmp_path / "out"), tensors)
    assert killed and torn


def test_what_is_whole_stays_and_what_is_torn_is_continued(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = checkpoint("qwen3"), tmp_path / "out"
    reads: list[str] = []
    original = reshard._slabs

    def stopping(stored: object, name: str, *rest: object) -> object:
        if len(reads) == 70:
            raise KeyboardInterrupt
        reads.append(name)
        return original(stored, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reshard, "_slabs", stopping)
    with pytest.raises(KeyboardInterrupt):
        shard(folder, out, Grid(tp=2))
    with pytest.raises(UserError, match="is unfinished: what wrote it was interrupted"):
        load(out, device="cpu")
    first = (out / "rank_0" / "model.safetensors").stat()
    before, told = list(reads), list[tuple[int, int]]()
    reads.clear()
    shard(folder, out, Grid(tp=2), report=lambda done, total: told.append((done, total)))
    monkeypatch.undo()
    shard(folder, tmp_path / "clean", Grid(tp=2))
    expected = list(load_file(tmp_path / "clean" / "rank_1" / "model.safetensors"))
    assert len(before) + len(reads) == len(expected) + len(
        load_file(tmp_path / "clean" / "rank_0" / "model.safetensors")
    )
    after = (out / "rank_0" / "model.safetensors").stat()
    assert (first.st_ino, first.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert digests(out) == digests(tmp_path / "clean")
    total = told[-1][1]
    assert told[-1][0] == total and told[0][0] > total / 2


def test_after_a_fall_of_the_machine_a_torn_file_is_not_trusted(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = checkpoint("qwen3"), tmp_path / "out"
    _interrupt(folder, out, monkeypatch)
    (part,) = out.rglob(".model.safetensors.part")
    part.write_bytes(part.read_bytes()[:-64] + bytes(64))  # its end is there without its numbers
    monkeypatch.setattr(unfinished, "_boot", lambda: "another")
    shard(folder, out, Grid(tp=2))
    shard(folder, tmp_path / "clean", Grid(tp=2))
    assert digests(out) == digests(tmp_path / "clean")


def test_complete_of_the_same_it_is_left_as_it_is(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, cut, whole = checkpoint("qwen2"), tmp_path / "cut", tmp_path / "whole"
    assert shard(folder, cut, Grid(tp=2)) and merge(cut, whole)
    states = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not shard(folder, cut, Grid(tp=2)) and not merge(cut, whole)
    assert states == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    before = digests(cut)
    (cut / "rank_1" / "model.safetensors").unlink()
    assert shard(folder, cut, Grid(tp=2))  # what is lost comes back
    assert digests(cut) == before


def _interrupt(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, reads: int = 30) -> None:
    original, left = reshard._slabs, reads

    def stopping(*given: object) -> object:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return original(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(reshard, "_slabs", stopping)
        with pytest.raises(KeyboardInterrupt):
            shard(folder, out, Grid(tp=2))


@pytest.mark.parametrize("state", ["begun", "complete"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("options", r"was made by shard tp 2 of .*, not by shard tp 4 of"),
        ("standalone", r"was made by shard tp 2 of .*, not by shard tp 2 standalone of"),
        ("folder", r"was made by shard tp 2 of .*in, not by shard tp 2 of .*other"),
        ("weights", r"was made of .*in as it was before: model\.safetensors has changed"),
        ("tokenizer", r"was made of .*in as it was before: tokenizer\.json has changed"),
        ("more", r"was made of .*in as it was before: LICENSE has changed"),
        ("merge", r"was made by shard tp 2 of .*, not by merge 5000000000 of|which is not of this command"),
    ],
)
def test_of_something_else_it_is_refused_and_not_touched(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    change: str,
    says: str,
) -> None:
    folder, out = shutil.copytree(checkpoint("qwen2"), tmp_path / "in"), tmp_path / "out"
    if state == "begun":
        _interrupt(folder, out, monkeypatch)
    else:
        shard(folder, out, Grid(tp=2))
    before, grid = digests(out), Grid(tp=4 if change == "options" else 2)
    if change == "folder":
        folder = folder.rename(tmp_path / "other")
    elif change == "weights":
        os.utime(folder / "model.safetensors", ns=(0, 0))
    elif change == "tokenizer":
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    elif change == "more":
        (folder / "LICENSE").write_text("mine")
    elif change == "merge":
        shard(folder, tmp_path / "cut", Grid(tp=2))
    with pytest.raises(UserError, match=says):
        if change == "merge":
            merge(tmp_path / "cut", out)
        else:
            shard(folder, out, grid, standalone=change == "standalone")
    assert digests(out) == before


@pytest.mark.parametrize("name", ["notes.txt", "rank_0/notes.txt", "rank_7/model.safetensors", "deep/er/x"])
@pytest.mark.parametrize("begun", [True, False])
def test_what_is_not_ours_is_refused_and_not_touched(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, name: str
) -> None:
    out = tmp_path / "out"
    if begun:
        _interrupt(checkpoint("qwen2"), out, monkeypatch)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    before = digests(out)
    with pytest.raises(UserError, match=r"out holds .*, which is not of this command; a new or an empty"):
        shard(checkpoint("qwen2"), out, Grid(tp=2))
    assert digests(out) == before


def test_a_checkpoint_is_not_written_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = shutil.copytree(checkpoint("qwen3"), tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "rank_0").symlink_to(tmp_path / "out")
    before = digests(tmp_path)
    with pytest.raises(UserError, match=r"holds config\.json, which is not of this command"):
        shard(checkpoint("qwen2"), out, Grid(tp=2))
    with pytest.raises(UserError, match="is no folder; a new or an empty folder is allowed"):
        shard(checkpoint("qwen2"), tmp_path / "file", Grid(tp=2))
    with pytest.raises(UserError, match="holds rank_0, which is not of this command"):
        shard(checkpoint("qwen2"), tmp_path / "links", Grid(tp=2))
    assert digests(tmp_path) == before


def test_two_at_once_do_not_mix(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(UserError, match="is being written by another command"):
        shard(checkpoint("qwen2"), tmp_path / "out", Grid(tp=2))
    assert not list((tmp_path / "out").iterdir())


def test_without_room_nothing_is_begun(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"out needs 0\.\d+ GB, 0\.0001 GB are free there; make room"):
        shard(checkpoint("qwen2"), tmp_path / "new" / "out", Grid(tp=2))
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_is_one_line_and_is_gone_on_with(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneroof import tensorfile

    original, left = tensorfile._bytes, 40

    def full(tensor: torch.Tensor) -> memoryview:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return original(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(tensorfile, "_bytes", full)
        with pytest.raises(
            UserError, match=r"model\.safetensors cannot be written \(No space left on device\)"
        ):
            shard(checkpoint("qwen2"), tmp_path / "out", Grid(tp=2))
    shard(checkpoint("qwen2"), tmp_path / "out", Grid(tp=2))
    shard(checkpoint("qwen2"), tmp_path / "clean", Grid(tp=2))
    assert digests(tmp_path / "out") == digests(tmp_path / "clean")


# Memory.

PEAK = """
import re, sys
from pathlib import Path
from oneroof.export.ranks import merge, shard
from oneroof.layout import Grid

def status(key):
    return int(re.search(key + r":\\\\s+(\\\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

small, large, at = map(Path, sys.argv[1:4])
shard(small, at / "a", Grid(tp=2)); shard(at / "a", at / "b", Grid(tp=4)); merge(at / "b", at / "c")
for run in (
    lambda: shard(large, at / "2", Grid(tp=2)),
    lambda: shard(at / "2", at / "4", Grid(tp=4)),
    lambda: merge(at / "4", at / "whole"),
):
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    print(status("VmHWM") - before)
""".replace("\\\\", "\\")


def _large(folder: Path, *, width: int, layers: int) -> dict[str, torch.Tensor]:
    """A checkpoint of `layers` x 3 x `width` x 1024 float32; what it holds."""
    import checkpoints

    checkpoints.make(
        folder,
        "qwen2",
        tokenizer="none",
        hidden_size=1024,
        intermediate_size=width,
        num_hidden_layers=layers,
        max_window_layers=layers,
    )
    return load_file(folder / "model.safetensors")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_of_the_largest_tensor_no_second_copy_is_in_memory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    largest = max(x.nbytes for x in _large(tmp_path / "large", width=12288, layers=1).values())
    run = [sys.executable, "-c", PEAK, str(checkpoint("qwen2")), str(tmp_path / "large"), str(tmp_path)]
    ran = subprocess.run(run, check=True, capture_output=True, text=True, env=os.environ | SOURCE)
    cut, again, joined = map(int, ran.stdout.split())
    assert largest == 12288 * 1024 * 4
    constant = 16_000_000  # bytes: what is written at once, twice
    assert cut < largest + constant and again < largest + constant and joined < largest + constant
    assert_same(
        load_file(tmp_path / "whole" / "model.safetensors"),
        load_file(tmp_path / "large" / "model.safetensors"),
    )


def test_the_record_is_of_all_that_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shard(checkpoint("qwen2", files="sharded"), tmp_path / "out", Grid(tp=2))
    made = json.loads((tmp_path / "out" / "layout.json").read_text())["made"]
    assert made["command"] == "shard tp 2"
    assert {"config.json", "tokenizer.json", "model-00002-of-00003.safetensors"} <= set(made["files"])
    assert ranks.LAYOUT == "layout.json"
