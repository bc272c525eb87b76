"""What a run has found so far, and all the ways to tell it: text, records, CSV, picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oneroof import log
from oneroof.bench.grid import Case
from oneroof.bench.measure import Row
from oneroof.bench.model import ModelBench, Probe
from oneroof.bench.records import Facts, records
from oneroof.bench.table import csv_text, notes, table
from oneroof.errors import UserError
from oneroof.report import Record, source


@dataclass(frozen=True)
class Search:
    """What was searched for each case: the largest batch whose later tokens take no longer."""

    limit: float  # seconds
    low: int
    high: int

    def answer(self, case: Case, best: Row | None) -> str:
        """In words, for `case`."""
        within = f"{case}: at most {self.limit * 1e3:g} ms a later token"
        if best is None or best.step is None:
            return f"{within}: no batch from {self.low} to {self.high}"
        tried = ", the largest allowed" if best.batch == self.high else ""
        return f"{within}: batch {best.batch}{tried} ({best.step.median * 1e3:.3g} ms)"


@dataclass
class Findings:
    """Rows in the order they were measured; of a search, also the best row of each case that is decided."""

    model: str
    device: str
    facts: Facts  # the options that could change a number
    search: Search | None = None
    rows: list[Row] = field(default_factory=list)
    best: dict[Case, Row | None] = field(default_factory=dict)
    complete: bool = False  # nothing is left to measure

    def take(self, rows: Iterable[Row]) -> None:
        """Measure a grid."""
        for row in rows:
            self.rows.append(row)
            log.info(str(row))
        self.complete = True

    def take_search(self, bench: ModelBench, cases: Sequence[Case]) -> None:
        """Search for each of `cases`. UserError where not one batch of a case could be measured."""
        assert self.search is not None
        for case in cases:
            best: Row | None = None
            probes: list[Probe] = []
            for probe in bench.search(case, self.search.low, self.search.high, self.search.limit):
                probes.append(probe)
                log.info(f"{probe.row}; {probe.why or 'quick enough'}" if probe.row else probe.why)
                if probe.row is not None:
                    self.rows.append(probe.row)
                    best = best if probe.why else probe.row
            if all(probe.row is None for probe in probes):
                raise UserError(probes[-1].why)
            self.best[case] = best
        self.complete = True

    def text(self) -> str:
        """Heading, table, notes and answers, for a reader."""
        parts = [f"{self.heading()}\n", table(self._sorted()), "", *notes(self.rows)]
        if self.search is not None:
            parts += ["", *(self.search.answer(case, row) for case, row in self.best.items())]
        return "\n".join(parts)

    def heading(self) -> str:
        """Which model, where and how, in two lines."""
        facts = self.facts
        layers = f", {facts['layers']} layers" if "layers" in facts else ""
        drawn = ", random weights" if facts["random_weights"] else ""
        count = facts["rounds"]
        rounds = "one round" if count == 1 else f"medians of {count} rounds"
        return (
            f"{self.model}{layers}, {facts['dtype']}{drawn}; {self.device}\n"
            f"{facts['engine']} engine, {rounds}, commit {source()}"
        )

    def records(self) -> Iterator[Record]:
        """Every number with what it depends on."""
        yield from records(self._sorted(), self.facts, self.device)
        if self.search is None:
            return
        span = {"low": self.search.low, "high": self.search.high, "limit ms": self.search.limit * 1e3}
        for case, row in self.best.items():
            yield Record(
                name="largest batch",
                value=0 if row is None else row.batch,
                unit="texts",
                config={**self.facts, "input": case.prompt, "output": case.tokens, **span},
                device=self.device,
            )

    def csv(self) -> str:
        """The columns of ModelTest's performance runs."""
        return csv_text(self._sorted(), self.model)

    def draw(self, path: Path) -> None:
        """The picture; matplotlib is imported here."""
        from oneroof.bench.picture import draw

        limit = None if self.search is None else self.search.limit
        draw(self._sorted(), path, self.heading(), limit=limit)

    def _sorted(self) -> list[Row]:
        """A search's rows by batch size, since it jumps; a grid's as they were asked for."""
        if self.search is None:
            return self.rows
        return sorted(self.rows, key=lambda row: row.batch)
