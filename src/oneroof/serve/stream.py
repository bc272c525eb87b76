"""Streams of an answer's chunks: begun once something has come, and never broken off without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.requests import Request as HttpRequest

from oneroof import log
from oneroof.engine.request import Piece, Request
from oneroof.serve.answers import Events
from oneroof.serve.errors import error_body, refusal_of
from oneroof.serve.gone import unless_gone
from oneroof.serve.record import Record
from oneroof.serve.service import Service

Numbered = tuple[int, Piece]  # of which request


async def pieces(
    service: Service, requests: Sequence[Request], record: Record
) -> AsyncGenerator[Numbered, None]:
    """The pieces of several requests, mixed as they come. Whoever closes it aborts them all."""
    if len(requests) == 1:
        async with aclosing(service.write(requests[0], record)) as alone:
            async for piece in alone:
                yield 0, piece
        return
    arrived: asyncio.Queue[Numbered | Exception | None] = asyncio.Queue()

    async def take(number: int, request: Request) -> None:
        try:
            async with aclosing(service.write(request, record)) as found:
                async for piece in found:
                    arrived.put_nowait((number, piece))
        except Exception as error:
            arrived.put_nowait(error)
        arrived.put_nowait(None)

    tasks = [asyncio.ensure_future(take(i, request)) for i, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            event = await arrived.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def events(http: HttpRequest, chunks: AsyncGenerator[object, None]) -> Events:
    """An answer of `chunks`. What goes wrong before the first is raised here, and has a status of its own."""
    try:
        first = await unless_gone(http, anext(chunks))
    except BaseException:
        await chunks.aclose()
        raise
    return Events(_with_errors(first, chunks))


async def _with_errors(first: object, chunks: AsyncGenerator[object, None]) -> AsyncGenerator[object, None]:
    """What goes wrong later is the last event."""
    async with aclosing(chunks):
        yield first
        try:
            async for chunk in chunks:
                yield chunk
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status_code >= 500:
                log.warning(f"a stream failed: {type(error).__name__}: {error}")
            yield error_body(refusal.status_code, str(refusal.detail), code=refusal.code)
