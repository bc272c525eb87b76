"""`BlockingEngine`: an engine in a process of its own, for callers who wait and know nothing of asyncio.

It is an `AsyncEngine` whose loop runs in a thread. Any number of threads may call, and each waits for its own
answer alone; it gets the `UserError` that its request earned, or `EngineDied`, as it would there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import TypeVar

from oneroof.engine.remote import AsyncEngine, EngineDied
from oneroof.engine.request import Output, Piece, Reading, Request, Vector
from oneroof.engine.stats import Stats
from oneroof.engine.wire import Load, Ready

T = TypeVar("T")


class BlockingEngine:
    """An engine process and its callers. Made by `start`, and closed by whoever made it.

    An exception in a call that waits, such as that of Ctrl-C, aborts what was asked.
    """

    def __init__(self) -> None:
        """Not to be called: see `start`."""
        self._engine: AsyncEngine
        self._begun = False  # there is an engine
        self._closed = False  # nothing more is taken
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine's callers", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, order: Load, *, progress: Callable[[int, int], None] | None = None) -> BlockingEngine:
        """A process that has loaded what `order` says; ``progress(done, all)`` is told bytes meanwhile.

        A thread of ours calls `progress`. Raises the `UserError` of loading, `EngineDied` where loading ended
        the process, or what `progress` raised.
        """
        engine = cls()
        try:
            engine._wait(engine._submit(engine._begin(order, progress)))
        except BaseException:
            engine.close()
            raise
        return engine

    @property
    def ready(self) -> Ready:
        """What came of loading."""
        return self._engine.ready

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._engine.pid

    @property
    def alive(self) -> bool:
        """It has neither died nor been closed."""
        return self._engine.alive

    def generate(self, request: Request) -> Output:
        """All that `request` brings."""
        return self._wait(self._submit(self._engine.generate(request)))

    def stream(self, request: Request) -> Iterator[Piece]:
        """`request` as it is written, begun with the first `next`. Whoever leaves early aborts it."""
        pieces: SimpleQueue[Piece | None] = SimpleQueue()

        async def bring() -> None:
            try:
                async for piece in self._engine.stream(request):
                    pieces.put(piece)
            finally:
                pieces.put(None)

        reading = self._submit(bring())
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            reading.result()  # raises what ended it before its time
        finally:
            reading.cancel()

    def read(self, reading: Reading) -> Vector:
        """The final hidden state of a text's last token, or the logits of some words there."""
        return self._wait(self._submit(self._engine.read(reading)))

    def stats(self) -> Stats:
        """Counts and state of the engine, between two of its steps."""
        return self._wait(self._submit(self._engine.stats()))

    def close(self) -> None:
        """End the process; whoever still waits gets EngineDied. Closing twice is not an error."""
        with self._lock:
            if not self._closed:
                self._closed = True
                finishing = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
                finishing.add_done_callback(lambda _: self._loop.stop())  # by its thread, waited for or not
        self._thread.join()
        with self._lock:
            self._loop.close()

    def __enter__(self) -> BlockingEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, work: Coroutine[None, None, T]) -> Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise EngineDied("this engine was closed")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Future[T]) -> T:
        try:
            return work.result()
        finally:
            work.cancel()  # which a finished one does not mind

    async def _begin(self, order: Load, progress: Callable[[int, int], None] | None) -> None:
        self._engine = await AsyncEngine.start(order, progress=progress)
        self._begun = True

    async def _finish(self) -> None:
        """All others end by themselves once the engine has; a start that was left ends its process."""
        if self._begun:
            await self._engine.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        if self._begun:
            await self._engine.close()  # it came to life meanwhile
        await self._loop.shutdown_asyncgens()
