"""Engines side by side, each in a process of its own with its share of the machine: data parallel serving.

Whoever is free takes the next request, so that unequal texts are shared out evenly.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from msgspec.structs import replace

from oneroof.engine.blocking import BlockingEngine
from oneroof.engine.remote import EngineDied
from oneroof.engine.request import Piece, Reading, Request, Vector
from oneroof.engine.stats import Speed, Stats
from oneroof.engine.wire import Load, Ready
from oneroof.errors import RankLost

Event = Piece | Vector
_WAITING = 2  # requests that an engine has for each that it writes: one begins as another ends


class Fleet:
    """`count` engines of one model. Whoever made it closes it."""

    def __init__(self, order: Load, count: int, progress: Callable[[int, int], None] | None = None) -> None:
        """UserError or RankLost where one cannot be had; `progress` hears of the first one's weights."""
        self.speed = Speed()
        self._hands = order.options.max_batch * _WAITING
        self._engines: list[BlockingEngine] = []
        orders = [replace(order, engine=i, engines=count) for i in range(count)]
        try:
            with ThreadPoolExecutor(count) as pool:
                begun = [
                    pool.submit(BlockingEngine.start, one, progress=progress if i == 0 else None)
                    for i, one in enumerate(orders)
                ]
                for one in begun:
                    if one.exception() is None:
                        self._engines.append(one.result())
                for one in begun:
                    one.result()
        except EngineDied as error:
            self.close()
            raise RankLost(str(error)) from error
        except BaseException:
            self.close()
            raise

    @property
    def ready(self) -> Ready:
        """What came of loading, with the smallest context of all."""
        first = self._engines[0].ready
        return replace(first, context=min(engine.ready.context for engine in self._engines))

    def run(self, wanted: Sequence[Request | Reading]) -> Iterator[Event]:
        """What they bring, as it comes. The first error ends all."""
        waiting, lock = deque(wanted), threading.Lock()
        events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        leaving = threading.Event()

        def serve(engine: BlockingEngine) -> None:
            try:
                while not leaving.is_set():
                    with lock:
                        if not waiting:
                            break
                        one = waiting.popleft()
                    for event in engine.stream(one) if isinstance(one, Request) else [engine.read(one)]:
                        events.put(event)
                        if leaving.is_set():
                            break
            except EngineDied as error:
                events.put(RankLost(str(error)))
            except BaseException as error:
                events.put(error)
            finally:
                events.put(None)

        each = min(self._hands, -(-len(wanted) // len(self._engines)))
        hands = [
            threading.Thread(target=serve, args=(engine,), name="fleet", daemon=True)
            for _ in range(each)
            for engine in self._engines
        ]
        for hand in hands:
            hand.start()
        left = len(hands)
        try:
            while left:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    left -= 1
                else:
                    yield event
        finally:
            leaving.set()

    def stats(self) -> Stats:
        """Of all engines together."""
        each = [engine.stats() for engine in self._engines]
        return Stats(**{name: sum(getattr(one, name) for one in each) for name in vars(each[0])})

    def close(self) -> None:
        """End them all; twice is not an error."""
        for engine in self._engines:
            engine.close()
