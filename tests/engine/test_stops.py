"""Stop strings are found wherever the text is cut, and nothing of them is ever emitted."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from oneroof.engine.stops import StopWatch

LETTERS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


def cut(text: str, borders: list[int]) -> list[str]:
    edges = [0, *sorted(b % (len(text) + 1) for b in borders), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def watch(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    watch = StopWatch(stops)
    given = [watch.push(piece) for piece in pieces]
    return [*given, watch.finish()], watch.found


def by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read character by character; the first stop to be complete ends the text, of several the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(LETTERS, STOPS, st.lists(st.integers(0, 1000), max_size=8))
def test_any_cut_gives_what_the_definition_gives(text: str, stops: list[str], borders: list[int]) -> None:
    given_out, found = watch(cut(text, borders), stops)
    assert ("".join(given_out), found) == by_definition(text, stops)


@given(LETTERS, STOPS, st.lists(st.integers(0, 1000), max_size=8))
def test_what_was_emitted_never_has_to_be_taken_back(text: str, stops: list[str], borders: list[int]) -> None:
    kept, _ = by_definition(text, stops)
    emitted = ""
    for piece in watch(cut(text, borders), stops)[0]:
        emitted += piece
        assert kept.startswith(emitted)


def test_text_is_held_back_no_longer_than_needed() -> None:
    watch = StopWatch(["<end>"])
    assert watch.push("a <e") == "a "
    assert watch.push("x") == "<ex"
    assert watch.push("b<en") == "b"
    assert watch.push("d>c") == ""
    assert watch.found == "<end>"
    assert watch.push("more") == ""
    assert watch.finish() == ""


def test_without_stops_everything_passes_at_once() -> None:
    watch = StopWatch(())
    assert [watch.push("a"), watch.push("b"), watch.finish()] == ["a", "b", ""]
