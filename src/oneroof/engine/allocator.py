"""Pages of the cache: who holds them, which are free, and which are kept for their content.

A page is free (nobody's), held (by one sequence or several), or idle: unheld, but labelled with a digest of
what it contains, so that a later sequence may take it up again. Idle pages are used as free ones when those
run out, the longest unused first. Numbers only; the tensors are elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

NULL = 0  # a page that is never given away: padding points to it


class Allocator:
    """`pages` pages, numbered from 1."""

    def __init__(self, pages: int, dropped: Callable[[int], None] | None = None) -> None:
        """`dropped` is called with each page whose content is nobody's any more."""
        self.pages = pages
        self._dropped = dropped
        self._holders = [0] * (pages + 1)
        self._free = list(range(pages, 0, -1))  # a stack, the lowest number on top
        self._idle: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._labels: dict[int, bytes] = {}
        self._places: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Pages with no content."""
        return len(self._free)

    @property
    def idle(self) -> int:
        """Pages that nobody holds and that are kept for their content."""
        return len(self._idle)

    @property
    def available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._free) + len(self._idle)

    def take(self) -> int | None:
        """A page for one holder, its content undefined; None where all are held."""
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            self._unlabel(page)
            self._drop(page)
        else:
            return None
        self._holders[page] = 1
        return page

    def share(self, pages: Sequence[int]) -> None:
        """One more holder for each of `pages`, which are held or idle."""
        for page in pages:
            if self._holders[page] == 0:
                del self._idle[page]
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less. The last pages of a sequence are the first to go: they are the least shared."""
        for page in reversed(pages):
            assert self._holders[page] > 0, f"page {page} is released by more than held it"
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._labels:
                self._idle[page] = None
            else:
                self._free.append(page)
                self._drop(page)

    def writable(self, page: int) -> bool:
        """One holder and no label: whoever else may come to read it would not see the change."""
        return self._holders[page] == 1 and page not in self._labels

    def holders(self, page: int) -> int:
        """How many sequences hold `page`."""
        return self._holders[page]

    def label(self, page: int, digest: bytes) -> None:
        """`page`, which is held, contains what `digest` stands for. The first page of a digest keeps it."""
        assert self._holders[page] > 0
        if digest not in self._places and page not in self._labels:
            self._labels[page] = digest
            self._places[digest] = page

    def find(self, digest: bytes) -> int | None:
        """The page that contains what `digest` stands for."""
        return self._places.get(digest)

    def forget(self, page: int) -> None:
        """Nobody is to find `page` by its content again."""
        self._unlabel(page)
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)
            self._drop(page)

    def check(self) -> None:
        """AssertionError unless every page is in one state, for tests and for an idle engine."""
        held = [p for p in range(1, self.pages + 1) if self._holders[p]]
        states = [*self._free, *self._idle, *held]
        assert sorted(states) == list(range(1, self.pages + 1)), "a page is lost, or in two states"
        assert all(p in self._labels for p in self._idle), "an idle page has no label"
        assert not any(p in self._labels for p in self._free), "a free page has a label"
        assert {d: p for p, d in self._labels.items()} == self._places, "labels and places disagree"
        assert self._holders[NULL] == 0, "the null page is held"

    def _unlabel(self, page: int) -> None:
        digest = self._labels.pop(page, None)
        if digest is not None:
            del self._places[digest]

    def _drop(self, page: int) -> None:
        if self._dropped is not None:
            self._dropped(page)
