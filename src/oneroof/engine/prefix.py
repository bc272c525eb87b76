"""What a page contains, as a digest: a chain over all tokens up to its end, so that equal digests mean equal
prefixes.

The chain begins with a salt of all else that decides keys and values: adapter, namespace, number format and
rope state. SHA-256, because a namespace separates people: nobody may craft a prompt that meets the page of
another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def salt(*, adapter: str | None, namespace: str, kv: str, alpha: float) -> bytes:
    """The beginning of a chain. `kv`: number format of the cache; `alpha`: the rope's stretch."""
    facts = repr((adapter, namespace, kv, float(alpha)))
    return hashlib.sha256(facts.encode("utf-8")).digest()


class Chain:
    """The digests of a sequence's full pages, made as they are asked for; the sequence may only grow."""

    def __init__(self, beginning: bytes, page_size: int) -> None:
        self._page_size = page_size
        self._last = beginning
        self._digests: list[bytes] = []

    def digests(self, tokens: array[int], pages: int) -> Sequence[bytes]:
        """Of the first `pages` pages, which `tokens` fill."""
        size = self._page_size
        for page in range(len(self._digests), pages):
            content = tokens[page * size : (page + 1) * size].tobytes()
            self._last = hashlib.sha256(self._last + content).digest()
            self._digests.append(self._last)
        return self._digests[:pages]

    def digest(self, page: int) -> bytes | None:
        """Of page number `page`, where it has been asked for before."""
        return self._digests[page] if page < len(self._digests) else None

    def fork(self) -> Chain:
        """The chain of a sequence that begins with the same tokens."""
        other = Chain(self._last, self._page_size)
        other._digests = self._digests.copy()
        return other
