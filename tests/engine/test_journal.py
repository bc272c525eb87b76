"""The journal: whole lines survive anything, torn ones are dropped, strangers' files are left alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oneroof.engine.journal import Journal, fingerprint
from oneroof.errors import UserError

RUN = {"model": "demo", "prompts": ["a", "b"]}
ONE, TWO = {"index": 0, "text": "ä\n中 \ud800"}, {"index": 1, "text": "b\u2028"}


def write(path: Path) -> None:
    with Journal(path, RUN) as journal:
        journal.write(ONE)
        journal.write(TWO)


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path)
    with Journal(path, {"prompts": ["a", "b"], "model": "demo"}) as journal:  # the order of keys is no matter
        assert journal.done == {0: ONE, 1: TWO}
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0])["fingerprint"] == fingerprint(RUN)
    assert len(lines) == 3


def test_a_journal_cut_anywhere_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends[1:])
        with Journal(path, RUN) as journal:
            assert journal.done == dict(list({0: ONE, 1: TWO}.items())[:kept])
            for record in (ONE, TWO)[kept:]:
                journal.write(record)
        assert path.read_bytes() == whole


def test_results_of_another_run_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="another model, options or prompts"):
        Journal(path, {**RUN, "model": "other"})
    assert path.read_bytes() == before


def test_another_run_that_got_nowhere_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {**RUN, "model": "other"}).close()
    write(path)


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"a": 1}\n{"b": 2}\n', "\n", "[]\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="not a journal"):
        Journal(path, RUN)
    assert path.read_text() == content


def test_a_spoilt_line_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{spoilt\n" + lines[2])
    with pytest.raises(UserError, match="line 2"):
        Journal(path, RUN)


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "j.jsonl", Path("/proc/nothing")):
        with pytest.raises(UserError, match="cannot be written"):
            Journal(path, RUN)


def test_what_cannot_be_read_back_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/full"), Path("/dev/null"), Path("/dev/stdin")):
        with pytest.raises(UserError, match=r"is no regular file|cannot be written"):
            Journal(path, RUN)


def test_a_disk_that_is_full_at_the_first_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        Journal(tmp_path / "j.jsonl", RUN)


def test_two_runs_at_once_are_refused_and_a_dead_one_is_no_bar(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    program = (
        "import os, signal, sys; from pathlib import Path; from oneroof.engine.journal import Journal\n"
        f"journal = Journal(Path({str(path)!r}), {RUN!r}); journal.write({{'index': 0}})\n"
        "print('ready', flush=True); sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match="another run"):
            Journal(path, RUN)
        other.stdin.write("\n")
        other.stdin.flush()
        other.wait(timeout=30)
    with Journal(path, RUN) as journal:
        assert journal.done == {0: {"index": 0}}
