"""Tokens to text while they are being made: no character is ever cut, and no token is decoded twice."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterable


class TextStream:
    """Decodes one sequence piece by piece, in time linear in its length.

    What `push` and `finish` return, joined, is what decoding all ids at once gives, however they were split.
    An unfinished character is held back; bytes that can no longer become one turn into U+FFFD.
    """

    def __init__(
        self, bytes_of: Callable[[int], bytes], skipped: Collection[int], *, leading_space: bool = False
    ) -> None:
        """`skipped` ids leave no text; `leading_space`: one space at the very head of the text is dropped."""
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_head = leading_space

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; empty while a character is unfinished."""
        return self._text(b"".join(self._bytes_of(i) for i in ids if i not in self._skipped), final=False)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never came to its end, mostly nothing."""
        return self._text(b"", final=True)

    def _text(self, data: bytes, *, final: bool) -> str:
        text = self._decoder.decode(data, final)
        if self._at_head and text:
            self._at_head = False
            return text.removeprefix(" ")
        return text
