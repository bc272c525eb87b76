"""A process and the socket to it: how it is started, what it says on standard error, how it ends."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from socket import socketpair

from oneroof import log
from oneroof.comm.program import begin, ending, program

PROGRAM = program("oneroof.engine.worker")
_TAIL = 20  # lines of its standard error that are kept
_LAST_WORDS = 0.2  # seconds that they may take after its end


class Child:
    """The engine's process. It is not forked: torch's threads and devices do not survive that."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """`ended` is called once, by a thread of ours, when the process is gone."""
        self.socket, theirs = socketpair()  # reached by nobody else: it has no name
        with theirs:
            self._process = begin(PROGRAM, theirs)
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
        how = "closed its socket" if status is None else ending(status)
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
