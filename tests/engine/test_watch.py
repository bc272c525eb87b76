"""A process that hangs is not killed, and not kept a secret either."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys

import pytest
import standin
from standin import ask

from oneroof import log
from oneroof.engine import child, watch
from oneroof.engine.remote import AsyncEngine
from oneroof.engine.wire import Load


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, with a stand-in for the process and waits that are short."""
    monkeypatch.setattr(logging.getLogger("oneroof"), "propagate", True)
    monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-P", str(standin.__file__)))
    monkeypatch.setattr(watch, "FIRST", 0.2)
    monkeypatch.setattr(watch, "AGAIN", 0.3)
    return caplog


def said(lines: pytest.LogCaptureFixture) -> list[str]:
    """What the watch said."""
    return [line for line in lines.messages if line.startswith("the engine process")]


async def until(lines: pytest.LogCaptureFixture, count: int) -> list[str]:
    """The first `count` lines of the watch."""
    async with asyncio.timeout(5.0):
        while len(said(lines)) < count:
            await asyncio.sleep(0.01)
    return said(lines)


def test_a_process_that_is_stopped_is_told_of_again_and_again_and_goes_on(
    lines: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        async with await AsyncEngine.start(Load(model="any")) as engine:
            clock = asyncio.get_running_loop().time
            lines.clear()  # starting may have taken long
            await asyncio.sleep(0.3)  # it has nothing to do, which is no silence
            os.kill(engine.pid, signal.SIGSTOP)
            began = clock()
            calls = asyncio.gather(engine.generate(ask("slow", 3)), engine.stats())
            first = await until(lines, 1)
            assert clock() - began > 0.19
            again = await until(lines, 2)
            assert clock() - began > 0.49
            for line in (*first, *again):
                assert re.match(rf"the engine process \(pid {engine.pid}\) has said nothing for \d s, ", line)
                assert "and 2 calls wait; a step may take that long" in line
            assert engine.alive
            os.kill(engine.pid, signal.SIGCONT)
            output, _ = await calls
            assert len(output.token_ids) == 3
            assert " is heard again, after " in (await until(lines, 3))[2]

    asyncio.run(story())


class Leaping(asyncio.SelectorEventLoop):
    """A loop whose sleeps take no time."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready:
            self.now = max(self.now, min(timer.when() for timer in self._scheduled if not timer.cancelled()))
        super()._run_once()


def test_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, str]] = []
    waiting = 0

    async def story() -> None:
        nonlocal waiting
        clock = asyncio.get_running_loop().time
        monkeypatch.setattr(log, "warning", lambda line: told.append((clock(), line.split("(pid 7) ")[1])))
        found = watch.Watch(7, lambda: waiting)
        await asyncio.sleep(100)  # nobody waits
        found.asked()
        waiting = 1
        for _ in range(10):  # it speaks, though seldom
            await asyncio.sleep(29)
            found.heard()
        assert told == []
        await asyncio.sleep(151)  # from 390 on
        waiting = 0
        await asyncio.sleep(200)
        found.asked()  # the next one, at 741
        waiting = 2
        await asyncio.sleep(70)
        found.heard()  # at 811
        await asyncio.sleep(40)
        found.close()
        await asyncio.sleep(500)

    with asyncio.Runner(loop_factory=Leaping) as runner:
        runner.run(story())
    assert [(round(time), line.partition(";")[0]) for time, line in told] == [
        (420, "has said nothing for 30 s, and 1 call waits"),
        (480, "has said nothing for 90 s, and 1 call waits"),
        (540, "has said nothing for 150 s, and 1 call waits"),
        (771, "has said nothing for 30 s, and 2 calls wait"),
        (811, "is heard again, after 70 s"),
        (841, "has said nothing for 30 s, and 2 calls wait"),
    ]


def test_a_loading_that_hangs_is_told(lines: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        start = asyncio.create_task(AsyncEngine.start(Load(model="sleep")))
        assert "and 1 call waits" in (await until(lines, 1))[0]
        start.cancel()
        await asyncio.wait([start])

    asyncio.run(story())
