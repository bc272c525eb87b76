"""A process and the socket to it: how it is started, what it says on standard error, how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from socket import socketpair

import oneroof
from oneroof import log

# Words of its command line, since an environment would be inherited by every process that it starts.
SAME_CODE = "import sys; sys.path[:] = sys.argv[2:]; "
# -P: a file called random.py in the folder that someone works in is not taken for Python's
PROGRAM = (
    *(sys.executable, "-P", "-c"),
    SAME_CODE + "from oneroof.engine.worker import main; sys.exit(main(sys.argv[1:2]))",
)
_TAIL = 20  # lines of its standard error that are kept
_LAST_WORDS = 0.2  # seconds that they may take after its end


class Child:
    """The engine's process. It is not forked: torch's threads and devices do not survive that."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """`ended` is called once, by a thread of ours, when the process is gone."""
        self.socket, theirs = socketpair()  # reached by nobody else: it has no name
        with theirs:
            self._process = subprocess.Popen(
                [*PROGRAM, str(theirs.fileno()), *_search()],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # ours is for results, and a library may print
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._ended = ended
        self._listener = threading.Thread(target=self._listen, name="engine's stderr", daemon=True)
        self._listener.start()
        threading.Thread(target=self._wait, name="engine's end", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def fate(self) -> str:
        """How it ended, in words."""
        status = self._process.poll()
        if status is None:
            how = "closed its socket"
        elif status >= 0:
            how = f"ended with status {status}"
        else:
            how = f"was killed by {_signal(-status)}"
        if status == -signal.SIGKILL:
            how += " (the system does that when memory runs out)"
        return f"the engine process (pid {self.pid}) {how}"

    def last_words(self) -> str:
        """The last lines that it said, each on a line of its own; empty if it said nothing."""
        return "".join(f"\n  {line}" for line in self._tail)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._tail.append(line.rstrip())
                log.warning(f"engine: {line.rstrip()}")

    def _wait(self) -> None:
        self._process.wait()
        self._listener.join(_LAST_WORDS)  # not for ever: whoever it started may hold the pipe
        self._ended()


def _search() -> list[str]:
    """Where our code is looked for: the same as here, but for the folder that someone happens to work in."""
    named = [str(path) for path in sys.path if path]
    ours = str(Path(oneroof.__file__).parents[1])
    return named if ours in named else [ours, *named]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
