"""The door: every request is numbered, bounded, and logged; every route is closed unless it says otherwise.

Whether a key is needed is decided on the route that was matched, by the route itself, so that no spelling of
a path leads past it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable
from enum import Enum
from typing import Any, NoReturn

import msgspec
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneroof import log
from oneroof.serve.answers import Json
from oneroof.serve.errors import Refusal, error_body, refusal_of
from oneroof.serve.gone import ClientGone
from oneroof.serve.keys import Keys, presented
from oneroof.serve.limits import Limits
from oneroof.serve.metrics import Metrics
from oneroof.serve.record import Record, begin, record_of

_ACCESS = logging.getLogger("oneroof.access")
_GONE = 499  # the status that the log has for a client who left


class Door(Enum):
    """Who may come in by a route, where keys are set."""

    OPEN = "anybody"
    KEYED = "whoever has a key"
    ADMIN = "whoever has an administrator's key"


class Doorman:
    """The keys, and what is said to those who have none."""

    def __init__(self, users: Keys, admins: Keys, *, local: bool = False) -> None:
        """With no user's keys, all but administrators' routes are open.

        `local`: only to those who call this machine by an address of its own, as a browser does not that was
        led here by a foreign page.
        """
        self._users = users
        self._admins = admins
        self._local = local

    def check(self, scope: Scope, door: Door) -> None:
        """A 401 or 403 for whoever may not come in."""
        if self._local and not _names_this_machine(scope["headers"]):
            line = "Host is a foreign name; localhost and addresses are allowed; set a key, or --insecure"
            raise Refusal(403, line, code="foreign_host")
        if door is Door.OPEN or (door is Door.KEYED and not len(self._users)):
            return
        if door is Door.ADMIN and not len(self._admins):
            raise Refusal(403, "this needs an administrator's key, and the server was started with none")
        key = presented(scope["headers"])
        holder = None if key is None else (self._admins if door is Door.ADMIN else self._users).holder(key)
        if holder is None:
            what = "no key came" if key is None else "the key is wrong"
            line = f"{what}; {door.value} may come in; send Authorization: Bearer KEY"
            raise Refusal(401, line, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        record = scope["oneroof"]
        assert isinstance(record, Record)
        record.key = holder


class Keyed(APIRoute):
    """A route of ours: closed where keys are set; what it refuses is told in OpenAI's shape."""

    door = Door.KEYED

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer whoever may come in."""
        scope["app"].state.doorman.check(scope, self.door)
        await super().handle(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's, with our reading of bodies."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_Plain(request.scope, request.receive))

        return handle


class Open(Keyed):
    """A route that says nothing of anybody's data."""

    door = Door.OPEN


class Admin(Keyed):
    """A route for administrators."""

    door = Door.ADMIN


class _Plain(Request):
    """A request whose body is JSON, strictly: numbers are finite, text is Unicode."""

    async def body(self) -> bytes:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no foreign page can make a browser send unasked
            raise Refusal(
                415,
                f"the body's type is {kind!a:.60}; application/json is allowed; set Content-Type",
            )
        found = await super().body()
        if not found:
            raise Refusal(400, "there is no body; a JSON object is needed; send one")
        return found

    async def json(self) -> Any:
        try:
            found = msgspec.json.decode(await self.body())
        except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as error:
            why = str(error) or type(error).__name__
            raise Refusal(400, f"the body is no JSON: {why:.200}; an object is allowed; mend it") from None
        return found


class Entrance:
    """The outermost application: what comes in is bounded, what goes out is logged."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        """`app` answers."""
        self._app = app
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        record = begin(scope, scope["headers"])
        status, lost = 0, False

        async def sending(message: Message) -> None:
            nonlocal status, lost
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *self._headers(record)]}
            try:
                await send(message)
            except Exception:  # the connection is broken, or was answered below us: nobody hears us
                lost = True
                raise

        try:
            if _size(scope) > self._limits.head:
                line = f"the request's head has more than {self._limits.head} bytes; send less"
                await _refused(scope, receive, sending, Refusal(431, line, headers={"connection": "close"}))
            else:
                await self._app(scope, _Bounded(receive, scope, self._limits).receive, sending)
        except ClientGone:
            status = status or _GONE
        except asyncio.CancelledError:
            status = status or _GONE
            raise
        except Exception as error:
            if not lost:
                log.warning(f"request {record.id} failed by a fault of ours:\n{_trace(error)}")
            if not lost and not status:
                await _refused(scope, receive, sending, error)
        finally:
            self._tell(scope, record, status)

    def _headers(self, record: Record) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", record.id.encode()), (b"x-content-type-options", b"nosniff")]

    def _tell(self, scope: Scope, record: Record, status: int) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.answered(route, status)
        told: dict[str, object] = {
            "id": record.id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(time.monotonic() - record.began, 4),
        }
        client = scope.get("client")
        more = {"client": client[0] if client else None, "key": record.key, "model": record.model}
        told |= {name: value for name, value in more.items() if value is not None}
        if record.prompt_tokens:
            told |= {"prompt_tokens": record.prompt_tokens, "tokens": record.tokens}
        quiet = route in ("/health", "/ready", "/metrics") and status in (200, 503)
        _ACCESS.log(logging.DEBUG if quiet else logging.INFO, "access %s", json.dumps(told))


class _Bounded:
    """A request's body as it comes, which may be neither too long nor too slow."""

    def __init__(self, receive: Receive, scope: Scope, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._due = time.monotonic() + limits.body_seconds
        self._size = 0
        self._whole = False
        self._declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._declared.isdigit() and int(self._declared[:20]) > self._limits.body:
            self._refuse()
        try:
            async with asyncio.timeout(self._due - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            line = f"the body took more than {self._limits.body_seconds:g} s; send it faster"
            raise Refusal(408, line, headers={"connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._size += len(message.get("body", b""))
        if self._size > self._limits.body:
            self._refuse()
        self._whole = not message.get("more_body", False)
        return message

    def _refuse(self) -> NoReturn:
        line = f"the body has more than {self._limits.body} bytes; send less"
        raise Refusal(413, line, headers={"connection": "close"})


def closed(doorman: Doorman) -> ASGIApp:
    """What stands behind no route: it is as closed as the others."""

    async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
        doorman.check(scope, Door.KEYED)
        raise Refusal(404, "there is no such path; /openapi.json lists those there are", code="not_found")

    return nowhere


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that cannot be served."""
    if isinstance(error, ClientGone):
        return Response(status_code=_GONE)
    refusal = refusal_of(error)
    if refusal.status_code >= 500 and not isinstance(error, Refusal):
        log.warning(f"request {record_of(request).id} failed by a fault of ours:\n{_trace(error)}")
    line, status = str(refusal.detail), refusal.status_code
    body = error_body(status, line, code=refusal.code, param=refusal.param)
    return Json(body, status, refusal.headers)


async def _refused(scope: Scope, receive: Receive, send: Send, error: Exception) -> None:
    refusal = refusal_of(error)
    status = refusal.status_code
    await Json(error_body(status, str(refusal.detail)), status, refusal.headers)(scope, receive, send)


def _size(scope: Scope) -> int:
    """Bytes of a request's head, about."""
    named = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return named + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def _names_this_machine(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in ("localhost", "")
    return True


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
