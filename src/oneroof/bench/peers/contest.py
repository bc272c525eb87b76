"""One model among its peers: who can run it, and rounds in which each has one turn, in changing order.

A turn is a process of its own that loads, writes every cell and ends, with the machine's rates read before
it. A cell in which other programs took more than a little of the processors is written again, and the quieter
one counts.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneroof import log
from oneroof.bench.grid import Case
from oneroof.bench.peers.probes import Reading
from oneroof.bench.peers.process import Event, PeerError, events
from oneroof.bench.peers.roster import Peer, Variant

QUIET = 0.1  # of a processor, that others may take


@dataclass(frozen=True)
class Cell:
    """What is written: so many texts of one shape at once."""

    batch: int
    case: Case

    def __str__(self) -> str:
        return f"{self.batch} x {self.case.prompt}"

    @property
    def prompts(self) -> int:
        """Tokens of all prompts."""
        return self.batch * self.case.prompt


@dataclass(frozen=True)
class Timing:
    """One cell, once. Seconds."""

    prefill: float  # until every text has its first token
    step: float  # a later token of every text
    foreign: float  # processors that others took meanwhile


@dataclass(frozen=True)
class Turn:
    """What came of one process; less than was asked where it failed on the way."""

    variant: Variant
    reading: Reading
    loaded: float | None  # seconds
    peak: float | None  # bytes
    timings: Mapping[Cell, Timing]
    failure: str = ""


@dataclass(frozen=True)
class Entry:
    """A variant that is there and has its own form of the model."""

    variant: Variant
    version: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is the same for everyone."""

    cells: tuple[Cell, ...]
    threads: int
    rounds: int
    seed: int
    retries: int  # of a turn that others disturbed
    limit: float  # seconds of a turn
    pythons: Mapping[str, Path]  # by peer
    probe: Callable[[], Reading]


@dataclass(frozen=True)
class Contest:
    """A model's folder, what its config says, and the place for other forms of it."""

    folder: Path
    facts: Mapping[str, object]
    work: Path
    terms: Terms

    def entries(self, variants: Sequence[Variant], skip: Callable[[Variant, str], None]) -> list[Entry]:
        """Those of `variants` that can take part; `skip` hears of the others, and why."""
        found = []
        looks: dict[Peer, Event] = {}
        for variant in variants:
            try:
                if variant.peer not in looks:
                    looks[variant.peer] = self._look(
                        variant, [v.form for v in variants if v.peer is variant.peer]
                    )
                version = _version(variant, looks[variant.peer])
                found.append(Entry(variant, version, self._converted(variant)))
            except PeerError as failure:
                log.info(f"{variant} is left out: {failure}")
                skip(variant, str(failure))
        return found

    def turns(self, entries: Sequence[Entry], vocabulary: int) -> Iterator[Turn]:
        """Round by round. Who fails has no more turns."""
        left = list(entries)
        for number in range(self.terms.rounds):
            prompts = self._prompts(number, vocabulary)
            for entry in lineup(left, number, self.terms.seed):
                turn = self._turn(entry, prompts)
                if turn.failure:
                    left.remove(entry)
                    log.info(f"{entry.variant} has failed: {turn.failure}")
                yield turn

    def _look(self, variant: Variant, forms: Sequence[str]) -> Event:
        (event,) = self._ask(variant, {"do": "look", "facts": self.facts, "forms": forms})
        return event

    def _converted(self, variant: Variant) -> Path:
        """The folder that the variant reads, written now where it is not there yet."""
        if not variant.peer.converts:
            return self.folder
        target = self.work / f"{variant.peer.name}-{variant.form}"
        if not target.exists():
            log.info(f"converting for {variant}")
            unfinished = target.with_name(target.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            order = {"do": "convert", "folder": str(self.folder), "target": str(unfinished)}
            self._ask(variant, {**order, "precision": variant.form})
            unfinished.rename(target)
        return target

    def _ask(self, variant: Variant, order: Mapping[str, object]) -> list[Event]:
        return list(self._events(variant, order))

    def _events(self, variant: Variant, order: Mapping[str, object]) -> Iterator[Event]:
        return events(
            variant.peer,
            self.terms.pythons[variant.peer.name],
            order,
            log=self.work.resolve() / f"{variant.peer.name}-{variant.form}.log",
            threads=self.terms.threads,
            limit=self.terms.limit,
        )

    def _turn(self, entry: Entry, prompts: Mapping[Cell, Prompts]) -> Turn:
        """One turn, its disturbed cells written again in further processes; the quietest of each counts."""
        turn = self._once(entry, prompts)
        best = dict(turn.timings)
        for _ in range(self.terms.retries):
            loud = {cell: prompts[cell] for cell, timing in best.items() if timing.foreign > QUIET}
            if turn.failure or not loud:
                break
            for cell, timing in self._once(entry, loud).timings.items():
                best[cell] = min(best[cell], timing, key=lambda one: one.foreign)
        return Turn(turn.variant, turn.reading, turn.loaded, turn.peak, best, turn.failure)

    def _once(self, entry: Entry, prompts: Mapping[Cell, Prompts]) -> Turn:
        terms, cells = self.terms, list(prompts)
        order = {
            "do": "measure",
            "folder": str(entry.folder),
            "precision": entry.variant.form,
            "threads": terms.threads,
            "batch": max(cell.batch for cell in cells),
            "positions": max(cell.case.positions for cell in cells),
            "cells": [{**prompts[cell], "tokens": cell.case.tokens} for cell in cells],
        }
        reading = terms.probe()
        loaded = peak = None
        timings: dict[Cell, Timing] = {}
        failure = ""
        try:
            for event in self._events(entry.variant, order):
                loaded = _number(event, "loaded", loaded)
                peak = _number(event, "peak", peak)
                if "cell" in event:
                    seconds = [_number(event, name, 0.0) for name in ("prefill", "step", "foreign")]
                    timings[cells[int(str(event["cell"]))]] = Timing(*(s or 0.0 for s in seconds))
        except PeerError as told:
            failure = str(told)
        return Turn(entry.variant, reading, loaded, peak, timings, failure)

    def _prompts(self, number: int, vocabulary: int) -> dict[Cell, Prompts]:
        """The same for everyone in a round, others in the next."""
        drawn = random.Random(f"{self.terms.seed} {number}")

        def texts(cell: Cell) -> list[list[int]]:
            return [[drawn.randrange(vocabulary) for _ in range(cell.case.prompt)] for _ in range(cell.batch)]

        return {cell: {"warmup": texts(cell), "prompts": texts(cell)} for cell in self.terms.cells}


Prompts = Mapping[str, list[list[int]]]
"""Token ids to write after, and others to warm up with."""


def lineup(entries: Sequence[Entry], number: int, seed: int) -> list[Entry]:
    """Who is when in a round: another order each time, the same for the same seed."""
    shuffled = list(entries)
    random.Random(f"{seed} order {number}").shuffle(shuffled)
    return shuffled


def _version(variant: Variant, look: Event) -> str:
    """What was found; PeerError where it is not there, or does not run this."""
    if "missing" in look:
        missing = look["missing"]
        assert isinstance(missing, list)
        raise PeerError(f"{', '.join(missing)} not installed; pip install {variant.peer.install}")
    refusals = look["refusals"]
    assert isinstance(refusals, dict)
    if refusals[variant.form]:
        raise PeerError(str(refusals[variant.form]))
    return str(look["version"])


def _number(event: Event, name: str, otherwise: float | None) -> float | None:
    value = event.get(name, otherwise)
    assert value is None or isinstance(value, int | float)
    return value
