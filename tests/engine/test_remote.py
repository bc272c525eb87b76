"""Callers of an engine in another process get what they would get in this one, or hear why not."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import standin
from standin import ask

from oneroof.engine import child, remote
from oneroof.engine.engine import Engine
from oneroof.engine.intake import Intake
from oneroof.engine.options import EngineOptions
from oneroof.engine.remote import AsyncEngine, EngineDied
from oneroof.engine.request import Output, Piece, Reading, Request, SamplingParams, Vector
from oneroof.engine.wire import Load
from oneroof.errors import UserError
from oneroof.load import Loaded, load, read_front

T = TypeVar("T")
Run = Callable[[Coroutine[None, None, T]], T]

OPTIONS = EngineOptions(kv_memory=0.002, max_batch=4, max_batch_tokens=64)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as found:
        yield found


@pytest.fixture(scope="module")
def model(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_moe")


@pytest.fixture(scope="module")
def loaded(model: Path) -> Loaded:
    return load(model, device="cpu", dtype="float32")


def order(model: Path | str, options: EngineOptions = OPTIONS) -> Load:
    return Load(model=str(model), device="cpu", dtype="float32", threads=1, options=options)


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner, model: Path) -> Iterator[AsyncEngine]:
    """An engine that tests leave as they found it."""
    found = runner.run(AsyncEngine.start(order(model)))
    yield found
    runner.run(found.close())


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is a stand-in that errs on demand."""
    monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-P", str(standin.__file__)))


def request(index: int, limit: int = 12, **fields: object) -> Request:
    """A prompt of its own for each index, drawn with a seed of its own."""
    params = SamplingParams(max_tokens=limit, ignore_eos=True, **fields)  # type: ignore[arg-type]
    ids = tuple((index * 31 + i * 7) % 300 for i in range(3 + index % 40))
    return Request(index, None, ids, params, frozenset(), 1000 + index, limit)


def here(loaded: Loaded, work: list[Request | Reading]) -> dict[int, Output | Vector]:
    """What an engine in this process makes of it."""
    engine, found = Engine(loaded, OPTIONS), {}
    for key, one in enumerate(work):
        engine.add(key, one)
    while engine.busy:
        for key, event in engine.step():
            result = event.output if isinstance(event, Piece) else event
            if result is not None:
                found[key] = result
    return found


async def nothing_runs(engine: AsyncEngine) -> bool:
    """The engine is as it was before anybody came."""
    stats = await engine.stats()
    return (stats.running, stats.waiting, stats.pages_free + stats.pages_cached) == (0, 0, stats.pages)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()  # we collected it: not even an entry is left


def test_many_streams_at_once_bring_what_one_process_brings(
    runner: asyncio.Runner, engine: AsyncEngine, loaded: Loaded
) -> None:
    work: list[Request | Reading] = [
        request(i, limit=5 + i % 20, n=1 + i % 2, logprobs=2 if i % 3 == 0 else None) for i in range(24)
    ]

    async def one(request: Request) -> tuple[Output, dict[int, str], dict[int, list[int]]]:
        texts: dict[int, str] = {}
        tokens: dict[int, list[int]] = {}
        output = None
        async for piece in engine.stream(request):
            assert output is None  # it comes last
            assert piece.index == request.index
            texts[piece.number] = texts.get(piece.number, "") + piece.text
            tokens.setdefault(piece.number, []).extend(piece.token_ids)
            output = piece.output
        assert output is not None
        return output, texts, tokens

    async def crowd() -> list[tuple[Output, dict[int, str], dict[int, list[int]]]]:
        return await asyncio.gather(*(one(w) for w in work if isinstance(w, Request)))

    expected = here(loaded, work)
    for i, (output, texts, tokens) in enumerate(runner.run(crowd())):
        expect = expected[i]
        assert isinstance(expect, Output)
        assert [c.token_ids for c in output.completions] == [c.token_ids for c in expect.completions]
        assert [c.text for c in output.completions] == [c.text for c in expect.completions]
        assert (output.logprobs is None) == (expect.logprobs is None)
        for number, completion in enumerate(output.completions):
            assert texts[number] == completion.text
            assert tuple(tokens[number]) == completion.token_ids
    assert runner.run(nothing_runs(engine))


def test_readings_bring_what_one_process_brings(
    runner: asyncio.Runner, engine: AsyncEngine, loaded: Loaded
) -> None:
    work: list[Request | Reading] = [
        Reading(i, tuple(range(5, 9 + i)), (3, 4) if i % 2 else ()) for i in range(6)
    ]

    async def crowd() -> list[Vector]:
        return await asyncio.gather(*(engine.read(w) for w in work if isinstance(w, Reading)))

    expected = here(loaded, work)
    for i, vector in enumerate(runner.run(crowd())):
        expect = expected[i]
        assert isinstance(expect, Vector)
        assert vector.index == i
        assert len(vector.values) == len(expect.values) == (2 if i % 2 else loaded.config.dim)
        assert np.allclose(vector.values, expect.values, atol=1e-5)


def test_prompts_become_requests_without_weights(
    runner: asyncio.Runner, engine: AsyncEngine, model: Path, loaded: Loaded
) -> None:
    ready = engine.ready
    assert (ready.folder, ready.dtype, ready.writes) == (str(model), "float32", True)
    assert ready.device.startswith("cpu: ")
    assert ready.device.endswith(", 1 threads")
    assert 2 <= ready.context <= loaded.config.max_positions
    intake = Intake(read_front(Path(ready.folder)), context=ready.context, writes=ready.writes, seed=3)
    (asked,) = intake.requests("hello there", SamplingParams(max_tokens=5, temperature=0.0))
    output = runner.run(engine.generate(asked))
    assert output.prompt == "hello there"
    assert output == here(loaded, [asked])[0]


def test_a_refusal_comes_to_its_caller_alone(runner: asyncio.Runner, engine: AsyncEngine) -> None:
    long = Request(7, None, (5,) * 20_000, SamplingParams(), frozenset(), 0, 16)

    async def crowd() -> list[Output | Vector | BaseException]:
        return await asyncio.gather(
            engine.generate(request(1)),
            engine.generate(long),
            engine.read(Reading(8, (5,) * 20_000)),
            engine.generate(request(2)),
            return_exceptions=True,
        )

    first, refused, unread, second = runner.run(crowd())
    assert isinstance(first, Output)
    assert isinstance(second, Output)
    assert isinstance(refused, UserError)
    assert "prompt 7 has 20000 tokens" in str(refused)
    assert isinstance(unread, UserError)


@pytest.mark.parametrize(
    "fields",
    [{"stop": "\ud800"}, {"top_k": 2**70}, {"prompt": "\udc80"}, {"token_ids": (True,)}],
    ids=str,
)
def test_a_request_that_cannot_be_sent_is_refused_alone(
    runner: asyncio.Runner, engine: AsyncEngine, fields: dict[str, object]
) -> None:
    own = {k: v for k, v in fields.items() if k in ("prompt", "token_ids")}
    wrong = replace(request(3), **own)  # type: ignore[arg-type]
    if len(own) < len(fields):
        wrong = replace(wrong, params=replace(wrong.params, **fields))  # type: ignore[arg-type]
    with pytest.raises(UserError):
        runner.run(engine.generate(wrong))
    assert isinstance(runner.run(engine.generate(request(1))), Output)


def test_an_abort_frees_its_pages_before_the_next_step(runner: asyncio.Runner, engine: AsyncEngine) -> None:
    async def story() -> None:
        before = await engine.stats()
        keys = [engine.add(request(i, limit=80)) for i in range(3)]
        readers = [engine.pieces(key) for key in keys]
        for reader in readers:
            await anext(reader)
        middle = await engine.stats()
        assert middle.running == 3
        assert middle.pages_free + middle.pages_cached < middle.pages
        for key in keys:
            engine.abort(key)
        after = await engine.stats()
        assert (after.running, after.aborted - before.aborted) == (0, 3)
        assert after.pages_free + after.pages_cached == after.pages
        assert after.steps - middle.steps <= 2  # the one under way, and one begun meanwhile
        for reader in readers:
            with pytest.raises(StopAsyncIteration):
                await anext(reader)

    runner.run(story())


def test_a_key_that_is_over_has_no_pieces(runner: asyncio.Runner, engine: AsyncEngine) -> None:
    async def read(pieces: AsyncGenerator[Piece, None]) -> list[Piece]:
        return [piece async for piece in pieces]

    async def story() -> None:
        key = engine.add(request(1, limit=80))
        begun = asyncio.create_task(read(engine.pieces(key)))  # it has not run when the abort comes
        engine.abort(key)
        assert await begun == []
        assert await read(engine.pieces(key)) == []
        key = engine.add(request(1, limit=3))
        assert (await read(engine.pieces(key)))[-1].output is not None
        assert await read(engine.pieces(key)) == []

    runner.run(story())
    assert runner.run(nothing_runs(engine))


@pytest.mark.parametrize("how", ["aclose", "break", "cancel", "timeout"])
def test_whoever_leaves_a_stream_early_aborts_it(
    runner: asyncio.Runner, engine: AsyncEngine, how: str
) -> None:
    async def leave_by_break() -> None:
        async for _ in engine.stream(request(1, limit=80)):
            break

    async def story() -> None:
        before = await engine.stats()
        if how == "aclose":
            stream = engine.stream(request(1, limit=80))
            await anext(stream)
            await stream.aclose()
        elif how == "break":
            await leave_by_break()
            while (await engine.stats()).running:  # the loop closes what the break left
                await asyncio.sleep(0)
        elif how == "cancel":
            task = asyncio.create_task(engine.generate(request(1, limit=80)))
            while (await engine.stats()).running == 0:
                assert not task.done()
            task.cancel()
            await asyncio.wait([task])
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.generate(request(1, limit=120)), 0.005)
        after = await engine.stats()
        assert (after.running, after.waiting, after.aborted - before.aborted) == (0, 0, 1)

    runner.run(story())


def test_whoever_does_not_read_stops_nobody_and_finds_it_joined(
    runner: asyncio.Runner, engine: AsyncEngine
) -> None:
    async def story() -> tuple[list[Piece], Output]:
        slow = engine.stream(request(1, limit=60))
        pieces = [await anext(slow)]
        other = await engine.generate(request(1, limit=60))  # begun later, and done
        await asyncio.sleep(0)
        while (await engine.stats()).running:
            await asyncio.sleep(0.01)
        pieces += [piece async for piece in slow]
        return pieces, other

    pieces, other = runner.run(story())
    assert len(pieces) < 10
    assert "".join(p.text for p in pieces) == other.text
    assert tuple(t for p in pieces for t in p.token_ids) == other.token_ids
    assert pieces[-1].output is not None


def test_without_work_it_sleeps(engine: AsyncEngine, runner: asyncio.Runner) -> None:
    def ticks() -> int:
        fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    assert runner.run(nothing_runs(engine))
    before = ticks()
    time.sleep(0.3)
    assert ticks() - before <= 2  # of a hundred a second


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("/no/such/folder", OPTIONS, "/no/such/folder"),
        ("demo", replace(OPTIONS, max_model_len=10**6), "max_model_len 1000000"),
        ("demo", replace(OPTIONS, kv_memory=1e-6), "kv_memory"),
    ],
)
def test_what_cannot_be_loaded_is_a_user_error(
    runner: asyncio.Runner, model: str, options: EngineOptions, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        runner.run(AsyncEngine.start(order(model, options)))


def test_a_killed_engine_is_an_error_for_everybody_at_once(runner: asyncio.Runner, model: Path) -> None:
    async def story() -> None:
        async with await AsyncEngine.start(order(model)) as engine:
            calls: list[asyncio.Task[object]] = [
                asyncio.create_task(engine.generate(request(i, limit=80))) for i in range(12)
            ]  # of which 4 run and 8 wait to be admitted
            while (await engine.stats()).running < 4:
                assert not any(call.done() for call in calls)
            silent = engine.add(request(1, limit=80))
            supervisor = asyncio.create_task(engine.over())
            os.kill(engine.pid, signal.SIGKILL)
            calls.append(asyncio.create_task(engine.read(Reading(0, (4, 5)))))
            calls.append(asyncio.create_task(engine.stats()))
            began = time.monotonic()
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - began < 1.0
            assert {type(f) for f in found} == {EngineDied}
            assert {str(f).split("(")[1] for f in found} == {f"pid {engine.pid}) was killed by SIGKILL "}
            assert "SIGKILL" in await supervisor
            assert not engine.alive
            with pytest.raises(EngineDied, match="SIGKILL"):
                _ = [piece async for piece in engine.pieces(silent)]
            for call in (engine.stats(), engine.generate(request(1)), engine.read(Reading(0, (4, 5)))):
                with pytest.raises(EngineDied, match="SIGKILL"):
                    await call

    runner.run(story())


def test_a_closed_engine_says_so_and_is_gone(runner: asyncio.Runner, odd: None) -> None:
    async def story() -> None:
        engine = await AsyncEngine.start(Load(model="any"))
        task = asyncio.create_task(engine.generate(ask("sleep")))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await engine.close()
        assert time.monotonic() - began < 2.5  # although a step takes a minute
        assert gone(engine.pid)
        await engine.close()
        assert await engine.over() == "this engine was closed"
        for call in (task, engine.stats()):
            with pytest.raises(EngineDied, match="closed"):
                await call

    runner.run(story())


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("bug", r"ended with status 1; it said last:(.|\n)*RuntimeError: the bug itself$"),
        ("crash", "was killed by SIGSEGV"),
        ("leave", "ended with status 0"),
        ("babble", "said what it should not: b'HTTP' came"),
        ("hang up", "closed its socket"),
        ("tear", r"ended with status 3, and the socket closed within a frame, after \d+ bytes of it"),
    ],
)
def test_however_it_dies_callers_hear_why(runner: asyncio.Runner, odd: None, prompt: str, said: str) -> None:
    async def story() -> None:
        async with await AsyncEngine.start(Load(model="any")) as engine:
            calls = [asyncio.create_task(engine.generate(ask(p, 10**9))) for p in ("a", "a", prompt)]
            began = time.monotonic()
            for call in calls:
                with pytest.raises(EngineDied, match=said):
                    await call
            assert time.monotonic() - began < 1.0
        assert gone(engine.pid)

    runner.run(story())


def test_loading_can_end_the_process_too(runner: asyncio.Runner, odd: None) -> None:
    with pytest.raises(EngineDied, match="no memory left"):
        runner.run(AsyncEngine.start(Load(model="bug")))
    with pytest.raises(UserError, match="missing is no model"):
        runner.run(AsyncEngine.start(Load(model="missing")))


def test_a_start_that_is_cancelled_leaves_no_process(
    runner: asyncio.Runner, odd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    kill = child.Child.kill

    def noted(self: child.Child) -> None:
        pids.append(self.pid)
        kill(self)

    monkeypatch.setattr(child.Child, "kill", noted)
    with pytest.raises(TimeoutError):
        runner.run(asyncio.wait_for(AsyncEngine.start(Load(model="sleep")), 0.2))
    assert pids
    assert gone(pids[0])


def test_a_start_that_fails_here_is_told_as_it_is_and_leaves_nothing(
    runner: asyncio.Runner, odd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SECOND_SIGN", 0.01)
    calls: list[int] = []

    def wrong(done: int, total: int) -> None:
        calls.append(done)
        raise KeyError("a bar that is not there")

    async def story() -> None:
        gc.collect()  # what others have left
        faults: list[object] = []
        runner.get_loop().set_exception_handler(lambda loop, context: faults.append(context))
        with pytest.raises(KeyError, match="a bar that is not there"):
            await AsyncEngine.start(Load(model="any"), progress=wrong)
        with pytest.raises(UserError, match="surrogates"):
            await AsyncEngine.start(Load(model="\ud800"))
        await asyncio.sleep(0.1)  # the last timers that know of it run out
        gc.collect()  # a failure that nobody took is told when it is thrown away
        runner.get_loop().set_exception_handler(None)
        assert faults == []

    runner.run(story())
    assert calls == [1]  # it is not asked again


def test_progress_and_log_reach_the_caller(
    runner: asyncio.Runner, odd: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("oneroof"), "propagate", True)
    told: list[tuple[int, int]] = []

    async def story() -> None:
        with caplog.at_level("INFO", "oneroof"):
            start = AsyncEngine.start(Load(model="any"), progress=lambda done, all: told.append((done, all)))
            async with await start as engine:
                await engine.stats()

    runner.run(story())
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert sorted(caplog.messages) == [
        "a word of warning",
        "engine: printed by a library",
        "engine: said by another",
    ]


def test_an_output_in_hand_is_not_lost_by_a_death(runner: asyncio.Runner, odd: None) -> None:
    async def story() -> None:
        async with await AsyncEngine.start(Load(model="any")) as engine:
            whole, half = engine.add(ask("a", 3)), engine.add(ask("a", 10**9))
            while (await engine.stats()).running > 1:
                await asyncio.sleep(0)
            os.kill(engine.pid, signal.SIGKILL)
            await engine.over()
            pieces = [piece async for piece in engine.pieces(whole)]
            assert pieces[-1].output is not None
            reader = engine.pieces(half)
            assert (await anext(reader)).text.startswith("1 2 3 ")
            with pytest.raises(EngineDied):
                await anext(reader)

    runner.run(story())


@pytest.mark.slow
def test_hundreds_who_come_and_leave_as_they_like_leave_nothing_behind(
    runner: asyncio.Runner, engine: AsyncEngine
) -> None:
    chance = random.Random(5)

    async def caller(index: int) -> str:
        await asyncio.sleep(chance.random() / 2)
        how = chance.choice(["all", "all", "aclose", "cancel", "slow", "read", "refused"])
        if how == "read":
            await engine.read(Reading(index, (5, 6, 7)))
        elif how == "refused":
            with pytest.raises(UserError):
                await engine.generate(Request(0, None, (5,) * 9999, SamplingParams(), frozenset(), 0, 16))
        elif how == "cancel":
            with suppress(TimeoutError):
                await asyncio.wait_for(engine.generate(request(index, limit=60)), chance.random() / 2)
        else:
            async with aclosing(engine.stream(request(index, limit=1 + index % 60))) as stream:
                async for _ in stream:
                    if how == "aclose" and chance.random() < 0.2:
                        break
                    await asyncio.sleep(0.05 if how == "slow" else 0)
        return how

    async def crowd() -> list[str]:
        return await asyncio.gather(*(caller(i) for i in range(150)))

    assert len(set(runner.run(crowd()))) == 6
    assert runner.run(nothing_runs(engine))
    held = (engine._readers, engine._vectors, engine._stats)
    assert held == ({}, {}, {})
