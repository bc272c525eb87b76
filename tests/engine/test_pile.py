"""Pieces that wait are joined, and nothing of them is lost."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from oneroof.engine.pile import Pile
from oneroof.engine.request import Completion, Output, Piece

OUTPUT = Output(0, None, (1,), (Completion("", (), "stop", None, None),), None)


def test_one_piece_is_handed_on_as_it_is() -> None:
    pile, piece = Pile(), Piece(0, 0, "a", (1,), None, None)
    assert not pile
    pile.add(5, piece)
    assert pile
    assert pile.take() == [(5, piece)]
    assert pile.take() == []
    assert not pile


def test_several_become_one_of_each_completion() -> None:
    pile = Pile()
    pile.add(5, Piece(0, 0, "a", (1,), None, None))
    pile.add(6, Piece(3, 0, "x", (9,), None, None))
    pile.add(5, Piece(0, 1, "A", (2, 3), None, None))
    pile.add(5, Piece(0, 0, "b", (), None, None))
    pile.add(5, Piece(0, 0, "c", (4,), "stop", OUTPUT))
    assert pile.take() == [
        (6, Piece(3, 0, "x", (9,), None, None)),
        (5, Piece(0, 1, "A", (2, 3), None, None)),
        (5, Piece(0, 0, "abc", (1, 4), "stop", OUTPUT)),
    ]


def test_what_is_dropped_is_not_taken() -> None:
    pile = Pile()
    for key in (5, 6):
        for number in (0, 1):
            pile.add(key, Piece(0, number, "a", (1,), None, None))
    pile.drop(5)
    assert [key for key, _ in pile.take()] == [6, 6]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 1), st.text(max_size=3), st.lists(st.integers(0, 9)))
    ),
    st.sets(st.integers(0, 20)),
)
def test_no_text_is_lost_whenever_it_is_taken(
    events: list[tuple[int, int, str, list[int]]], times: set[int]
) -> None:
    pile, taken = Pile(), []
    for i, (key, number, text, ids) in enumerate(events):
        pile.add(key, Piece(0, number, text, tuple(ids), None, None))
        if i in times:
            taken += pile.take()
    taken += pile.take()
    for place in {(key, number) for key, number, _, _ in events}:
        came = [(text, ids) for key, number, text, ids in events if (key, number) == place]
        went = [piece for key, piece in taken if (key, piece.number) == place]
        assert "".join(p.text for p in went) == "".join(text for text, _ in came)
        assert [t for p in went for t in p.token_ids] == [t for _, ids in came for t in ids]


def test_what_waits_takes_little_more_room_than_the_text() -> None:
    pile, letters = Pile(), 100_000
    tracemalloc.start()
    for i in range(letters):
        pile.add(1, Piece(0, 0, "é", (i,), None, None))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 20 * letters  # 8 bytes a token, 4 a letter, and what grows in advance
    ((_, piece),) = pile.take()
    assert piece.text == "é" * letters
    assert piece.token_ids == tuple(range(letters))


def test_every_field_of_a_piece_is_thought_of() -> None:
    """A new field has to be joined too: see `_Heap`, then name it here."""
    assert {f.name for f in fields(Piece)} == {
        *("index", "number", "text", "token_ids", "finish_reason", "output")
    }
