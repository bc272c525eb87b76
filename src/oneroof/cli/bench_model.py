"""The command `bench model`: how fast a model is here, over a grid of shapes or up to a limit per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from oneroof import log
from oneroof.bench.grid import Case, read_batches, read_cases, read_range
from oneroof.cli.options import ModelOptions
from oneroof.cli.outputs import OutputOptions
from oneroof.errors import UserError

_NO_FACTS = {"device", "max_batch", "max_model_len", "profile", "log_dir", "adapter", "hub", "revision"}


@dataclass(frozen=True, kw_only=True)
class BenchModel(OutputOptions, ModelOptions):
    """Measure the speed of a model over a grid of prompt lengths, output lengths and batch sizes.

    Prompts are random token ids, new ones in each round; texts are greedy and do not end early. Columns are
    medians of the rounds: the total time; the prefill, until every text has its first token, and that divided
    by the batch; the time of a later token of all texts, and the tokens/s that it makes; the tokens/s from
    end to end. The floor is what a later token has to read, at the rate at which memory was read in the run.
    The CSV file has the columns of ModelTest's performance runs.
    """

    cases: str = "[[128,32],[512,64]]"
    """Pairs of tokens in and tokens out."""

    batch_sizes: str = "1,4,8"
    """Batch sizes, for all cases or a list for each: [[1,4],[8]]."""

    time_limit: float | None = None
    """Search the largest batch whose later tokens take at most so many milliseconds, for each case."""

    batch_range: str = "1,64"
    """With --time-limit: the least and the largest batch of the search."""

    rounds: int = 3
    """Rounds that are measured."""

    warmup: int = 1
    """Rounds of a few tokens before them, that are not."""

    def run(self) -> int:
        """Measure and tell; also what there is so far, where it fails or is interrupted on the way."""
        cases = read_cases(self.cases)
        plan = read_batches(self.batch_sizes, cases)
        low, high = read_range(self.batch_range)
        self._refuse(cases)

        self.summon()
        from oneroof.bench.findings import Findings, Search  # torch: not for --help, nor for a mistyped word
        from oneroof.bench.model import ModelBench
        from oneroof.cli.model import load_llm, opened
        from oneroof.device import describe
        from oneroof.engine.llm import LLM
        from oneroof.ops.cpu import backend

        self._check_context(cases)
        with opened(self._sized(1, 2)) as first:  # its weights are wanted, its engine is not
            loaded = first.loaded
            first.close()

            alone = self.tp == self.pp == self.ep == 1

            def opener(batch: int, positions: int) -> LLM:
                llm = load_llm(self._sized(batch, positions), loaded if alone else None)
                if self.engine == "paged":
                    self._check_room(llm.stats().pages, batch, positions)
                return llm

            bench = ModelBench(
                opener,
                rounds=self.rounds,
                warmup=self.warmup,
                seed=self.seed,
                counted=self.engine == "paged",
                progress=log.progress("measuring"),
            )
            search = None if self.time_limit is None else Search(self.time_limit / 1e3, low, high)
            dtype = str(loaded.dtype).removeprefix("torch.")
            threads = backend.threads()
            device = describe(loaded.device, threads)
            findings = Findings(self._name(), device, self._facts(dtype, threads), search)
            try:
                if search is None:
                    findings.take(bench.grid(plan))
                else:
                    findings.take_search(bench, cases)
            finally:
                if findings.rows:
                    if not findings.complete:
                        log.warning(f"stopped on the way; rows so far: {len(findings.rows)}")
                    numbers = list(findings.records())
                    self.tell(findings.text(), numbers, findings.csv(), findings.draw)
        return 0

    def _refuse(self, cases: Sequence[Case]) -> None:
        """UserError for options that cannot be, or not together, before anything is loaded."""
        self._check("dp", self.dp != 1, "1: an engine is measured, not several")
        self._check("rounds", self.rounds < 1, "1 or more")
        self._check("warmup", self.warmup < 0, "0 or more")
        limit = self.time_limit
        endless = limit is not None and not (limit > 0 and math.isfinite(limit))
        self._check("time_limit", endless, "a number of more than 0 ms")
        if self.max_batch != ModelOptions.max_batch:
            raise UserError(
                f"--max-batch {self.max_batch} was given; --batch-sizes is allowed here; leave it out"
            )
        if self.time_limit is None and self.batch_range != BenchModel.batch_range:
            raise UserError("--batch-range was given; it is allowed with --time-limit; add that")
        if self.time_limit is not None and self.batch_sizes != BenchModel.batch_sizes:
            raise UserError(
                "--batch-sizes was given with --time-limit; --batch-range is allowed there; leave it out"
            )
        if self.time_limit is not None and any(case.tokens < 2 for case in cases):
            raise UserError(
                f"--cases {self.cases} writes 1 token; --time-limit allows 2 or more; try [[128,32]]"
            )
        self.check_outputs()

    def _check_context(self, cases: Sequence[Case]) -> None:
        """UserError for a case that is longer than the model can be, before its weights are read."""
        from oneroof.engine.admission import context_of
        from oneroof.hub import locate
        from oneroof.models import read_config

        config = read_config(locate(self.model, revision=self.revision, hub=self.hub))
        context = context_of(config, self.max_model_len)
        for case in cases:
            if case.positions > context:
                raise UserError(
                    f"the case {case} has {case.positions} tokens; {context} are allowed here; shorten it"
                )

    def _check_room(self, pages: int, batch: int, positions: int) -> None:
        """UserError for a cache that does not hold the whole batch, which would be written in turns."""
        needed = batch * -(-positions // self.page_size)
        if pages < needed:
            raise UserError(
                f"batch {batch} of {positions} tokens each takes {needed} pages of {self.page_size}; "
                f"{pages} fit into the memory that may be used; allow more --kv-memory, or a smaller batch"
            )

    def _sized(self, batch: int, positions: int) -> ModelOptions:
        """The same options for an engine of so many texts, of so many tokens each."""
        return replace(self, max_batch=batch, max_model_len=self.max_model_len or positions)

    def _name(self) -> str:
        return Path(self.model).expanduser().resolve().name

    def _facts(self, dtype: str, threads: int) -> dict[str, str | int | float | bool]:
        """The options that could change a number, with what `auto` has become."""
        named = [field.name for field in fields(ModelOptions) if field.name not in _NO_FACTS]
        found = {name: getattr(self, name) for name in (*named, "rounds", "warmup")}
        found |= {"dtype": dtype, "threads": threads}
        return {name: value for name, value in found.items() if value is not None}
