"""A loaded model under a grid of batches, or under a search for the largest batch that is quick enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from oneroof.bench.floor import held_traffic, streamed
from oneroof.bench.grid import Case
from oneroof.bench.measure import Round, Row, measure, prompts
from oneroof.engine.llm import LLM
from oneroof.errors import UserError

Opener = Callable[[int, int], LLM]
"""An `LLM` for so many texts at once, of so many positions each."""

_WARM = 4  # tokens that a round to warm up writes at most


@dataclass(frozen=True)
class Probe:
    """One step of a search: the row that was measured, or why there is none."""

    batch: int
    row: Row | None
    why: str = ""  # in words, where it does not count


class ModelBench:
    """Measures rows. The weights are loaded once; every batch size has an engine of its own size."""

    def __init__(
        self,
        opener: Opener,
        *,
        rounds: int,
        warmup: int,
        seed: int,
        counted: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        """`counted`: the engine tells its seconds. `progress` hears of rounds, (done, all)."""
        self._opener = opener
        self._rounds = rounds
        self._warmup = warmup
        self._counted = counted
        self._progress = progress
        self._done = self._all = 0
        self._generator = torch.Generator().manual_seed(seed)

    def grid(self, plan: Sequence[tuple[int, Sequence[Case]]]) -> Iterator[Row]:
        """A row for each case of each batch size, in the order of `plan`, as soon as it is measured."""
        self._expect(sum(len(cases) for _, cases in plan))
        for batch, cases in plan:
            with self._opener(batch, max(case.positions for case in cases)) as llm:
                for case in cases:
                    self._progress(self._done, self._all)  # now, as a round of many texts is long
                    yield self._row(llm, batch, case)

    def search(self, case: Case, low: int, high: int, limit: float) -> Iterator[Probe]:
        """Halve `low`..`high` until the largest batch is known whose later tokens take `limit` seconds.

        A batch that the memory does not hold is too large, and so is one whose texts were never written all
        at once. Of the probes without `why`, the one of the largest batch is the answer.
        """
        self._expect((high - low + 1).bit_length())  # at most
        while low <= high:
            batch = (low + high) // 2
            probe = self._probe(case, batch, limit)
            yield probe
            low, high = (low, batch - 1) if probe.why else (batch + 1, high)
        self._progress(self._all, self._all)

    def _expect(self, rows: int) -> None:
        self._done, self._all = 0, rows * (self._rounds + self._warmup)

    def _probe(self, case: Case, batch: int, limit: float) -> Probe:
        try:
            with self._opener(batch, case.positions) as llm:
                row = self._row(llm, batch, case)
        except UserError as error:
            return Probe(batch, None, str(error))
        if row.step is None:
            return Probe(batch, row, "its texts were never written all at once")
        return Probe(batch, row, "too slow" if row.step.median > limit else "")

    def _row(self, llm: LLM, batch: int, case: Case) -> Row:
        for _ in range(self._warmup):
            self._round(llm, batch, case, min(case.tokens, _WARM))
        loaded = llm.loaded
        bandwidth = streamed(loaded.device)
        rounds = tuple(self._round(llm, batch, case, case.tokens) for _ in range(self._rounds))
        behind = case.prompt + case.tokens / 2  # keys that a step reads for each text, on average
        read = held_traffic(loaded, llm.options.kv, batch, behind)
        return Row(case=case, batch=batch, rounds=rounds, read=read.bytes, bandwidth=bandwidth)

    def _round(self, llm: LLM, batch: int, case: Case, tokens: int) -> Round:
        texts = prompts(case, batch, llm.loaded.config.vocabulary, self._generator)
        made = measure(llm, texts, tokens, counted=self._counted)
        self._done += 1
        self._progress(self._done, self._all)
        return made
