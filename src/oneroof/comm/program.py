"""Another process that runs the same code as this one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import socket

import oneroof

# Words of its command line, since an environment would be inherited by every process that it starts.
SAME_CODE = "import sys; sys.path[:] = sys.argv[2:]; "


def program(module: str) -> tuple[str, ...]:
    """A command that calls ``main([word])`` of one of our modules, and exits with what that gives.

    The word and all of `search` are to follow.
    """
    call = f"from {module} import main; sys.exit(main(sys.argv[1:2]))"
    # -P: a file called random.py in the folder that someone works in is not taken for Python's
    return (sys.executable, "-P", "-c", SAME_CODE + call)


def begin(words: Sequence[str], end: socket, *, apart: bool = False) -> subprocess.Popen[str]:
    """A process of `program` that has `end` of a socket; what it prints comes over its standard output.

    `apart`: a Ctrl-C in our terminal does not reach it.
    """
    return subprocess.Popen(
        [*words, str(end.fileno()), *search()],
        pass_fds=(end.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # ours is for results, and a library may print
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=apart,
    )


def ending(status: int) -> str:
    """How a process ended, in words, by its status as `subprocess` gives it."""
    if status >= 0:
        return f"ended with status {status}"
    how = f"was killed by {_signal(-status)}"
    if status == -signal.SIGKILL:
        how += " (the system does that when memory runs out)"
    return how


def search() -> list[str]:
    """Where our code is looked for: the same as here, but for the folder that someone happens to work in."""
    named = [str(path) for path in sys.path if path]
    ours = str(Path(oneroof.__file__).parents[1])
    return named if ours in named else [ours, *named]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
