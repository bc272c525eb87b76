"""The plain loop: prompts in packed calls, then a token of every running sequence a step, contiguous caches.

It is the readable reference that the paged engine is compared with: no chunks, no sharing, no scheduling but
"whoever waits joins as soon as there is room". What a sequence gets does not depend on the others, up to the
rounding of 16-bit products.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from oneroof.batch import Batch
from oneroof.device import memory
from oneroof.engine.answer import Answer
from oneroof.engine.logprobs import logprobs, prompt_logprobs
from oneroof.engine.request import Logprob, Output, Piece, Request
from oneroof.engine.sampler import Settings, sample
from oneroof.engine.slots import Slots
from oneroof.engine.stats import Speed
from oneroof.errors import UserError
from oneroof.load import Loaded
from oneroof.pages import Kind, allocate, bytes_per_token


class PlainLoop:
    """Runs requests together, `max_batch` completions at most at a time."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        max_batch: int = 8,
        max_batch_tokens: int = 8192,
        kv_memory: float | None = None,
        kv: Kind = "float",
    ) -> None:
        """Prompts are read about `max_batch_tokens` a call, at least one; `kv_memory`: GB for the cache.

        `kv`: how keys and values are kept.
        """
        self.loaded = loaded
        self.speed = Speed()
        self._max_batch = max_batch
        self._max_batch_tokens = max_batch_tokens
        self._kv_memory = kv_memory
        self._kv: Kind = kv

    def run(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """What every step adds, as it is made; each request's last piece brings its `Output`.

        Indices are unique. Raises UserError where not even one sequence's cache fits the memory that was
        allowed.
        """
        answers = [
            Answer(request, number, self.loaded.tokenizer)
            for request in requests
            for number in range(request.params.n)
        ]
        if not answers:
            return
        crowd = _Crowd(self.loaded, answers, self._slots(answers), self._max_batch_tokens, self.speed)
        while crowd.waiting or crowd.running:
            yield from crowd.read() if crowd.waiting and crowd.slots.room else crowd.write()

    def _slots(self, answers: Sequence[Answer]) -> Slots:
        config = self.loaded.config
        # the last token of a text is never read by the model
        longest = max(len(a.request.token_ids) + a.request.limit - 1 for a in answers)
        each = longest * bytes_per_token(
            depth=config.depth,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=self.loaded.dtype,
            kind=self._kv,
        )
        pages = min(self._max_batch, len(answers))
        given = self._kv_memory
        room = memory(self.loaded.device).free if given is None else given * 1e9
        pages = min(pages, int(room / each))
        if pages < 1:
            found = f"{room / 1e9:.3g} GB of memory are free" if given is None else f"kv_memory is {given} GB"
            raise UserError(
                f"{found}; {each / 1e9:.3g} GB are needed for a sequence of {longest} tokens; "
                "allow more or lower max_tokens"
            )
        cache = allocate(
            depth=config.depth,
            pages=pages,
            page_size=longest,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=self.loaded.dtype,
            device=self.loaded.device,
            kind=self._kv,
        )
        return Slots(cache, self.loaded.device, history=any(a.request.params.penalized for a in answers))


class _Crowd:
    """The sequences of one run: those that wait, and those that run, in the order of their slots."""

    def __init__(
        self, loaded: Loaded, answers: Sequence[Answer], slots: Slots, max_batch_tokens: int, speed: Speed
    ) -> None:
        self.slots = slots
        self.waiting = deque(answers)
        self.running: list[Answer] = []
        self._loaded = loaded
        self._max_batch_tokens = max_batch_tokens
        self._speed = speed
        self._settings = self._settings_of(())
        self._siblings: dict[int, list[Answer]] = {}  # the completions of each request
        for answer in answers:
            self._siblings.setdefault(answer.request.index, []).append(answer)
        self._prompt_logprobs: dict[int, tuple[Mapping[int, Logprob] | None, ...]] = {}

    @torch.inference_mode()
    def read(self) -> list[Piece]:
        """Those who wait join, as there is room: their prompts are read and first tokens chosen."""
        begin = time.perf_counter()
        joined = self._next()
        model, prompts = self._loaded.model, [a.request.token_ids for a in joined]
        alphas = [model.ntk_alpha(len(prompt)) for prompt in prompts]
        batch = self.slots.prompts(prompts, alphas)
        hidden = model(batch, self.slots.cache)
        self._read_prompt_logprobs(joined, hidden, batch)
        logits = model.logits(hidden[batch.last_rows])
        history = self.slots.history(len(self.running), batch.counts)
        tokens = sample(logits, self._settings_of(joined), batch.lengths, history)
        self.slots.join(batch, tokens, alphas)
        self.running += joined
        pieces = self._deliver(joined, logits, tokens)
        self._settle(changed=True)
        self._speed.prompt_tokens += len(batch.tokens)
        self._speed.prompt_seconds += time.perf_counter() - begin
        return pieces

    @torch.inference_mode()
    def write(self) -> list[Piece]:
        """Every running sequence reads the token it chose last and chooses the next."""
        begin = time.perf_counter()
        batch = self.slots.batch()
        logits = self._loaded.model.logits(self._loaded.model(batch, self.slots.cache))
        history = self.slots.history(0, (batch.longest,) * len(self.running))
        tokens = sample(logits, self._settings, batch.lengths, history)
        self.slots.advance(tokens)
        pieces = self._deliver(self.running, logits, tokens)
        self._settle(changed=False)
        self._speed.tokens += len(pieces)
        self._speed.seconds += time.perf_counter() - begin
        return pieces

    def _next(self) -> list[Answer]:
        joined: list[Answer] = []
        tokens = 0
        while self.waiting and len(joined) < self.slots.room:
            tokens += len(self.waiting[0].request.token_ids)
            if joined and tokens > self._max_batch_tokens:
                break
            joined.append(self.waiting.popleft())
        return joined

    def _deliver(self, answers: Sequence[Answer], logits: Tensor, tokens: Tensor) -> list[Piece]:
        """Each answer takes its token; `tokens.tolist()` is the step's one wait for the device."""
        shares = self._logprobs(answers, logits, tokens)
        pieces: list[Piece] = []
        for row, token in enumerate(tokens.tolist()):
            answer = answers[row]
            text = answer.add(token, shares.get(row))
            output = self._output(answer.request) if answer.finish_reason else None
            made = () if token < 0 else (token,)
            pieces.append(
                Piece(answer.request.index, answer.number, text, made, answer.finish_reason, output)
            )
        return pieces

    def _settle(self, *, changed: bool) -> None:
        """Those who are done leave, and the last move into their places."""
        done = [answer.finish_reason is not None for answer in self.running]
        if any(done):
            for row, answer in enumerate(self.running):
                if answer.finish_reason == "error":
                    self.slots.clear(row)
            left = done.count(False)
            movers = (row for row in range(left, len(done)) if not done[row])
            rows = [next(movers) if done[row] else row for row in range(left)]
            self.slots.keep(rows)
            self.running = [self.running[row] for row in rows]
            changed = True
        if changed:
            self._settings = self._settings_of(self.running)

    def _settings_of(self, answers: Sequence[Answer]) -> Settings:
        return Settings.of(
            [a.request.params for a in answers],
            [a.seed for a in answers],
            [len(a.request.token_ids) for a in answers],
            vocabulary=self._loaded.config.vocabulary,
            device=self._loaded.device,
        )

    def _logprobs(
        self, answers: Sequence[Answer], logits: Tensor, tokens: Tensor
    ) -> dict[int, dict[int, Logprob]]:
        """By row, for the rows that asked."""
        asked = [(row, a.request.params.logprobs) for row, a in enumerate(answers)]
        rows = {row: top for row, top in asked if top is not None}
        if not rows:
            return {}
        chosen = torch.tensor(list(rows), device=logits.device)
        return dict(
            zip(
                rows,
                logprobs(logits[chosen], tokens[chosen], list(rows.values()), self._loaded.spelled),
                strict=True,
            )
        )

    def _read_prompt_logprobs(self, answers: Sequence[Answer], hidden: Tensor, batch: Batch) -> None:
        for answer, rows in zip(answers, hidden.split(batch.counts), strict=True):
            request = answer.request
            if answer.number == 0 and request.params.prompt_logprobs is not None:
                shares = prompt_logprobs(
                    rows,
                    self._loaded.model.logits,
                    request.token_ids[1:],
                    request.params.prompt_logprobs,
                    self._loaded.spelled,
                    vocabulary=self._loaded.config.vocabulary,
                )
                self._prompt_logprobs[request.index] = (None, *shares)

    def _output(self, request: Request) -> Output | None:
        """What the request brought, once all its completions are done."""
        answers = self._siblings[request.index]
        if any(a.finish_reason is None for a in answers):
            return None
        return Output(
            index=request.index,
            prompt=request.prompt,
            prompt_token_ids=request.token_ids,
            completions=tuple(a.completion() for a in answers),
            prompt_logprobs=self._prompt_logprobs.get(request.index),
        )
