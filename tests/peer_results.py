"""Turns made by hand and stand-in peers, for the tests of `bench peers`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from oneroof.bench.grid import Case
from oneroof.bench.peers.contest import Cell, Terms, Timing, Turn
from oneroof.bench.peers.probes import Reading
from oneroof.bench.peers.results import Result
from oneroof.bench.peers.roster import PEERS, Peer, Variant
from oneroof.bench.peers.shapes import SHAPES
from oneroof.models import read_facts

STANDIN = Path(__file__).parent / "peer_standin.py"
READING = Reading(20e9, 300e9)
ONE, EIGHT = Cell(1, Case(128, 64)), Cell(8, Case(128, 64))


def standin(name: str, *, converts: bool = False, **forms: tuple[str, ...]) -> Peer:
    """A peer whose process is `peer_standin.py`; its forms say how it behaves."""
    return Peer(name, STANDIN, forms, f"the {name} package", converts)


def terms(cells: Sequence[Cell] = (ONE, EIGHT), **changed: object) -> Terms:
    """Two rounds of two threads, in this Python."""
    said: dict[str, object] = {
        "cells": tuple(cells),
        "threads": 2,
        "rounds": 2,
        "seed": 0,
        "retries": 0,
        "limit": 30.0,
        "pythons": dict.fromkeys([*PEERS, "a", "b", "c"], Path(sys.executable)),
        "probe": lambda: READING,
    }
    return Terms(**{**said, **changed})  # type: ignore[arg-type]


def variant(peer: str, precision: str, form: str) -> Variant:
    """Of the peers that there are."""
    return Variant(PEERS[peer], precision, form)


def turn(who: Variant, times: Mapping[Cell, tuple[float, float]], failure: str = "") -> Turn:
    """A turn with its prefill and step seconds by cell."""
    timings = {cell: Timing(prefill, step, 0.02) for cell, (prefill, step) in times.items()}
    return Turn(who, READING, 1.5, 2e9, timings, failure)


def result(*turns: Turn, model: str = "qwen2.5-0.5b") -> Result:
    """What came of `turns`."""
    made = Result(model, read_facts(SHAPES[model]))
    made.turns += turns
    made.versions.update({one.variant: "1.2" for one in turns})
    return made
