"""`/v1/completions`: texts that continue prompts, with what evaluations want to know of them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from oneroof.engine.request import Completion as Written
from oneroof.engine.request import Logprob, Output, Piece, Request
from oneroof.load import Front
from oneroof.serve.answers import Json
from oneroof.serve.failed import check, check_piece
from oneroof.serve.gone import unless_gone
from oneroof.serve.openai import Completion, Ids, params_of
from oneroof.serve.record import Record, record_of
from oneroof.serve.service import Service
from oneroof.serve.stream import events, pieces
from oneroof.serve.tokens import prompt_entries, text_logprobs

_USUAL = 16  # tokens of an answer, by OpenAI's rule


async def answer(service: Service, body: Completion, http: HttpRequest) -> Response:
    """The answer to a request, whole or as a stream."""
    record = record_of(http)
    name = service.named(body.model, record)
    options, prompts = body.options(), body.prompts()
    service.limits.count("prompts", prompts, "prompt")
    front = service.front
    most = _USUAL if body.max_tokens is None else body.max_tokens
    silent = most == 0 and body.echo  # the prompt alone is wanted: a token is made, and not told
    params = params_of(
        body, front.generation, service.limits, most=1 if silent else most, likeliest=body.logprobs
    )
    if body.echo and body.logprobs is not None and params.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=body.logprobs)
    requests = await unless_gone(
        http,
        service.requests(
            prompts,
            params,
            record,
            namespace=record.namespace(body.cache_salt),
            special=body.parse_special,
        ),
    )
    texts = _Texts(service, front, body, prompts, requests, record, name, silent)
    if body.stream:
        usage = bool(options.include_usage)
        return await events(http, texts.chunks(usage, usage and bool(options.continuous_usage_stats)))
    return Json(await unless_gone(http, texts.whole()))


@dataclass(frozen=True)
class _Texts:
    """The texts of one request, in either form."""

    service: Service
    front: Front
    body: Completion
    prompts: Sequence[str | Ids]
    requests: Sequence[Request]
    record: Record
    name: str
    silent: bool

    async def whole(self) -> dict[str, object]:
        outputs: dict[int, Output] = {}
        async with aclosing(pieces(self.service, self.requests, self.record)) as arriving:
            async for place, piece in arriving:
                if piece.output is not None:
                    outputs[place] = piece.output
        choices = [
            self._choice(place, number, outputs[place])
            for place in range(len(self.requests))
            for number in range(len(outputs[place].completions))
        ]
        return self._head() | {"choices": choices, "usage": self._usage()}

    async def chunks(self, usage: bool, each: bool) -> AsyncGenerator[object, None]:
        """Chunks as the texts are written; with log-probabilities, each text at its end: they come then."""
        head = self._head()
        waits = self.silent or self.body.logprobs is not None or self.body.prompt_logprobs is not None
        begun: set[int] = set()

        def chunk(choice: Mapping[str, object]) -> object:
            made = head | {"choices": [choice]}
            if usage:
                made["usage"] = self._usage() if each else None
            return made

        async with aclosing(pieces(self.service, self.requests, self.record)) as arriving:
            async for place, piece in arriving:
                check_piece(piece)
                if not waits:
                    index = self._index(place, piece.number)
                    if choice := self._added(place, piece, index, index not in begun):
                        begun.add(index)
                        yield chunk(choice)
                elif piece.output is not None:
                    for number in range(len(piece.output.completions)):
                        yield chunk(self._choice(place, number, piece.output))
        if usage:
            yield head | {"choices": [], "usage": self._usage()}

    def _added(self, place: int, piece: Piece, index: int, first: bool) -> dict[str, object] | None:
        text = (self._echo(place) if first and self.body.echo else "") + piece.text
        if not text and piece.finish_reason is None:
            return None
        return {"index": index, "text": text, "logprobs": None, "finish_reason": piece.finish_reason}

    def _choice(self, place: int, number: int, output: Output) -> dict[str, object]:
        completion = output.completions[number]
        check(completion)
        echo = self._echo(place) if self.body.echo else ""
        text = echo + ("" if self.silent else completion.text)
        choice: dict[str, object] = {"index": self._index(place, number), "text": text}
        choice["logprobs"] = self._logprobs(output, completion)
        choice["finish_reason"] = "length" if self.silent else completion.finish_reason
        if self.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_entries(output.prompt_logprobs)
        return choice

    def _logprobs(self, output: Output, completion: Written) -> dict[str, object] | None:
        if self.body.logprobs is None:
            return None
        ids: list[int] = []
        entries: list[Mapping[int, Logprob] | None] = []
        if self.body.echo:
            ids += output.prompt_token_ids
            entries += output.prompt_logprobs or ()
        prompt = len(ids)
        if not self.silent:
            ids += completion.token_ids
            entries += completion.logprobs or ()
        return text_logprobs(self.front, ids, entries, prompt=prompt)

    def _echo(self, place: int) -> str:
        prompt = self.prompts[place]
        if isinstance(prompt, str):
            return prompt
        return self.front.text().decode(prompt, skip_special=False)

    def _index(self, place: int, number: int) -> int:
        return place * self.requests[0].params.n + number

    def _usage(self) -> dict[str, object]:
        if not self.silent:
            return self.record.usage()
        return replace(self.record, tokens=0).usage()

    def _head(self) -> dict[str, object]:
        return {
            "id": f"cmpl-{self.record.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
