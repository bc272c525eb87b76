"""`Service`: a model's engine and what stands before it: admission, bounds, counts. It speaks no dialect."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec

from oneroof import log
from oneroof.engine.intake import Intake, Prompt, Tools
from oneroof.engine.remote import AsyncEngine, EngineDied
from oneroof.engine.request import Output, Piece, Reading, Request, SamplingParams, Vector
from oneroof.engine.stats import Stats
from oneroof.engine.wire import Load, Ready
from oneroof.errors import RankLost, UserError
from oneroof.hub import locate
from oneroof.load import Front, read_front
from oneroof.serve.errors import Refusal, TooLong
from oneroof.serve.limits import Limits
from oneroof.serve.metrics import Metrics
from oneroof.serve.record import Record

_TOKENIZING = 2  # threads that render and tokenize: neither stops the loop that streams
_ASKING = 2.0  # seconds that the engine's own counts are waited for
_RESTARTS = 3  # of a dead engine, within so many seconds:
_WITHIN = 600.0

T = TypeVar("T")
Make = Callable[[Intake], list[Reading]]


class Service:
    """What routes ask. Made at once; `open` loads the model, and `close` ends it."""

    def __init__(self, names: Sequence[str], limits: Limits) -> None:
        """`names` are those that requests may call the model; answers call it by the first."""
        self.names = tuple(names)
        self.limits = limits
        self.metrics = Metrics(self.names[0])
        self.ready = False  # a token was made, and more can be
        self.draining = False
        self.created = int(time.time())
        self._engine: AsyncEngine | None = None
        self._intake: Intake | None = None
        self._order: Load | None = None
        self._threads = ThreadPoolExecutor(_TOKENIZING, thread_name_prefix="intake")
        self._texts = 0  # that wait or are written
        self._tokens = 0  # of their prompts
        self._index = 0
        self._recent: deque[float] = deque([1.0], maxlen=32)  # seconds that requests took
        self._closing = False

    async def open(self, order: Load, progress: Callable[[int, int], None] | None = None) -> None:
        """Load what `order` says and make a first token. UserError where it cannot be."""
        loop = asyncio.get_running_loop()
        folder = await loop.run_in_executor(
            self._threads, partial(locate, order.model, revision=order.revision, hub=order.hub)
        )
        self._order = order = _on_disk(order, str(folder))
        front = await loop.run_in_executor(self._threads, read_front, folder)
        self._engine = await AsyncEngine.start(order, progress=progress)
        said = self._engine.ready
        self._intake = Intake(front, context=said.context, writes=said.writes, seed=order.seed)
        await self._first_token()

    async def keep(self) -> None:
        """Watch over the engine for ever and start another where it died; RankLost where none stays."""
        died: deque[float] = deque(maxlen=_RESTARTS)
        while True:
            assert self._engine is not None
            assert self._order is not None
            why = await self._engine.over()
            if self._closing:
                return
            self._set_ready(False)
            if len(died) == _RESTARTS and time.monotonic() - died[0] < _WITHIN:
                raise RankLost(f"{why}; it has died {_RESTARTS + 1} times in {_WITHIN:.0f} s")
            died.append(time.monotonic())
            log.warning("the engine is started anew; requests that it had are told that it died")
            try:
                self._engine = await AsyncEngine.start(self._order)
                await self._first_token()
            except EngineDied as error:
                log.warning(f"it has not started: {error}")

    async def close(self) -> None:
        """End the engine; twice is not an error."""
        self._closing = True
        self._set_ready(False)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None:
            await self._engine.close()

    @property
    def intake(self) -> Intake:
        """The model's entrance; a 503 while it is loaded, or while no more is taken on."""
        self.check_open()
        assert self._intake is not None
        return self._intake

    @property
    def front(self) -> Front:
        """The model's config, tokenizer and template."""
        return self.intake.front

    @property
    def said(self) -> Ready | None:
        """What came of loading; None while it is under way."""
        return None if self._engine is None or self._intake is None else self._engine.ready

    @property
    def under_way(self) -> int:
        """Texts that wait or are written."""
        return self._texts

    def check_open(self) -> None:
        """A 503 while the model is loaded, the engine is started anew, or the server is told to end."""
        if self.draining:
            raise Refusal(503, "the server is about to end; ask another", code="draining", headers=_again(5))
        if not self.ready:
            raise Refusal(503, "the model is not loaded yet; try again", code="loading", headers=_again(5))

    def check_characters(self, texts: Iterable[str]) -> None:
        """UserError for a text so long that it is not worth reading: its tokens cannot fit."""
        most = self.limits.characters * self.intake.context
        for text in texts:
            if len(text) > most:
                raise UserError(
                    f"a text has {len(text)} characters; at most {most} are read, for the context has "
                    f"{self.intake.context} tokens; cut it"
                )

    def named(self, name: str | None, record: Record) -> str:
        """The model's name in answers; a 404 for another model than this."""
        if name is not None and name not in self.names:
            known = ", ".join(self.names)
            raise Refusal(
                404,
                f"model {name!a:.100} is not here; {known} is; ask for that, or leave model out",
                code="model_not_found",
                param="model",
            )
        record.model = self.names[0]
        return self.names[0]

    async def requests(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        record: Record,
        *,
        namespace: str,
        special: bool = False,
        switches: Mapping[str, object] | None = None,
        tools: Tools = None,
    ) -> list[Request]:
        """One a prompt, checked, in a thread; UserError for what cannot be, a 429 where there is no room."""
        self.check_characters(map(_spelled, prompts))
        with self._room(len(prompts) * params.n, 0):
            made = await self._apart(
                partial(
                    self.intake.requests,
                    prompts,
                    params,
                    special=special,
                    switches=switches,
                    tools=tools,
                    namespace=namespace,
                    first=self._numbers(len(prompts)),
                )
            )
        most = self.limits.max_tokens
        made = [replace(one, prompt=None, limit=min(one.limit, most)) for one in made]
        self._check_entries(made)
        record.prompt_tokens += sum(len(one.token_ids) for one in made)
        return made

    async def readings(self, make: Make, record: Record) -> list[Reading]:
        """What `make` makes of the model's entrance, in a thread; a 429 where there is no room."""
        with self._room(1, 0):
            made = await self._apart(partial(make, self.intake))
        record.prompt_tokens += sum(len(one.token_ids) for one in made)
        return made

    async def write(self, request: Request, record: Record) -> AsyncGenerator[Piece, None]:
        """The pieces of `request`. Whoever closes the generator aborts it.

        Raises TooLong where it takes more time than any may.
        """
        engine, loop, metrics = self._running(), asyncio.get_running_loop(), self.metrics
        with self._room(request.params.n, len(request.token_ids)):
            began = time.monotonic()
            key = engine.add(request)
            metrics.begun.inc()
            timer = loop.call_later(self.limits.request_seconds, engine.abort, key)
            reason = "abort"
            watch = _Clock(metrics, began)
            try:
                async with aclosing(engine.pieces(key)) as pieces:
                    async for piece in pieces:
                        watch.heard(piece)
                        record.tokens += len(piece.token_ids)
                        if piece.output is not None:
                            record.cached_tokens += piece.output.cached_tokens
                            reason = piece.output.finish_reason
                        yield piece
                if reason == "abort":  # by the timer: nobody else aborts what is still read
                    reason = "timeout"
                    most = self.limits.request_seconds
                    raise TooLong(f"the answer took more than {most:g} s, which is allowed; ask for less")
            finally:
                timer.cancel()
                engine.abort(key)
                watch.end(request, reason)
                self._recent.append(time.monotonic() - began)

    async def whole(self, request: Request, record: Record) -> Output:
        """All that `request` brings."""
        found = None
        async with aclosing(self.write(request, record)) as pieces:
            async for piece in pieces:
                found = piece.output or found
        assert found is not None
        return found

    async def read(self, readings: Sequence[Reading]) -> list[Vector]:
        """What each reading brings, in order; some of them at a time."""
        engine, limits = self._running(), self.limits
        gate = asyncio.Semaphore(4 * self._batch)

        async def one(reading: Reading) -> Vector:
            async with gate:
                return await engine.read(reading)

        with self._room(1, sum(len(reading.token_ids) for reading in readings)):
            tasks = [asyncio.ensure_future(one(reading)) for reading in readings]
            try:
                async with asyncio.timeout(limits.request_seconds):
                    return await asyncio.gather(*tasks)
            except TimeoutError:
                raise TooLong(f"this took more than {limits.request_seconds:g} s; ask for less") from None
            finally:
                for task in tasks:
                    task.cancel()

    async def stats(self) -> Stats | None:
        """The engine's own counts, if it answers soon."""
        if self._engine is None:
            return None
        with suppress(TimeoutError, EngineDied):
            async with asyncio.timeout(_ASKING):
                return await self._engine.stats()
        return None

    @property
    def _batch(self) -> int:
        return 8 if self._order is None else self._order.options.max_batch

    def _running(self) -> AsyncEngine:
        self.check_open()
        assert self._engine is not None
        return self._engine

    async def _apart(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _numbers(self, count: int) -> int:
        """The first of `count` numbers that no request has had: they decide seeds."""
        first, self._index = self._index, self._index + count
        return first

    @contextmanager
    def _room(self, texts: int, tokens: int) -> Iterator[None]:
        """Room for some texts with some tokens of prompts; a 429 that says when to come again."""
        most = self._batch + self.limits.queue
        full = self._tokens + tokens > self.limits.queue_tokens and self._tokens > 0
        if texts > most or tokens > self.limits.queue_tokens:
            raise UserError(
                f"the request asks for {texts} texts of {tokens} tokens; at most {most} are allowed"
            )
        if self._texts + texts > most or full:
            mean = sum(self._recent) / len(self._recent)
            seconds = min(60, max(1, round(mean * self._texts / self._batch)))
            line = f"{self._texts} texts wait or are written, at most {most} may; try again in {seconds} s"
            raise Refusal(429, line, code="queue_full", headers=_again(seconds))
        self._texts += texts
        self._tokens += tokens
        try:
            yield
        finally:
            self._texts -= texts
            self._tokens -= tokens

    def _check_entries(self, requests: Sequence[Request]) -> None:
        """What is told of each token is bounded: a huge answer would hold up all others."""
        entries = 0
        for one in requests:
            params = one.params
            if params.prompt_logprobs is not None:
                entries += len(one.token_ids) * (params.prompt_logprobs + 1)
            if params.logprobs is not None:
                entries += params.n * one.limit * (params.logprobs + 1)
        self.limits.check("logprob_entries", entries, "the number of log-probabilities that may come")

    async def _first_token(self) -> None:
        """Ready is who has made a token, or a vector where the model writes none."""
        assert self._engine is not None
        assert self._intake is not None
        if self._intake.writes and self._intake.front.config.causal:
            params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
            await self._engine.generate(Request(0, None, (0,), params, frozenset(), 0, 1))
        else:
            await self._engine.read(Reading(0, (0,)))
        self._set_ready(True)

    def _set_ready(self, ready: bool) -> None:
        self.ready = ready
        self.metrics.ready.set(ready)


class _Clock:
    """When tokens of one request came."""

    def __init__(self, metrics: Metrics, began: float) -> None:
        self._metrics = metrics
        self._began = began
        self._last: dict[int, float] = {}  # by completion
        self._made = 0

    def heard(self, piece: Piece) -> None:
        count = len(piece.token_ids)
        if not count:
            return
        now = time.monotonic()
        last = self._last.get(piece.number)
        if last is None:
            self._metrics.first_token.observe(now - self._began)
        else:
            for _ in range(count):
                self._metrics.between_tokens.observe((now - last) / count)
        self._last[piece.number] = now
        self._made += count
        self._metrics.tokens.inc(count)

    def end(self, request: Request, reason: str) -> None:
        metrics = self._metrics
        metrics.prompt_tokens.inc(len(request.token_ids))
        metrics.prompt.observe(len(request.token_ids))
        metrics.answer.observe(self._made)
        metrics.seconds.observe(time.monotonic() - self._began)
        metrics.finished(reason)


def _spelled(prompt: Prompt) -> str:
    """All text of a prompt; token ids have none."""
    if isinstance(prompt, str):
        return prompt
    return "".join(str(one["content"]) for one in prompt if not isinstance(one, int))


def _on_disk(order: Load, model: str) -> Load:
    """`order` for a model that is on disk."""
    return msgspec.structs.replace(order, model=model)


def _again(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}
