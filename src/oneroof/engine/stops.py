"""Stop strings on a stream of text that comes in pieces of any size.

Text that may be the beginning of a stop string is held back until it is known, so nothing is emitted that
would have to be taken back. What is found depends on the text alone, never on how it was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopWatch:
    """Watches a text for several stop strings; the one that is complete first wins, of those the longest."""

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty strings; with none of them everything passes at once."""
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """The text that `piece` sets free. Once `found`, nothing more: the text ended before that string."""
        if self.found is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, begin, self.found = min(ends)
            self._held = ""
            return text[:begin]
        free = len(text) - max(_overhang(text, stop) for stop in self._stops)
        self._held = text[free:]
        return text[:free]

    def finish(self) -> str:
        """What was still held back: the text is over and no stop string was completed."""
        rest, self._held = self._held, ""
        return rest


def _overhang(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`, at most all but one of them."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
