"""The process is started with our code and without our pipes, and says how it ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

import oneroof
from oneroof.comm.program import SAME_CODE
from oneroof.engine import child
from oneroof.engine.child import Child


def finished(monkeypatch: pytest.MonkeyPatch, program: str, *, how: int | None = None) -> Child:
    """A process that ran `program`, or was sent the signal `how`, and has ended."""
    monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-P", "-c", program))
    ended = threading.Event()
    found = Child(ended.set)
    if how is not None:
        assert found.socket.recv(1)  # it has begun
        os.kill(found.pid, how)
    assert ended.wait(10.0)
    found.socket.close()
    return found


def test_how_it_ended_is_told_with_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("oneroof"), "propagate", True)
    program = "import sys; [print(i, file=sys.stderr) for i in range(30)]; print('é'); sys.exit(3)"
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    process = finished(monkeypatch, program)
    assert process.fate() == f"the engine process (pid {process.pid}) ended with status 3"
    assert process.last_words().split() == [*map(str, range(11, 30)), "é"]
    assert caplog.messages == [f"engine: {i}" for i in range(30)] + ["engine: é"]
    assert {r.levelname for r in caplog.records} == {"WARNING"}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGKILL, "was killed by SIGKILL (the system does that when memory runs out)"),
        (signal.SIGTERM, "was killed by SIGTERM"),
        (signal.SIGRTMIN + 3, f"was killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_signal_is_named(monkeypatch: pytest.MonkeyPatch, how: int, said: str) -> None:
    program = "import os, sys, time; os.write(int(sys.argv[1]), b'x'); time.sleep(60)"
    found = finished(monkeypatch, program, how=how)
    assert found.fate() == f"the engine process (pid {found.pid}) {said}"


def test_it_runs_our_code_whatever_lies_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong random')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "ours")])
    monkeypatch.syspath_prepend("")  # as an interactive Python has it
    program = f"import oneroof, random, sys; print(oneroof.__file__, {str(tmp_path / 'ours')!r} in sys.path)"
    process = finished(monkeypatch, SAME_CODE + program)
    assert process.last_words().split() == [oneroof.__file__, "True"]


def test_our_code_is_found_where_only_the_folder_of_work_leads_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = str(Path(oneroof.__file__).parents[1])
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if path not in ("", ours))])
    monkeypatch.chdir(tmp_path)
    process = finished(monkeypatch, SAME_CODE + "import sys, oneroof; print(sys.path[0], oneroof.__file__)")
    assert process.last_words().split() == [ours, oneroof.__file__]


def test_what_it_starts_inherits_our_environment_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os; print('PYTHON', {k: v for k, v in os.environ.items() if k.startswith('PYTHON')})"
    expected = {k: v for k, v in os.environ.items() if k.startswith("PYTHON")}
    assert finished(monkeypatch, SAME_CODE + program).last_words().strip() == f"PYTHON {expected}"


def test_it_holds_nothing_of_ours_but_its_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        program = "import os; print(*sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
        held = finished(monkeypatch, program).last_words().split()
    assert held[:3] == ["0", "1", "2"]
    assert len(held) == 4


def test_a_grandchild_with_its_pipe_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.exit(4)"
    process = finished(monkeypatch, program)
    os.kill(int(process.last_words()), signal.SIGKILL)
    assert process.fate().endswith("ended with status 4")
