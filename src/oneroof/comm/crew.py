"""The other ranks of an engine on this machine: started, spoken to, and ended with the one that started them.

Each has a socket to its starter, which is reached by nobody else, and over which come its orders before it
meets the others; when one end of it closes, the other process ends. Messages are bytes.
"""

from __future__ import annotations

import os
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, Queue
from socket import SHUT_RDWR, socket, socketpair

from oneroof import log
from oneroof.comm.program import begin, ending, program
from oneroof.errors import RankLost

_HEAD = struct.Struct(">I")
_TAIL = 20  # lines of what a rank said that are kept
_PATIENCE = 3.0  # seconds that a rank may take to end when its starter has
_LAST_WORDS = 0.3  # seconds that what it said last may take to arrive


class Line:
    """One end of a socket that carries messages."""

    def __init__(self, end: socket) -> None:
        self._end = end

    def send(self, message: bytes) -> None:
        """OSError where the other end has gone."""
        self._end.sendall(_HEAD.pack(len(message)) + message)

    def receive(self) -> bytes | None:
        """The next message; None where the other end has gone."""
        head = self._exactly(_HEAD.size)
        return None if head is None else self._exactly(_HEAD.unpack(head)[0])

    def close(self) -> None:
        """The other end hears of it at once."""
        with suppress(OSError):
            self._end.shutdown(SHUT_RDWR)
        self._end.close()

    def _exactly(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            try:
                some = self._end.recv(size - len(parts))
            except OSError:
                return None
            if not some:
                return None
            parts += some
        return bytes(parts)


class _Rank:
    """One of them, and two threads that listen to it."""

    def __init__(self, module: str, ended: Callable[[_Rank], None]) -> None:
        self.number = -1
        ours, theirs = socketpair()
        with theirs:
            self.process = begin(program(module), theirs, apart=True)
        self.line = Line(ours)
        self.said: deque[str] = deque(maxlen=_TAIL)
        self.messages: Queue[bytes | None] = Queue()
        self._ended = ended
        self._listener = threading.Thread(target=self._listen, name="a rank's words", daemon=True)
        self._listener.start()
        threading.Thread(target=self._hear, name="a rank's messages", daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.said.append(line.rstrip())

    def _hear(self) -> None:
        while (message := self.line.receive()) is not None:
            self.messages.put(message)
        self.process.wait()
        self._listener.join(_LAST_WORDS)  # not for ever: whoever it started may hold the pipe
        self._ended(self)
        self.messages.put(None)

    def fate(self) -> str:
        """How it ended, with what it said last."""
        words = "".join(f"\n  {line}" for line in self.said)
        status = self.process.poll()
        how = "is silent" if status is None else ending(status)
        return f"rank {self.number} (pid {self.process.pid}) {how}{words}"


class Crew:
    """Ranks that were started here. Whoever made it closes it; a rank's death is told once."""

    def __init__(self, module: str) -> None:
        """`module` has the ``main`` of a rank."""
        self._module = module
        self._ended: Callable[[], None] | None = None
        self._closing = False
        self._lost: _Rank | None = None
        self._lock = threading.Lock()
        self._all: list[_Rank] = []
        self._ranks: list[_Rank] = []  # those that have a seat

    def start(self, count: int) -> None:
        """Have so many processes, which wait for a seat."""
        while len(self._all) < count:
            self._all.append(_Rank(self._module, self._dead))

    def seat(self, orders: Mapping[int, bytes], ended: Callable[[], None]) -> None:
        """A process for each rank of `orders`, which is its first message; those that are here come first.

        `ended` is called, by a thread, when the first of them has died before `close`.
        """
        self._ended = ended
        try:
            self.start(len(orders))
            self._ranks = self._all[: len(orders)]
            for rank, (number, order) in zip(self._ranks, orders.items(), strict=True):
                rank.number = number
                with suppress(OSError):  # it died: said when it is waited for
                    rank.line.send(order)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes."""
        return [rank.process.pid for rank in self._ranks]

    @property
    def lost(self) -> str | None:
        """The fate of the rank that died first; None while all live."""
        return None if self._lost is None else self._lost.fate()

    def await_loss(self) -> str | None:
        """The same, where a rank that has just died may not be known to have yet."""
        until = time.monotonic() + _LAST_WORDS * 3
        while self._lost is None and time.monotonic() < until:
            time.sleep(0.02)
        return self.lost

    def hear(self) -> dict[int, bytes]:
        """One message of each rank. RankLost where one dies before."""
        found: dict[int, bytes] = {}
        for rank in self._ranks:
            while rank.number not in found:
                if self._lost is not None and rank.messages.empty():
                    raise RankLost(self._lost.fate())
                with suppress(Empty):
                    message = rank.messages.get(timeout=0.1)
                    if message is None:
                        raise RankLost((self._lost or rank).fate())
                    found[rank.number] = message
        return found

    def say(self, message: bytes) -> None:
        """To every rank."""
        for rank in self._ranks:
            with suppress(OSError):
                rank.line.send(message)

    def close(self) -> None:
        """End them all, and wait until they have; twice is not an error."""
        self._closing = True
        for rank in self._all:
            rank.line.close()
        until = time.monotonic() + _PATIENCE
        for rank in self._all:
            try:
                rank.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()

    def _dead(self, rank: _Rank) -> None:
        with self._lock:
            first = self._lost is None and not self._closing
            if first:
                self._lost = rank
        if first:
            log.debug(rank.fate())
            if self._ended is not None:
                self._ended()


def summon(module: str, count: int) -> None:
    """Start processes that will be ranks before it is known of what: they import torch while we do."""
    crew = Crew(module)
    crew.start(count)
    _summoned.append(crew)


def summoned(module: str) -> Crew:
    """Those that were summoned, once; or none yet."""
    return _summoned.pop() if _summoned else Crew(module)


_summoned: list[Crew] = []


class Starter:
    """What a rank has of the process that started it: its orders, and its end, which is the rank's own."""

    def __init__(self, number: int) -> None:
        """`number` is that of the socket."""
        end = socket(fileno=number)
        end.set_inheritable(False)  # else a compiler that we start would keep it open after our death
        self._line = Line(end)
        self._messages: Queue[bytes] = Queue()
        threading.Thread(target=self._hear, name="starter", daemon=True).start()

    def receive(self) -> bytes:
        """The next order."""
        return self._messages.get()

    def send(self, message: bytes) -> None:
        """To the starter."""
        with suppress(OSError):
            self._line.send(message)

    def _hear(self) -> None:
        while (message := self._line.receive()) is not None:
            self._messages.put(message)
        os._exit(0)
