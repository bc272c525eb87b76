"""Clients that go away: whatever is done for one ends as soon as it has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):  # noqa: N818  # as one says it
    """Nobody reads the answer any more."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and ClientGone raised, where the client leaves before."""
    return await _first(work, request.receive)


async def _first(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGone
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def send_unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """The same for an answer on its way; one that nobody reads is no error."""
    try:
        await _first(work, receive)
    except ClientGone:
        return


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
