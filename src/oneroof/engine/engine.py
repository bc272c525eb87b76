"""The engine: many requests share the machine, and none harms another.

A step launches as many batches as may be in flight and collects the oldest. What a request gets does not
depend on its neighbours; what is wrong with it ends it alone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch

from oneroof.engine.admission import check_ids
from oneroof.engine.answer import BAD, Answer
from oneroof.engine.capacity import Capacity, cache_of, room_of
from oneroof.engine.options import EngineOptions
from oneroof.engine.prefix import Chain, salt
from oneroof.engine.request import Logprob, Output, Piece, Reading, Request, Vector
from oneroof.engine.runner import Flight, Result, Runner, Shares
from oneroof.engine.scheduler import Part, Scheduler
from oneroof.engine.sequence import Sequence
from oneroof.engine.stats import Speed, Stats
from oneroof.engine.team import Team
from oneroof.engine.whole import WholeTexts, failure
from oneroof.errors import RankLost, UserError
from oneroof.load import Loaded

Event = Piece | Vector
Drafter = Callable[[Sequence], tuple[int, ...]]


@dataclass
class _Job:
    """A request under way."""

    request: Request
    answers: list[Answer]
    sequences: list[Sequence]
    prompt_logprobs: list[dict[int, Logprob] | None] = field(default_factory=lambda: [None])


@dataclass
class _Look:
    """A text that is read, under way."""

    reading: Reading
    sequences: list[Sequence]  # one, or none where the text is read whole


class Engine:
    """Runs requests over a paged cache. Not for several threads at once."""

    def __init__(
        self,
        loaded: Loaded,
        options: EngineOptions,
        *,
        poison: bool = False,
        drafter: Drafter | None = None,
        team: Team | None = None,
        room: Capacity | None = None,
    ) -> None:
        """Raises UserError where the memory that may be used holds no cache.

        `poison`: pages that are nobody's are filled with NaN, so that whoever reads one shows. `drafter`
        guesses the next tokens of a sequence that wrote one; they are checked in its next step, and change
        nothing but the number of steps. `team`: the other ranks of a model that is shared out. `room`: what
        the memory holds, where that is known.
        """
        self.loaded = loaded
        self.options = options
        self.speed = Speed()
        self._drafter = drafter
        self._team = team
        stages = 1 if team is None else team.stages
        self._depth = options.in_flight or (1 if loaded.device.type == "cpu" or team is not None else 2)
        self._depth = max(self._depth, stages)
        self._flights: deque[Flight] = deque()
        self._jobs: dict[int, _Job | _Look] = {}
        self._owners: dict[Sequence, Answer | Reading] = {}
        self._whole = WholeTexts(
            loaded, options.max_batch_tokens, team
        )  # for models that see in both directions
        self._order = 0
        self._steps = self._prompt_tokens = self._cached_tokens = self._tokens = 0
        self._finished = self._aborted = self._failed = 0
        self._seconds = 0.0
        room = room_of(loaded, options) if room is None else room
        self.context = room.context
        self.scheduler = Scheduler(
            room.pages,
            page_size=options.page_size,
            max_batch=options.max_batch,
            max_batch_tokens=options.max_batch_tokens,
            poison=poison,
            stages=stages,
        )
        cache = cache_of(loaded, options, self.scheduler.allocator.pages)
        if poison:
            cache.fill(slice(1, None), torch.nan)
        ahead = self._depth > 1 and team is None
        self.runner = Runner(loaded, cache, options.max_batch, ahead=ahead, team=team)

    @property
    def busy(self) -> bool:
        """Something waits, runs, or is in flight."""
        return bool(self._jobs or self._flights)

    def add(self, key: int, request: Request | Reading) -> None:
        """`request` waits its turn; `key` is unique among those under way.

        Raises UserError, and takes nothing in, where it can never be served here.
        """
        if key in self._jobs:
            raise ValueError(f"key {key} is under way already")
        request = self.check(request)
        if isinstance(request, Reading):
            self._add_reading(key, request)
            return
        params, alpha = request.params, self.loaded.model.ntk_alpha(len(request.token_ids))
        answers = [Answer(request, number, self.loaded.tokenizer) for number in range(params.n)]
        chain = self._chain(request.namespace, alpha, adapter=params.adapter)
        sequences = [
            Sequence(
                key,
                number,
                request.token_ids,
                request.limit,
                self._next_order(),
                chain=chain if number == 0 else None,  # the others fork it
                reads_cache=number > 0 or params.prompt_logprobs is None,
                runs_ahead=not params.penalized and self._drafter is None and self._team is None,
                alpha=alpha,
            )
            for number in range(params.n)
        ]
        sequences[0].siblings = sequences[1:]
        self._jobs[key] = _Job(request, answers, sequences)
        self._owners.update(zip(sequences, answers, strict=True))
        self.scheduler.add(sequences[0])

    def check(self, request: Request | Reading) -> Request | Reading:
        """What `add` makes of `request`; one that writes until the context is full may end before that.

        Raises UserError where it can never be served here.
        """
        length, fits = len(request.token_ids), self.scheduler.fits
        named = f"prompt {request.index}"
        if length == 0:
            raise UserError(f"{named} has no tokens; at least 1 is allowed; write something")
        check_ids(f"{named} has token", request.token_ids, self.loaded.config.vocabulary, "cut it out")
        most = self.context if isinstance(request, Reading) else self.context - 1  # one more is to be written
        if self.loaded.config.causal and not fits(length):
            raise UserError(self._too_long(request.index, length, 0))
        if length > most:
            raise UserError(f"{named} has {length} tokens; at most {most} are allowed here; cut the prompt")
        if isinstance(request, Reading):
            check_ids(f"{named} asks for word", request.words, self.loaded.config.vocabulary, "leave it out")
            if request.words and self.loaded.model.head is None:
                raise UserError("this model has no head; embeddings are allowed, scores are not; use embed")
            return request
        if not self.loaded.config.causal or self.loaded.model.head is None:
            raise UserError("this model writes no text; embeddings are allowed; use embed")
        if length + request.limit > self.context and request.params.max_tokens is None:
            request = replace(request, limit=self.context - length)
        if fits(length + request.limit - 1):
            return replace(request, limit=min(request.limit, self.context - length))
        raise UserError(self._too_long(request.index, length, request.limit))

    def abort(self, key: int) -> None:
        """Request `key` is over, and its pages are free; a key that is not under way is passed over."""
        if key in self._jobs:
            if not self._jobs[key].sequences:
                self._whole.abort(key)
            self._drop(key)
            self._aborted += 1

    def step(self) -> list[tuple[int, Event]]:
        """Launch what may be launched, collect the oldest batch; what it brought, by key."""
        if not self.busy:
            return []
        began = time.perf_counter()
        events: list[tuple[int, Event]] = []
        for key, found in self._whole.step():
            look = self._jobs[key]
            assert isinstance(look, _Look)
            events.append((key, self._found(key, look, found)))
        while len(self._flights) < self._depth:
            step = self.scheduler.schedule()
            if step is None:
                break
            try:
                self._flights.append(self.runner.launch(step, self._owners))
            except RankLost:
                raise
            except Exception as error:  # no batch may take the engine with it
                events += self._failed_step(step.parts, error)
        if self._flights:
            flight = self._flights.popleft()
            events += self._collect(flight)
            self._count(flight, time.perf_counter() - began)
        self._steps += 1
        self._seconds += time.perf_counter() - began
        return events

    def stats(self) -> Stats:
        """What was done so far, and the state now."""
        pages = self.scheduler.allocator
        return Stats(
            waiting=self.scheduler.queued + len(self._whole),
            running=len(self.scheduler.running),
            pages=pages.pages,
            pages_free=pages.free,
            pages_cached=pages.idle,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            tokens=self._tokens,
            preemptions=self.scheduler.preemptions,
            finished=self._finished,
            aborted=self._aborted,
            failed=self._failed,
            seconds=self._seconds,
            seconds_model=self.runner.seconds + self._whole.seconds,
        )

    def _add_reading(self, key: int, reading: Reading) -> None:
        if not self.loaded.config.causal:
            self._whole.add(key, reading)
            self._jobs[key] = _Look(reading, [])
            return
        alpha = self.loaded.model.ntk_alpha(len(reading.token_ids))
        sequence = Sequence(
            key,
            0,
            reading.token_ids,
            1,
            self._next_order(),
            chain=self._chain(reading.namespace, alpha),
            alpha=alpha,
        )
        self._jobs[key] = _Look(reading, [sequence])
        self._owners[sequence] = reading
        self.scheduler.add(sequence)

    def _too_long(self, index: int, length: int, limit: int) -> str:
        pages, size = self.scheduler.allocator.pages, self.options.page_size
        asked = f" and may write {limit}" if limit else ""
        return (
            f"prompt {index} has {length} tokens{asked}; the cache holds {pages * size} ({pages} pages of "
            f"{size}); lower max_tokens, or allow more kv_memory"
        )

    def _chain(self, namespace: str, alpha: float, *, adapter: str | None = None) -> Chain | None:
        """The digests of a new sequence's pages; None where pages are not kept."""
        if not self.options.prefix_cache:
            return None
        kv = f"{self.options.kv} of {self.loaded.dtype}"
        beginning = salt(adapter=adapter, namespace=namespace, kv=kv, alpha=alpha)
        return Chain(beginning, self.options.page_size)

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _collect(self, flight: Flight) -> list[tuple[int, Event]]:
        events: list[tuple[int, Event]] = []
        try:
            results = self.runner.collect(flight)
        except RankLost:
            raise
        except Exception as error:
            return self._failed_step(flight.parts, error)
        for result in results:
            sequence = result.part.sequence
            self.scheduler.collect(result.part, result.chosen)
            job = self._jobs.get(sequence.key)
            if job is None or sequence not in job.sequences:
                continue  # it was aborted, and its key may be another's now
            if isinstance(job, _Job):
                events += self._write(sequence.key, job, result)
            elif result.vector is not None and result.part.epoch >= sequence.void:
                found = self._look(sequence, job, result.vector)
                events += [] if found is None else [(sequence.key, found)]
        return events

    def _look(self, sequence: Sequence, job: _Look, values: list[float]) -> Vector | None:
        """What `sequence` has read, unless it has to be read anew."""
        if all(map(math.isfinite, values)):
            return self._found(sequence.key, job, Vector(job.reading.index, tuple(values)))
        if self.scheduler.redo(sequence):
            return None
        self.scheduler.finish(sequence, spoiled=True)
        wrong = Vector(job.reading.index, (), "the model gave results that are not numbers")
        return self._found(sequence.key, job, wrong)

    def _found(self, key: int, look: _Look, vector: Vector) -> Vector:
        """A text has been read, or could not be."""
        for sequence in look.sequences:
            self._begun(sequence)
        if not look.sequences:
            self._prompt_tokens += len(look.reading.token_ids)
            self.speed.prompt_tokens += len(look.reading.token_ids)
            self.speed.prompt_seconds = self._whole.seconds
        self._drop(key)
        failed = vector.error is not None
        self._failed, self._finished = self._failed + failed, self._finished + (not failed)
        return vector

    def _write(self, key: int, job: _Job, result: Result) -> list[tuple[int, Event]]:
        part = result.part
        done = len(job.prompt_logprobs) - 1  # of a prompt that is read again, these are there already
        if result.prompt and part.start + len(result.prompt) > done:
            job.prompt_logprobs += result.prompt[done - part.start :]
        events: list[tuple[int, Event]] = []
        for h, heir in enumerate(part.heirs):
            stale = heir is part.sequence and part.epoch < heir.void
            if heir not in self._owners or stale:
                continue
            if result.chosen[h] == [BAD] and result.errors[h] is None and self.scheduler.redo(heir):
                continue
            if not job.answers[heir.number].token_ids and heir.number == 0:
                self._begun(heir)
            piece = self._extend(job, heir, result.chosen[h], result.shares[h], result.errors[h])
            events.append((key, piece))
        return events

    def _extend(
        self, job: _Job, heir: Sequence, tokens: list[int], shares: Shares, error: str | None
    ) -> Piece:
        """`heir` has made `tokens`; the text that they set free, and how it ends if it does."""
        answer = job.answers[heir.number]
        text: list[str] = []
        taken: list[int] = []
        try:
            for i, token in enumerate(tokens):
                if error is not None:
                    answer.fail(error)
                    break
                text.append(answer.add(token, shares[i] if i < len(shares) else None))
                if token != BAD:
                    taken.append(token)
                if answer.finish_reason is not None:
                    break
        except Exception as fault:  # a stop string, a grammar: this request's own
            answer.fail(f"its text cannot be made: {type(fault).__name__}: {fault}")
        self._tokens += len(taken)
        self.speed.tokens += len(taken) - (len(answer.token_ids) == len(taken) > 0)  # all but the first
        if answer.finish_reason is None:
            heir.drafts = () if answer.request.params.penalized else self._guesses(heir)
        else:
            self.scheduler.finish(heir, spoiled=error is None and BAD in tokens)
            del self._owners[heir]
        index = job.request.index
        output = self._output(heir.key, job) if answer.finish_reason is not None else None
        return Piece(index, heir.number, "".join(text), tuple(taken), answer.finish_reason, output)

    def _guesses(self, sequence: Sequence) -> tuple[int, ...]:
        """What may come next; not for penalties, which would have to count the guesses before each guess."""
        if self._drafter is None:
            return ()
        try:
            drafts = self._drafter(sequence)
        except Exception:  # guesses are for speed alone
            return ()
        return tuple(takewhile(lambda token: 0 <= token < self.loaded.config.vocabulary, drafts))

    def _output(self, key: int, job: _Job) -> Output | None:
        """What the request brought, once all its completions are done."""
        if any(a.finish_reason is None for a in job.answers):
            return None
        failed = any(a.finish_reason == "error" for a in job.answers)
        self._failed, self._finished = self._failed + failed, self._finished + (not failed)
        del self._jobs[key]
        request = job.request
        asked = request.params.prompt_logprobs is not None
        return Output(
            index=request.index,
            prompt=request.prompt,
            prompt_token_ids=request.token_ids,
            completions=tuple(a.completion() for a in job.answers),
            prompt_logprobs=tuple(job.prompt_logprobs) if asked else None,
            cached_tokens=job.sequences[0].cached,
        )

    def _failed_step(self, parts: list[Part], error: Exception) -> list[tuple[int, Event]]:
        """A batch could not be run: its requests end, the others go on."""
        message = failure(error)
        events: list[tuple[int, Event]] = []
        for part in parts:
            key = part.sequence.key
            job = self._jobs.get(key)
            if job is None or part.sequence not in job.sequences:
                continue
            if isinstance(job, _Look):
                events.append((key, self._found(key, job, Vector(job.reading.index, (), message))))
                continue
            for answer, sequence in zip(job.answers, job.sequences, strict=True):
                if answer.finish_reason is None:
                    answer.fail(message)
                    self.scheduler.finish(sequence, spoiled=True)
                    del self._owners[sequence]
                    output = self._output(key, job)
                    events.append((key, Piece(job.request.index, answer.number, "", (), "error", output)))
        return events

    def _drop(self, key: int) -> None:
        """Request `key` has no sequences any more."""
        job = self._jobs.pop(key)
        for sequence in job.sequences:
            self.scheduler.finish(sequence)
            self._owners.pop(sequence, None)

    def _begun(self, sequence: Sequence) -> None:
        self._prompt_tokens += sequence.prompt
        self._cached_tokens += sequence.cached

    def _count(self, flight: Flight, seconds: float) -> None:
        """Share the seconds of a step out between reading prompts and writing texts, by their rows."""
        writing = sum(p.count for p in flight.parts if p.start >= p.sequence.prompt)
        reading = sum(p.count for p in flight.parts) - writing
        if writing + reading == 0:
            return
        self.speed.prompt_tokens += reading
        self.speed.prompt_seconds += seconds * reading / (writing + reading)
        self.speed.seconds += seconds * writing / (writing + reading)
