"""What a comparison has found so far, model by model, and all the ways to tell it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oneroof import log
from oneroof.bench.peers.contest import Contest, Terms, Turn
from oneroof.bench.peers.folder import facts_of, prepare
from oneroof.bench.peers.records import records
from oneroof.bench.peers.results import Result
from oneroof.bench.peers.roster import Variant
from oneroof.bench.peers.table import NOTES, csv_text, section
from oneroof.bench.records import Facts
from oneroof.models import read_facts
from oneroof.report import Record, source


@dataclass
class Findings:
    """Results in the order of the models."""

    device: str
    facts: Facts  # the options that could change a number
    results: list[Result] = field(default_factory=list)
    complete: bool = False  # nothing is left to measure

    def take(self, models: Sequence[str], chosen: Sequence[Variant], terms: Terms, work: Path) -> None:
        """Measure `models` one after the other; weights and converted files go below `work`."""
        for model in models:
            log.info(f"{model}: weights")
            facts = facts_of(model)
            place = work / _folder_name(model)
            place.mkdir(exist_ok=True)
            result = Result(model, read_facts(facts))
            self.results.append(result)
            contest = Contest(prepare(model, place, terms.seed), facts, place, terms)
            entries = contest.entries(chosen, result.skipped.__setitem__)
            result.versions.update({entry.variant: entry.version for entry in entries})
            report = log.progress(f"measuring {model}")
            for done, turn in enumerate(contest.turns(entries, result.config.vocabulary), 1):
                result.turns.append(turn)
                if turn.timings:
                    log.info(told(turn))
                report(done, terms.rounds * len(entries))
            report(1, 1)
        self.complete = True

    @property
    def turns(self) -> int:
        """Measured so far."""
        return sum(bool(turn.timings) for result in self.results for turn in result.turns)

    def text(self) -> str:
        """Heading, a section a model, notes."""
        notes = ["", *NOTES] if self.turns else []
        return "\n".join([self.heading(), *(f"\n{section(result)}" for result in self.results), *notes])

    def heading(self) -> str:
        """Where and how, in two lines."""
        count = self.facts["rounds"]
        rounds = "one round" if count == 1 else f"medians of {count} interleaved rounds"
        return f"{self.device}\n{rounds}, {self.facts['tokens']} tokens written, commit {source()}"

    def records(self) -> Iterator[Record]:
        """Every number with what it depends on."""
        for result in self.results:
            yield from records(result, self.facts, self.device)

    def csv(self) -> str:
        """A line a row."""
        return csv_text(self.results)

    def draw(self, path: Path) -> None:
        """The picture, if there is anything to show; matplotlib is imported here."""
        if not self.turns:
            log.warning(f"{path} is not drawn: nothing was measured")
            return
        from oneroof.bench.peers.picture import draw

        draw(self.results, path, self.heading())


def told(turn: Turn) -> str:
    """A turn in one line."""
    cells = [
        f"{cell} prefill {cell.prompts / one.prefill:.0f}, decode {cell.batch / one.step:.1f}"
        for cell, one in turn.timings.items()
    ]
    return f"{turn.variant}: {'; '.join(cells)} tokens/s"


def _folder_name(model: str) -> str:
    """A name for files of `model`, which may be a path; two paths that end alike have two."""
    if re.fullmatch(r"[a-z0-9.-]+", model):
        return model
    return f"{Path(model).name}-{zlib.crc32(str(Path(model).resolve()).encode()):08x}"
