"""A watch over a process that may hang: where answers are due and nothing comes, the log says how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from oneroof import log

FIRST = 30.0  # seconds of silence before it is told, since a step of a long prompt may take some
AGAIN = 60.0  # ... and between two lines after that


class Watch:
    """Begun in a running loop, which looks up every `FIRST` seconds or oftener; it warns and does no more."""

    def __init__(self, pid: int, waiting: Callable[[], int]) -> None:
        """`waiting` says how many calls wait for the process `pid`."""
        self._loop = asyncio.get_running_loop()
        self._name = f"the engine process (pid {pid})"
        self._waiting = waiting
        self._since = self._loop.time()
        self._due = FIRST  # seconds of silence at which it is told next
        self._timer = self._loop.call_later(FIRST, self._look)

    def asked(self) -> None:
        """The process, which had nothing to do, is asked for something."""
        self._since, self._due = self._loop.time(), FIRST

    def heard(self) -> None:
        """Something came."""
        if self._due > FIRST:
            log.warning(f"{self._name} is heard again, after {self._loop.time() - self._since:.0f} s")
        self._since, self._due = self._loop.time(), FIRST

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        silence = self._loop.time() - self._since
        if silence >= self._due and (waiting := self._waiting()):
            calls = "1 call waits" if waiting == 1 else f"{waiting} calls wait"
            log.warning(
                f"{self._name} has said nothing for {silence:.0f} s, and {calls}; "
                "a step may take that long, or the process is stopped or hangs"
            )
            self._due = silence + AGAIN
        left = self._due - silence
        self._timer = self._loop.call_later(left if 0 < left < FIRST else FIRST, self._look)
