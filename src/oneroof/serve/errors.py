"""What a request is told when it cannot be served, in OpenAI's shape: ``{"error": {"message", ...}}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from oneroof.engine.remote import EngineDied
from oneroof.errors import UserError

_LONGEST = 1000  # characters of a message: what a client sent is never sent back at length
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(HTTPException):
    """A request that is not served, and why, in one line."""

    def __init__(
        self,
        status: int,
        line: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`code` is a word for programs; `param` the field that is wrong."""
        super().__init__(status, line, dict(headers or {}))
        self.code = code
        self.param = param


class TooLong(Exception):  # noqa: N818  # as one says it
    """A request took more time than any may."""


def error_body(
    status: int, line: str, *, code: str | None = None, param: str | None = None
) -> dict[str, object]:
    """The answer's content."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": line[:_LONGEST], "type": kind, "param": param, "code": code}}


def refusal_of(error: Exception) -> Refusal:
    """`error` as a refusal; what is no fault of the request's is a 500 that tells nothing of our insides."""
    match error:
        case Refusal():
            return error
        case UserError():
            named = re.match(r"([a-z_]+)(\[\d+\])?(\.[a-z_]+)* (is|has|was) ", str(error))
            return Refusal(400, str(error), param=named[1] if named else None)
        case RequestValidationError():
            return _invalid(error.errors())
        case HTTPException():
            return Refusal(error.status_code, str(error.detail), headers=error.headers)
        case TooLong():
            return Refusal(408, str(error), code="timeout")
        case EngineDied():
            line = "the engine died while it had this request, and is started anew; try again"
            return Refusal(500, line, code="engine_died")
    return Refusal(500, "the server failed; the request did nothing wrong; try again", code="internal_error")


def _invalid(errors: Sequence[Mapping[str, object]]) -> Refusal:
    """The first of what pydantic found, which names the field."""
    first = errors[0]
    place = first["loc"]
    words = [str(word) for word in place[1:]] if isinstance(place, Sequence) else []
    context = first.get("ctx")
    named = context.get("param") if isinstance(context, Mapping) else None
    path = str(named or _path(words) or "body")
    said = str(first["msg"])
    line = said if named else f"{path}: {said[:1].lower()}{said[1:]}"
    return Refusal(400, line, param=path[:100].encode("ascii", "backslashreplace").decode())


def _path(words: Sequence[str]) -> str:
    """messages[0].content; the names of a union's types are left out."""
    path = ""
    for word in words:
        if word.isdigit():
            path += f"[{word}]"
        elif re.fullmatch(r"[A-Za-z_]\w{0,60}", word) and (word.islower() or not path):
            path += f".{word}" if path else word
    return path
