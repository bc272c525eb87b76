"""Pieces that wait for a slow reader, joined so that they take no more room than the text they are."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from io import StringIO

from oneroof.engine.request import Piece


class Pile:
    """One piece of each completion at most, however many come before it is taken.

    Whoever reads late sees longer pieces, never fewer tokens, and a request's `output` after all the rest of
    it. So nobody who reads slowly, or not at all, makes anyone else wait.
    """

    def __init__(self) -> None:
        self._heaps: dict[tuple[int, int], _Heap] = {}  # by key and number of the completion

    def __bool__(self) -> bool:
        return bool(self._heaps)

    def add(self, key: int, piece: Piece) -> None:
        """Put `piece`, of the request `key`, on what waits."""
        place = (key, piece.number)
        heap = self._heaps.pop(place, None)  # it comes to stand behind the others: it may bring the output
        if heap is None:
            heap = _Heap(piece)
        else:
            heap.join(piece)
        self._heaps[place] = heap

    def take(self) -> list[tuple[int, Piece]]:
        """All that waits; those that were added to last come last."""
        taken = [(key, heap.piece()) for (key, _), heap in self._heaps.items()]
        self._heaps.clear()
        return taken

    def drop(self, key: int) -> None:
        """Forget what waits of the request `key`."""
        for place in [place for place in self._heaps if place[0] == key]:
            del self._heaps[place]


@dataclass
class _Heap:
    """What waits of one completion: `last`, and what came before it."""

    last: Piece
    _text: StringIO | None = None
    _token_ids: array[int] = field(default_factory=lambda: array("q"))

    def join(self, piece: Piece) -> None:
        if self._text is None:  # as it mostly is not, since readers keep pace
            self._text = StringIO()
        self._text.write(self.last.text)
        self._token_ids.extend(self.last.token_ids)
        self.last = piece

    def piece(self) -> Piece:
        if self._text is None:
            return self.last
        return replace(
            self.last,
            text=self._text.getvalue() + self.last.text,
            token_ids=(*self._token_ids, *self.last.token_ids),
        )
