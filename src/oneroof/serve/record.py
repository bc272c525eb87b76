"""What the access log tells of a request, gathered on its way."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field

from starlette.requests import Request

_GIVEN = re.compile(rb"[A-Za-z0-9._:-]{1,64}")  # a request id that a client may choose
_PLACE = "oneroof"  # in the scope


@dataclass
class Record:
    """One request. `key` is the name of whose key it came with."""

    id: str
    began: float = field(default_factory=time.monotonic)
    key: str | None = None
    model: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0

    def namespace(self, salt: str | None = None) -> str:
        """What was read for one key, or one salt, is not shared with another."""
        return f"{self.key or ''}/{salt or ''}"

    def usage(self) -> dict[str, object]:
        """Numbers of tokens, as OpenAI names them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def begin(scope: MutableMapping[str, object], headers: Iterable[tuple[bytes, bytes]]) -> Record:
    """The record of the request of `scope`: its id is the client's own where that is a plain word."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    id = given.decode() if _GIVEN.fullmatch(given) else secrets.token_hex(12)
    scope[_PLACE] = record = Record(id)
    return record


def record_of(request: Request) -> Record:
    """The record of `request`."""
    found = request.scope[_PLACE]
    assert isinstance(found, Record)
    return found
