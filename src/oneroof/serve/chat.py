"""`/v1/chat/completions`: the next turn of a conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from oneroof.engine.request import Completion, Request
from oneroof.errors import UserError
from oneroof.load import Front
from oneroof.serve.answers import Json
from oneroof.serve.failed import check, check_piece
from oneroof.serve.gone import unless_gone
from oneroof.serve.openai import Chat, params_of
from oneroof.serve.parts import Delta, Parts, Schemas, knows_tools, message, parts_of
from oneroof.serve.record import Record, record_of
from oneroof.serve.service import Service
from oneroof.serve.stream import events
from oneroof.serve.tokens import chat_logprobs, prompt_entries


async def answer(service: Service, body: Chat, http: HttpRequest) -> Response:
    """The answer to a request, whole or as a stream."""
    record = record_of(http)
    name = service.named(body.model, record)
    service.limits.count("messages", body.messages)
    options = body.options()
    front = service.front
    params = params_of(body, front.generation, service.limits, most=body.most(), likeliest=body.likeliest())
    schemas = body.offered(service.limits)
    if schemas and not knows_tools(front):
        raise UserError("tools is given and this model's chat template knows none; leave it out")
    [request] = await unless_gone(
        http,
        service.requests(
            [[one.plain() for one in body.messages]],
            params,
            record,
            namespace=record.namespace(body.cache_salt),
            switches=body.switches(service.limits),
            tools=body.tools if schemas else None,
        ),
    )
    turn = _Turn(service, front, request, schemas, record, name)
    if body.stream:
        usage = bool(options.include_usage)
        return await events(http, turn.chunks(usage, usage and bool(options.continuous_usage_stats)))
    return Json(await unless_gone(http, turn.whole()))


@dataclass(frozen=True)
class _Turn:
    """One answer, in either form."""

    service: Service
    front: Front
    request: Request
    schemas: Schemas
    record: Record
    name: str

    async def whole(self) -> dict[str, object]:
        output = await self.service.whole(self.request, self.record)
        choices = []
        for number, completion in enumerate(output.completions):
            check(completion)
            parts = self._parts(number)
            made = message([*parts.push(completion.text), *parts.finish()])
            choice: dict[str, object] = {"index": number, "message": made, "logprobs": self._told(completion)}
            choices.append(choice | {"finish_reason": parts.reason(completion.finish_reason)})
        answer = self._head("chat.completion") | {"choices": choices, "usage": self.record.usage()}
        if output.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_entries(output.prompt_logprobs)
        return answer

    async def chunks(self, usage: bool, each: bool) -> AsyncGenerator[object, None]:
        """Chunks as the text is written; with log-probabilities, all at its end, for they come then."""
        head = self._head("chat.completion.chunk")
        parsers: dict[int, Parts] = {}

        def chunk(number: int, delta: Delta, logprobs: object, reason: str | None) -> object:
            choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            made = head | {"choices": [choice]}
            if usage:
                made["usage"] = self.record.usage() if each else None
            return made

        async with aclosing(self._texts()) as texts:
            async for number, text, reason, logprobs in texts:
                if number not in parsers:
                    parsers[number] = self._parts(number)
                    yield chunk(number, {"role": "assistant", "content": ""}, None, None)
                deltas = parsers[number].push(text)
                deltas += parsers[number].finish() if reason is not None else []
                for delta in deltas:
                    yield chunk(number, delta, logprobs, None)
                    logprobs = None
                if reason is not None:
                    yield chunk(number, {}, logprobs, parsers[number].reason(reason))
        if usage:
            yield head | {"choices": [], "usage": self.record.usage()}

    async def _texts(self) -> AsyncGenerator[tuple[int, str, str | None, object], None]:
        """What is added to which completion, why it ended, and its log-probabilities."""
        waits = self.request.params.logprobs is not None
        async with aclosing(self.service.write(self.request, self.record)) as arriving:
            async for piece in arriving:
                check_piece(piece)
                if not waits:
                    yield piece.number, piece.text, piece.finish_reason, None
                elif piece.output is not None:
                    for number, one in enumerate(piece.output.completions):
                        yield number, one.text, one.finish_reason, self._told(one)

    def _parts(self, number: int) -> Parts:
        def name(index: int) -> str:
            return f"call_{self.record.id}_{number}_{index}"

        return parts_of(self.front, self.request.token_ids, self.schemas, name)

    def _told(self, completion: Completion) -> object:
        return chat_logprobs(self.front, completion, self.request.params.logprobs or 0)

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": f"chatcmpl-{self.record.id}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
        }
