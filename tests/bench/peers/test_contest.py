"""Turns in processes of their own: whose they are and when, what a failing peer leaves, who is left out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from peer_results import EIGHT, ONE, READING, standin, terms

from oneroof.bench.peers import contest as room
from oneroof.bench.peers.contest import Contest, Entry, Terms, Timing, Turn, lineup
from oneroof.bench.peers.roster import Peer, Variant

A = standin("a", int8=("10",))
B = standin("b", int8=("20",))
C = standin("c", int8=("30",))


def only(peer: Peer, form: str) -> Variant:
    return Variant(peer, "int8", form)


@pytest.fixture
def held(tmp_path: Path) -> Callable[..., Contest]:
    """A contest over a folder with a config."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))

    def make(**changed: object) -> Contest:
        return Contest(folder, {"model_type": "qwen3"}, tmp_path / "work", terms(**changed))  # type: ignore[arg-type]

    (tmp_path / "work").mkdir()
    return make


def entries(held: Contest, variants: Sequence[Variant]) -> tuple[list[Entry], dict[str, str]]:
    skipped: dict[str, str] = {}
    found = held.entries(variants, lambda variant, why: skipped.update({str(variant): why}))
    return found, skipped


def test_everyone_has_a_turn_a_round_in_an_order_that_changes(held: Callable[..., Contest]) -> None:
    contest = held(rounds=4)
    found, skipped = entries(contest, [only(A, "10"), only(B, "20"), only(C, "30")])
    assert not skipped
    turns = list(contest.turns(found, 100))
    rounds = [[turn.variant.peer.name for turn in turns[i : i + 3]] for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert [entry.variant.peer.name for entry in lineup(found, 2, 0)] == rounds[2]  # the same seed, again


def test_a_turn_has_a_timing_a_cell_its_load_its_memory_and_the_rates_beside_it(
    held: Callable[..., Contest],
) -> None:
    contest = held(rounds=1)
    (turn,) = contest.turns(entries(contest, [only(A, "10")])[0], 100)
    assert turn.reading == READING and not turn.failure
    assert [(cell, one.prefill, one.step) for cell, one in turn.timings.items()] == [
        (ONE, 0.04, 0.01),
        (EIGHT, 0.32, 0.01),
    ]
    assert turn.loaded is not None and 0 <= turn.loaded < 5
    assert turn.peak is not None and 5e6 < turn.peak < 200e6
    assert (contest.work / "turns").read_text() == "10 weights 2 8 192\n"
    assert "a peer says hello" in (contest.work / "a-10.log").read_text()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("raise", "RuntimeError: no more memory"),
        ("crash", "was ended by SIGSEGV"),
        ("leave", "ended with status 7 before it was done"),
        ("hang", "took longer than 2 s"),
    ],
)
def test_a_failing_peer_leaves_what_it_has_measured_and_has_no_more_turns(
    held: Callable[..., Contest], form: str, said: str
) -> None:
    contest = held(rounds=2, limit=2.0 if form == "hang" else 30.0)
    found, _ = entries(contest, [only(A, form), only(B, "20")])
    turns = list(contest.turns(found, 100))
    mine = [turn for turn in turns if turn.variant.peer is A]
    assert len(mine) == 1 and len(turns) == 3
    assert mine[0].failure == said
    assert list(mine[0].timings) == [ONE]


def test_who_cannot_take_part_is_left_out_with_the_reason(held: Callable[..., Contest]) -> None:
    contest = held()
    engine = contest.work / "absent_engine.py"
    engine.write_text('PACKAGES = {"no-such": "no_such.part"}\n')
    variants = [
        only(A, "refuse"),
        only(standin("c", converts=True), "broken"),
        only(Peer("b", engine, {}, "b-engine"), "x"),
        only(A, "10"),
    ]
    found, skipped = entries(contest, variants)
    assert [str(entry.variant) for entry in found] == ["a 10"]
    assert skipped == {
        "a refuse": "runs no qwen3",
        "c broken": "ValueError: its converter knows nothing",
        "b x": "no-such not installed; pip install b-engine",
    }
    assert found[0].version[0].isdigit()


def test_a_conversion_is_made_once_and_a_broken_one_is_not_kept(held: Callable[..., Contest]) -> None:
    contest = held()
    peer = standin("a", converts=True)
    (found,), _ = entries(contest, [only(peer, "10"), only(peer, "broken")])
    assert found.folder == contest.work / "a-10"
    entries(contest, [only(peer, "10"), only(peer, "broken")])
    assert (contest.work / "conversions").read_text() == "10\n"
    assert not (contest.work / "a-broken").exists()


def test_cells_that_others_disturbed_are_written_again_and_the_quieter_counts(
    held: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[room.Cell]] = []
    noise = iter([{ONE: 0.05, EIGHT: 0.9}, {EIGHT: 0.3}, {EIGHT: 0.5}, {ONE: 9.0, EIGHT: 9.0}])

    def once(self: Contest, entry: Entry, prompts: dict[room.Cell, object]) -> Turn:
        asked.append(list(prompts))
        timings = {cell: Timing(1.0, foreign, foreign) for cell, foreign in next(noise).items()}
        return Turn(entry.variant, READING, 1.0, 1.0, timings)

    monkeypatch.setattr(Contest, "_once", once)
    contest = held(rounds=1, retries=2)
    (turn,) = contest.turns([Entry(only(A, "10"), "1", contest.work)], 100)
    assert asked == [[ONE, EIGHT], [EIGHT], [EIGHT]]
    assert {cell: one.foreign for cell, one in turn.timings.items()} == {ONE: 0.05, EIGHT: 0.3}


def test_prompts_are_the_same_for_all_in_a_round_and_new_in_the_next(
    held: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def once(self: Contest, entry: Entry, prompts: dict[room.Cell, object]) -> Turn:
        seen.append(prompts)
        return Turn(entry.variant, READING, 1.0, 1.0, {})

    monkeypatch.setattr(Contest, "_once", once)
    contest = held(rounds=2)
    list(contest.turns([Entry(only(p, "10"), "1", contest.work) for p in (A, B)], 100))
    assert seen[0] == seen[1] and seen[2] == seen[3] and seen[0] != seen[2]
    texts = seen[0][EIGHT]["prompts"]  # type: ignore[index]
    assert len(texts) == 8 and {len(text) for text in texts} == {128} and max(map(max, texts)) < 100


def test_no_process_is_left_where_a_run_is_stopped(
    held: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    real = room.events

    def events(*words: object, **named: object) -> object:
        for event in real(*words, **named):  # type: ignore[arg-type]
            if "loaded" in event:
                started.append(int((contest.work / "pid").read_text()))
                raise KeyboardInterrupt
            yield event

    contest = held(rounds=1)
    engine = contest.work / "engine.py"
    engine.write_text(
        'import os, time\nPACKAGES = {"pip": "pip"}\n'
        'class Writer:\n    def __init__(self, *options):\n        open("pid", "w").write(str(os.getpid()))\n'
        "    def write(self, prompts, tokens):\n        time.sleep(60)\n"
    )
    monkeypatch.setattr(room, "events", events)
    entry = Entry(only(Peer("a", engine, {}, "a"), "10"), "1", contest.work)
    with pytest.raises(KeyboardInterrupt):
        list(contest.turns([entry], 100))
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_terms_say_who_is_asked_in_which_python(held: Callable[..., Contest], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho not a Python >&2\nexit 3\n")
    python.chmod(0o755)
    contest = held(pythons={"a": python})
    assert isinstance(contest.terms, Terms)
    _, skipped = entries(contest, [only(A, "10")])
    assert skipped == {"a 10": "ended with status 3 before it was done"}
