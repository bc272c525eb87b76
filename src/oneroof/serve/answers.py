"""What goes back: JSON, and server-sent events whose source is closed whatever happens to the client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from oneroof.serve.gone import send_unless_gone

_DONE = b"data: [DONE]\n\n"


def encode(value: object) -> bytes:
    """`value` as JSON; half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value).encode()


class Json(Response):
    """An answer of plain data."""

    media_type = "application/json"

    def __init__(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(encode(value), status, headers)


class Events(Response):
    """A stream of events. `source` gives the data of each, and is closed at the end in any case."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[object, None], *, done: bool = True) -> None:
        """`done`: the last event is OpenAI's [DONE]."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._source = source
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, until the client leaves."""
        async with aclosing(self._source):
            await send_unless_gone(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for value in self._source:
            data = b"data: " + encode(value) + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": _DONE if self._done else b"", "more_body": False})
