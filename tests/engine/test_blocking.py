"""Callers without asyncio get from an engine process what those with it get, and are never left waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import standin
from standin import ask

from oneroof.engine import child
from oneroof.engine.blocking import BlockingEngine
from oneroof.engine.options import EngineOptions
from oneroof.engine.remote import EngineDied
from oneroof.engine.request import Reading, Request, SamplingParams
from oneroof.engine.wire import Load
from oneroof.errors import UserError


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingEngine]:
    """An engine whose process is a stand-in that errs on demand."""
    monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-P", str(standin.__file__)))
    with BlockingEngine.start(Load(model="any")) as found:
        yield found


def threads() -> set[str]:
    """The names of ours that live."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("engine")}


def until(met: Callable[[], bool]) -> None:
    """Wait, not for ever, until `met`."""
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < 5.0
        time.sleep(0.005)


def test_a_model_answers_and_is_gone_when_it_is_closed(checkpoint: Callable[..., Path]) -> None:
    told: list[int] = []
    order = Load(
        model=str(checkpoint("qwen3_moe")), device="cpu", threads=1, options=EngineOptions(kv_memory=0.002)
    )
    with BlockingEngine.start(order, progress=lambda done, total: told.append(done)) as engine:
        params = SamplingParams(max_tokens=9, ignore_eos=True, temperature=0.0)
        request = Request(0, None, (5, 6, 7), params, frozenset(), 0, 9)
        output = engine.generate(request)
        pieces = list(engine.stream(request))
        assert pieces[-1].output == output
        assert "".join(piece.text for piece in pieces) == output.text
        assert len(engine.read(Reading(0, (5, 6))).values) > 2
        assert engine.stats().finished >= 2
        assert engine.ready.writes
        assert engine.alive
    assert told
    assert not engine.alive
    assert not Path(f"/proc/{engine.pid}").exists()
    until(lambda: threads() == set())
    engine.close()
    for call in (engine.stats, lambda: engine.generate(request), lambda: list(engine.stream(request))):
        with pytest.raises(EngineDied, match="closed"):
            call()


def test_many_threads_are_answered_each_alone(engine: BlockingEngine) -> None:
    with ThreadPoolExecutor(20) as pool:
        lengths = pool.map(lambda n: len(engine.generate(ask("a", n)).token_ids), range(1, 41))
        streams = pool.map(lambda n: [p.text for p in engine.stream(ask("a", n))][-1], range(1, 21))
        assert list(lengths) == list(range(1, 41))
        assert [text.split()[-1] for text in streams] == [str(n) for n in range(1, 21)]


def test_a_refusal_is_its_callers(engine: BlockingEngine) -> None:
    for call in (lambda: engine.generate(ask("refuse")), lambda: list(engine.stream(ask("refuse")))):
        with pytest.raises(UserError, match="prompt 0 is refused"):
            call()
    assert engine.generate(ask("a")).text == "1 "


def test_whoever_leaves_a_stream_aborts_it(engine: BlockingEngine) -> None:
    for piece in engine.stream(ask("slow", 10**9)):
        assert piece.text
        break
    until(lambda: engine.stats().running == 0)


@pytest.mark.parametrize("end", ["kill", "close"])
def test_every_caller_hears_of_the_end(engine: BlockingEngine, end: str) -> None:
    work = [
        lambda: engine.generate(ask("slow", 10**9)),
        lambda: list(engine.stream(ask("slow", 10**9))),
        lambda: engine.generate(ask("sleep")),
        engine.stats,
    ]
    with ThreadPoolExecutor(len(work)) as pool:
        calls = [pool.submit(one) for one in work[:2]]
        until(lambda: engine.stats().running == 2)
        calls += [pool.submit(one) for one in work[2:]]
        time.sleep(0.05)
        began = time.monotonic()
        if end == "kill":
            os.kill(engine.pid, signal.SIGKILL)
        else:
            engine.close()
        for call in calls:
            if call is not calls[-1] or call.exception(5.0):  # the count may have come before
                with pytest.raises(EngineDied, match="SIGKILL" if end == "kill" else "closed"):
                    call.result(5.0)
        assert time.monotonic() - began < 1.5
    with pytest.raises(EngineDied):
        engine.generate(ask("a"))


def test_a_start_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(done: int, total: int) -> None:
        raise KeyError("a bar that is not there")

    monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-P", str(standin.__file__)))
    with pytest.raises(UserError, match="missing is no model"):
        BlockingEngine.start(Load(model="missing"))
    with pytest.raises(EngineDied, match="no memory left"):
        BlockingEngine.start(Load(model="bug"))
    with pytest.raises(KeyError):
        BlockingEngine.start(Load(model="any"), progress=wrong)
    until(lambda: threads() == set())


CTRL_C = """
import os, signal, sys, threading, time
import standin
from oneroof.engine import child
from oneroof.engine.blocking import BlockingEngine
from oneroof.engine.wire import Load

child.PROGRAM = (sys.executable, "-P", standin.__file__)

def interrupted(what):
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        what()
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not interrupted")

def nothing_runs():
    began = time.monotonic()
    while engine.stats().running:
        assert time.monotonic() - began < 5.0

with BlockingEngine.start(Load(model="any")) as engine:
    interrupted(lambda: engine.generate(standin.ask("slow", 10**9)))
    nothing_runs()
    interrupted(lambda: list(engine.stream(standin.ask("slow", 10**9))))
    nothing_runs()
    interrupted(lambda: engine.generate(standin.ask("sleep")))
assert not os.path.exists(f"/proc/{engine.pid}")
interrupted(lambda: BlockingEngine.start(Load(model="sleep")))
assert threading.active_count() <= 2, threading.enumerate()
print("done")
"""


def test_ctrl_c_in_a_call_that_waits_aborts_it() -> None:
    search = os.pathsep.join([str(Path(standin.__file__).parent), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", CTRL_C],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert (ran.stdout, ran.returncode) == ("done\n", 0), ran.stderr
