"""`AsyncEngine`: an engine in a process of its own, for the callers of one asyncio loop.

Whatever happens to that process, every caller hears of it: an answer, the `UserError` that its request
earned, or `EngineDied`, within a second. One that is silent but not dead is not killed, since a step may take
long; the log says how long. Callers who read slowly, or leave, harm nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from itertools import count
from types import TracebackType
from typing import TypeVar

from msgspec.structs import replace

from oneroof import log
from oneroof.engine.child import Child
from oneroof.engine.pile import Pile
from oneroof.engine.request import Output, Piece, Reading, Request, Vector
from oneroof.engine.stats import Stats
from oneroof.engine.watch import Watch
from oneroof.engine.wire import (
    Abort,
    Ask,
    Events,
    Frames,
    Load,
    Loading,
    Order,
    Read,
    Ready,
    Refused,
    Reply,
    Said,
    Told,
    WireError,
    Write,
    pack,
    replies,
    unpack,
)
from oneroof.errors import UserError

_SECOND_SIGN = 0.4  # seconds from the end of the socket to that of the process, or the other way round
_CLOSING = 3.0  # seconds that the process may take to end when it is asked to

T = TypeVar("T")


class EngineDied(Exception):  # noqa: N818  # as one says it
    """There is no engine: its process ended, with the reason in the message, or it was closed."""


class AsyncEngine:
    """An engine process and its callers. Made by `start`; all else is for the loop that ran it."""

    ready: Ready

    def __init__(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Not to be called: see `start`."""
        self._loop = asyncio.get_running_loop()
        self._progress = progress
        self._keys = count()
        self._readers: dict[int, _Reader] = {}
        self._vectors: dict[int, asyncio.Future[Vector]] = {}
        self._stats: dict[int, asyncio.Future[Stats]] = {}
        self._started: asyncio.Future[Ready] = self._loop.create_future()
        self._over: asyncio.Future[str] = self._loop.create_future()  # why there is no engine any more
        self._gone = asyncio.Event()  # the process has ended
        self._line: _Line | None = None
        self._child = Child(self._exited)
        self._watch = Watch(self._child.pid, self._under_way)

    @classmethod
    async def start(cls, order: Load, *, progress: Callable[[int, int], None] | None = None) -> AsyncEngine:
        """A process that has loaded what `order` says; ``progress(done, all)`` is told bytes meanwhile.

        Raises the `UserError` of loading, `EngineDied` where loading ended the process, or what `progress`
        raised.
        """
        engine = cls(progress)
        try:
            _, engine._line = await engine._loop.create_unix_connection(
                lambda: _Line(engine._hear, engine._lost), sock=engine._child.socket
            )
            level = logging.getLogger("oneroof").getEffectiveLevel()
            engine._post(replace(order, level=level))
            engine.ready = await engine._started
        except BaseException:  # a start that is cancelled leaves no process behind either
            engine._child.kill()
            engine._started.cancel()  # nobody waits for it any more
            await engine.close()
            raise
        return engine

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """It has neither died nor been closed."""
        return not self._over.done()

    async def over(self) -> str:
        """Wait until it dies or is closed, and say why; for whoever starts another in its place."""
        return await asyncio.shield(self._over)

    async def generate(self, request: Request) -> Output:
        """All that `request` brings."""
        output = None
        async for piece in self.stream(request):
            output = piece.output or output
        assert output is not None, "nobody else can abort it"
        return output

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """`request` as it is written. Whoever leaves early, by ``aclose`` or cancellation, aborts it.

        So does ``break``, as soon as the loop comes to close the generator that it left.
        """
        key = self.add(request)
        try:
            async with aclosing(self.pieces(key)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.abort(key)

    def add(self, request: Request) -> int:
        """Begin `request`; the key is for `pieces` and `abort`, one of which has to follow.

        Raises UserError if it cannot be sent; what the engine itself refuses is told by `pieces`.
        """
        key = next(self._keys)
        self._post(Write(key, request))
        self._readers[key] = _Reader()
        return key

    def pieces(self, key: int) -> AsyncGenerator[Piece, None]:
        """The pieces of `key`, for one reader, until its output has come or it is aborted.

        Pieces that come faster than they are taken are joined. A key that was aborted, or read to its end,
        has none. Raises the UserError by which the engine refused the request, or EngineDied.
        """
        return self._pieces(key, self._readers.get(key))

    def abort(self, key: int) -> None:
        """Whoever reads `key` reads no more, and its pages are free; a finished key is passed over."""
        reader = self._readers.pop(key, None)
        if reader is not None and not reader.ended:
            reader.abort()
            self._leave(key)

    async def read(self, reading: Reading) -> Vector:
        """The final hidden state of a text's last token, or the logits of some words there."""
        key = next(self._keys)
        try:
            return await self._answer(key, Read(key, reading), self._vectors)
        except asyncio.CancelledError:
            self._leave(key)
            raise

    async def stats(self) -> Stats:
        """Counts and state of the engine, between two of its steps."""
        key = next(self._keys)
        return await self._answer(key, Ask(key), self._stats)

    async def close(self) -> None:
        """End the process; whoever still waits gets EngineDied. Closing twice is not an error."""
        self._end("this engine was closed")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await self._gone.wait()
        finally:  # also where closing is cancelled
            self._child.kill()
        await self._gone.wait()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _pieces(self, key: int, reader: _Reader | None) -> AsyncGenerator[Piece, None]:
        if reader is None:
            return
        try:
            while pieces := await reader.take():
                for piece in pieces:
                    yield piece
        finally:
            if reader.ended:
                self._readers.pop(key, None)

    async def _answer(self, key: int, order: Order, waiting: dict[int, asyncio.Future[T]]) -> T:
        self._post(order)
        waiting[key] = self._loop.create_future()
        try:
            return await waiting[key]
        finally:
            del waiting[key]

    def _post(self, order: Order) -> None:
        if not self.alive:
            raise EngineDied(self._over.result())
        assert self._line is not None
        if not self._under_way():
            self._watch.asked()
        try:
            frame = pack(order)
        except WireError as error:
            raise UserError(f"{error}; plain text and numbers of 64 bits are allowed; mend it") from error
        self._line.send(frame)

    def _under_way(self) -> int:
        """How many calls wait for an answer."""
        reads = sum(not reader.ended for reader in self._readers.values())
        return reads + len(self._vectors) + len(self._stats) + (not self._started.done())

    def _leave(self, key: int) -> None:
        if self.alive:
            self._post(Abort(key))

    def _hear(self, reply: Reply) -> None:
        """What is for a caller who has left is passed over."""
        self._watch.heard()
        match reply:
            case Events(pieces, vectors):
                for key, piece in pieces:
                    if (reader := self._readers.get(key)) is not None:
                        reader.add(key, piece)
                for key, vector in vectors:
                    _settle(self._vectors.get(key), vector)
            case Told(key, stats):
                _settle(self._stats.get(key), stats)
            case Refused(line, None):
                _fail(self._started, UserError(line))
            case Refused(line, int(key)):
                if (reader := self._readers.get(key)) is not None:
                    reader.fail(UserError(line))
                _fail(self._vectors.get(key), UserError(line))
            case Loading(done, total):
                self._report(done, total)
            case Ready():
                _settle(self._started, reply)
            case Said(level, line):
                logging.getLogger("oneroof").log(level, "%s", line)

    def _report(self, done: int, total: int) -> None:
        if self._progress is None or self._started.done():
            return
        try:
            self._progress(done, total)
        except Exception as error:  # the caller's own, and `start` brings it back to him
            _fail(self._started, error)

    def _lost(self) -> None:
        """The socket has ended: the process is about to, or cannot be spoken to any more."""
        if self._gone.is_set() or (self._line is not None and self._line.fault):
            self._bury()
        else:
            self._loop.call_later(_SECOND_SIGN, self._bury)

    def _exited(self) -> None:
        """The process has ended, says another thread. What it said last may still be on its way."""

        def here() -> None:
            self._gone.set()
            if self._line is not None and self._line.ended:
                self._bury()
            else:
                self._loop.call_later(_SECOND_SIGN, self._bury)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(here)

    def _bury(self) -> None:
        if self.alive:
            fault, torn = ("", "") if self._line is None else (self._line.fault, self._line.torn)
            why, last = fault or self._child.fate() + torn, self._child.last_words()
            log.warning(why)  # its last words are in the log
            self._end(f"{why}; it said last:{last}" if last else why)
            self._child.kill()

    def _end(self, why: str) -> None:
        """Everybody who waits hears of it; so does everybody who comes later."""
        if self.alive:
            self._over.set_result(why)
        self._watch.close()
        if self._line is None:
            self._child.socket.close()
        else:
            self._line.close()  # which the process takes for its end
        for reader in self._readers.values():
            reader.fail(EngineDied(why))
        for vector in self._vectors.values():
            _fail(vector, EngineDied(why))
        for stats in self._stats.values():
            _fail(stats, EngineDied(why))
        _fail(self._started, EngineDied(why))


class _Reader:
    """What has come for one caller and was not taken yet."""

    def __init__(self) -> None:
        self.ended = False  # no more will come
        self._pile = Pile()
        self._error: Exception | None = None
        self._bell = asyncio.Event()

    def add(self, key: int, piece: Piece) -> None:
        self._pile.add(key, piece)
        self.ended = piece.output is not None
        self._bell.set()

    def fail(self, error: Exception) -> None:
        """`error` comes after what came before it; one who has everything does not hear of it."""
        if not self.ended:
            self.ended, self._error = True, error
            self._bell.set()

    def abort(self) -> None:
        """Nothing more is wanted."""
        self.ended, self._pile = True, Pile()
        self._bell.set()

    async def take(self) -> list[Piece]:
        """All that has come, once something has; nothing where all was taken."""
        while not self._pile:
            if self._error is not None:
                raise self._error
            if self.ended:
                return []
            self._bell.clear()
            await self._bell.wait()
        return [piece for _, piece in self._pile.take()]


class _Line(asyncio.Protocol):
    """Our end of the socket."""

    def __init__(self, hear: Callable[[Reply], None], lost: Callable[[], None]) -> None:
        self.ended = False
        self.fault = ""  # what came that is no message
        self.torn = ""  # ... and what of it was missing at the end
        self._hear = hear
        self._lost = lost
        self._frames = Frames()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.push(data):
                self._hear(unpack(payload, replies))
        except WireError as error:
            self.fault = f"the engine process said what it should not: {error}"
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        try:
            self._frames.finish()
        except WireError as torn:
            self.torn = f", and {torn}"
        self._lost()

    def send(self, frame: bytes) -> None:
        """Never waits: the process hears at any time."""
        self._transport.write(frame)

    def close(self) -> None:
        self._transport.abort()


def _settle(future: asyncio.Future[T] | None, value: T) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[T] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
