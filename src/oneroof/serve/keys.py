"""Who may come in: keys from a file or the environment, kept as hashes, compared in constant time.

Keys of users and of administrators are apart: neither opens what the other does.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from oneroof import log
from oneroof.errors import UserError

USERS = "ONEROOF_API_KEY"  # environment variables with keys, several with commas between
ADMINS = "ONEROOF_ADMIN_KEY"
_SHORTEST = 8  # characters of a key


class Keys:
    """Some keys. What is kept of each is a hash with a salt of this process."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """With none, `holder` finds nobody."""
        self._salt = secrets.token_bytes(16)
        self._hashes = [self._hash(key.encode()) for key in keys]

    def __len__(self) -> int:
        return len(self._hashes)

    def holder(self, key: bytes) -> str | None:
        """The name of whoever has `key`, such as key2; None for a wrong one. All are compared, always."""
        asked, found = self._hash(key), None
        for number, known in enumerate(self._hashes, 1):
            if hmac.compare_digest(asked, known):
                found = f"key{number}"
        return found

    def _hash(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._salt, digest_size=32).digest()


def read_keys(file: Path | None, variable: str, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of `file`, one a line (# begins a comment), and of the environment's `variable`."""
    found: list[str] = []
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read ({error}); text with a key a line is allowed") from None
        lines = [line.strip() for line in text.splitlines()]
        found += _checked(str(file), [line for line in lines if line and not line.startswith("#")])
        if file.stat().st_mode & 0o004:
            log.warning(f"{file} can be read by everybody on this machine; try chmod 600 {file}")
    if given := environment.get(variable):
        found += _checked(variable, [key for part in given.split(",") if (key := part.strip())])
    return Keys(dict.fromkeys(found))


def presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key that a request brings: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""
    key = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return rest.strip()
        elif name == b"x-api-key":
            key = value.strip()
    return key


def _checked(where: str, keys: Sequence[str]) -> Sequence[str]:
    if not keys:
        raise UserError(f"{where} holds no key; one a line is allowed; try openssl rand -hex 32")
    for number, key in enumerate(keys, 1):
        if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"key {number} of {where} is no good; {_SHORTEST} or more visible ASCII letters are allowed; "
                "try openssl rand -hex 32"
            )
    return keys
