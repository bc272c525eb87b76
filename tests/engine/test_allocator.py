"""Pages are given once, kept while they are held or wanted, and found by what they contain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oneroof.engine.allocator import NULL, Allocator


def taken(allocator: Allocator, count: int) -> list[int]:
    pages = [allocator.take() for _ in range(count)]
    assert None not in pages
    return [page for page in pages if page is not None]


def test_each_page_is_given_once_and_the_null_page_never() -> None:
    allocator = Allocator(3)
    assert sorted(taken(allocator, 3)) == [1, 2, 3]
    assert NULL not in (1, 2, 3)
    assert allocator.take() is None
    assert (allocator.free, allocator.idle, allocator.available) == (0, 0, 0)
    allocator.release([2])
    assert (allocator.available, allocator.take(), allocator.take()) == (1, 2, None)


def test_a_cache_without_pages_gives_none() -> None:
    assert Allocator(0).take() is None


def test_a_page_of_several_holders_is_free_after_the_last() -> None:
    allocator = Allocator(1)
    [page] = taken(allocator, 1)
    allocator.share([page])
    assert allocator.holders(page) == 2
    allocator.release([page])
    assert (allocator.holders(page), allocator.available) == (1, 0)
    allocator.release([page])
    assert (allocator.holders(page), allocator.free) == (0, 1)


def test_what_is_released_too_often_is_refused() -> None:
    allocator = Allocator(1)
    pages = taken(allocator, 1)
    allocator.release(pages)
    with pytest.raises(AssertionError, match="released by more"):
        allocator.release(pages)


def test_a_labelled_page_is_kept_when_nobody_holds_it_and_can_be_taken_up_again() -> None:
    allocator = Allocator(2)
    [page] = taken(allocator, 1)
    allocator.label(page, b"digest")
    allocator.release([page])
    assert (allocator.free, allocator.idle, allocator.find(b"digest")) == (1, 1, page)
    allocator.share([page])
    assert (allocator.free, allocator.idle, allocator.holders(page)) == (1, 0, 1)
    allocator.check()


def test_kept_pages_are_given_when_free_ones_run_out_the_longest_unused_first() -> None:
    allocator = Allocator(4)
    first, second, third, fourth = taken(allocator, 4)
    for page, digest in ((first, b"1"), (second, b"2"), (third, b"3")):
        allocator.label(page, digest)
    allocator.release([second])
    allocator.release([first])
    allocator.release([third])
    allocator.share([second])  # used again: now the youngest of them
    allocator.release([second])
    allocator.release([fourth])
    assert [allocator.take() for _ in range(5)] == [fourth, first, third, second, None]
    assert [allocator.find(d) for d in (b"1", b"2", b"3")] == [None] * 3


def test_the_last_pages_of_a_sequence_are_the_first_to_go() -> None:
    allocator = Allocator(3)
    pages = taken(allocator, 3)
    for page in pages:
        allocator.label(page, bytes([page]))
    allocator.release(pages)
    assert [allocator.take() for _ in range(3)] == pages[::-1]


def test_only_a_page_that_nobody_else_reads_or_can_find_is_writable() -> None:
    allocator = Allocator(1)
    [page] = taken(allocator, 1)
    assert allocator.writable(page)
    allocator.share([page])
    assert not allocator.writable(page)
    allocator.release([page])
    assert allocator.writable(page)
    allocator.label(page, b"digest")
    assert not allocator.writable(page)


def test_the_first_page_of_a_digest_keeps_it_and_a_page_keeps_its_first_digest() -> None:
    allocator = Allocator(2)
    one, two = taken(allocator, 2)
    allocator.label(one, b"digest")
    allocator.label(two, b"digest")
    allocator.label(one, b"another")
    assert (allocator.find(b"digest"), allocator.find(b"another")) == (one, None)
    assert allocator.writable(two)
    allocator.release([two])
    assert (allocator.free, allocator.idle) == (1, 0)


def test_a_forgotten_page_is_not_found_and_is_free_once_nobody_holds_it() -> None:
    allocator = Allocator(2)
    idle, held = taken(allocator, 2)
    allocator.label(idle, b"idle")
    allocator.label(held, b"held")
    allocator.release([idle])
    allocator.forget(idle)
    allocator.forget(held)
    assert (allocator.find(b"idle"), allocator.find(b"held")) == (None, None)
    assert (allocator.free, allocator.idle, allocator.holders(held)) == (1, 0, 1)
    allocator.release([held])
    assert (allocator.free, allocator.idle) == (2, 0)


def test_whoever_asked_is_told_of_each_page_whose_content_is_nobodys() -> None:
    told: list[int] = []
    allocator = Allocator(3, told.append)
    one, two, three = taken(allocator, 3)
    assert told == []
    allocator.label(two, b"2")
    allocator.label(three, b"3")
    allocator.release([one, two, three])
    assert told == [one]
    assert [allocator.take(), allocator.take()] == [one, three]
    assert told == [one, three]  # given anew: what it kept is lost
    allocator.forget(two)
    assert told == [one, three, two]


def lose(allocator: Allocator) -> None:
    allocator._free.pop()


def double(allocator: Allocator) -> None:
    allocator._free.append(allocator._free[0])


def unlabel(allocator: Allocator) -> None:
    allocator._labels.clear()


def misplace(allocator: Allocator) -> None:
    allocator._places[b"digest"] = 3


def hold_null(allocator: Allocator) -> None:
    allocator._holders[NULL] = 1


@pytest.mark.parametrize("harm", [lose, double, unlabel, misplace, hold_null])
def test_the_check_sees_what_is_wrong(harm: Callable[[Allocator], None]) -> None:
    allocator = Allocator(4)
    page, _ = taken(allocator, 2)
    allocator.label(page, b"digest")
    allocator.release([page])
    allocator.check()
    harm(allocator)
    with pytest.raises(AssertionError):
        allocator.check()


class AllocatorMachine(RuleBasedStateMachine):
    """The allocator beside a plain one: sets of holders, and a list of those who are kept."""

    @initialize(pages=st.integers(0, 6))
    def begin(self, pages: int) -> None:
        self.dropped: list[int] = []
        self.allocator = Allocator(pages, self.dropped.append)
        self.holders = dict.fromkeys(range(1, pages + 1), 0)
        self.labels: dict[int, bytes] = {}
        self.idle: list[int] = []
        self.lost: list[int] = []

    def held(self) -> list[int]:
        return [page for page, count in self.holders.items() if count]

    @rule()
    def take(self) -> None:
        free = [p for p, count in self.holders.items() if not count and p not in self.idle]
        page = self.allocator.take()
        if free:
            assert page in free
        elif self.idle:
            assert page == self.idle.pop(0)
            del self.labels[page]
            self.lost.append(page)
        else:
            assert page is None
        if page is not None:
            self.holders[page] = 1

    @precondition(lambda self: self.held() or self.idle)
    @rule(which=st.integers(0, 9))
    def share(self, which: int) -> None:
        there = sorted([*self.held(), *self.idle])
        page = there[which % len(there)]
        self.allocator.share([page])
        self.holders[page] += 1
        self.idle = [p for p in self.idle if p != page]

    @precondition(lambda self: self.held())
    @rule(which=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def release(self, which: list[int]) -> None:
        held = self.held()
        pages = list(dict.fromkeys(held[w % len(held)] for w in which))
        self.allocator.release(pages)
        for page in reversed(pages):
            self.holders[page] -= 1
            if self.holders[page] == 0:
                (self.idle if page in self.labels else self.lost).append(page)

    @precondition(lambda self: self.held())
    @rule(which=st.integers(0, 9), digest=st.sampled_from([b"a", b"b", b"c"]))
    def label(self, which: int, digest: bytes) -> None:
        held = self.held()
        page = held[which % len(held)]
        self.allocator.label(page, digest)
        if page not in self.labels and digest not in self.labels.values():
            self.labels[page] = digest

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 9))
    def forget(self, which: int) -> None:
        page = sorted(self.holders)[which % len(self.holders)]
        self.allocator.forget(page)
        self.labels.pop(page, None)
        if page in self.idle:
            self.idle.remove(page)
            self.lost.append(page)

    @invariant()
    def both_say_the_same(self) -> None:
        allocator = self.allocator
        allocator.check()
        assert {page: allocator.holders(page) for page in self.holders} == self.holders
        assert {d: allocator.find(d) for d in (b"a", b"b", b"c")} == {
            d: next((p for p, label in self.labels.items() if label == d), None) for d in (b"a", b"b", b"c")
        }
        assert allocator.idle == len(self.idle)
        assert allocator.free + allocator.idle + len(self.held()) == allocator.pages
        assert allocator.available == allocator.free + allocator.idle
        assert self.dropped == self.lost
        for page, count in self.holders.items():
            assert allocator.writable(page) == (count == 1 and page not in self.labels)


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
