"""The command `bench peers`: how fast this project and other engines run the same weights here."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oneroof import log
from oneroof.bench.grid import read_batches, read_lengths
from oneroof.bench.peers.roster import PEERS, PRECISIONS, interpreters, variants
from oneroof.bench.peers.shapes import SHAPES
from oneroof.cli.outputs import OutputOptions
from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BenchPeers(OutputOptions):
    """Compare the speed of oneroof with llama.cpp, CTranslate2, OpenVINO, ONNX Runtime and transformers.

    All read the same random weights, each in its own format and at each precision that it has; one that is
    not installed or cannot run a model is left out, with the reason. In every round each has one turn, in an
    order that changes, in a process of its own that loads, warms up, writes and ends; the rates at which the
    machine reads and multiplies are taken beside each. The table has medians and ranges, shares of what those
    rates allow, and oneroof's best over the best peer's. What is read is told where a run is interrupted.
    """

    models: str = "all"
    """Which, by commas: of qwen2.5-0.5b, qwen3-0.6b, qwen3-moe-0.7b, ernie-moe-0.6b, or folders."""

    peers: str = "all"
    """Which, by commas: of oneroof, llama.cpp, ctranslate2, openvino, onnxruntime, transformers."""

    precisions: str = "all"
    """Which, by commas: of fp32, bf16, f16, int8, int4."""

    prompts: str = "128,512"
    """Tokens of a prompt."""

    batch_sizes: str = "[[1,8],[1]]"
    """Texts at once, for all prompts or a list for each."""

    tokens: int = 64
    """Tokens that each text is written on."""

    rounds: int = 3
    """Turns that each has."""

    threads: int | Literal["auto"] = "auto"
    """CPU threads of each; auto: the cores that this process may use."""

    python: tuple[str, ...] = ()
    """The Python that has the peers, or PEER=PATH for one of them; this one where not given."""

    work: Path | None = None
    """A folder for weights and converted files, kept for the next run; a temporary one where not given."""

    retries: int = 2
    """Times that cells are written again in which other programs took more than a tenth of a processor."""

    time_limit: float = 900.0
    """Seconds that a turn or a conversion may take."""

    seed: int = 0
    """Seed of weights, prompts and order."""

    def run(self) -> int:
        """Measure and tell; also what there is so far, where it fails or is interrupted on the way."""
        self._refuse()
        lengths = read_lengths(self.prompts, self.tokens)
        plan = read_batches(self.batch_sizes, lengths)
        chosen = variants(_words(self.peers, tuple(PEERS)), _words(self.precisions, PRECISIONS))
        pythons = interpreters(self.python, Path(sys.executable))
        self.check_outputs()

        import torch  # and what brings it: not for --help, nor for a mistyped word

        from oneroof.bench.peers.contest import Cell, Terms
        from oneroof.bench.peers.findings import Findings
        from oneroof.bench.peers.folder import check
        from oneroof.bench.peers.probes import read
        from oneroof.cli.interruption import check_interrupted
        from oneroof.device import describe, use_threads

        check_interrupted()  # of torch's import, which may swallow it
        models = _words(self.models, tuple(SHAPES))
        for model in models:
            check(model, max(case.positions for case in lengths))
        terms = Terms(
            cells=tuple(Cell(batch, case) for batch, cases in plan for case in cases),
            threads=use_threads(self.threads),
            rounds=self.rounds,
            seed=self.seed,
            retries=self.retries,
            limit=self.time_limit,
            pythons=pythons,
            probe=read,
        )
        facts = {name: getattr(self, name) for name in ("tokens", "rounds", "retries", "seed")}
        findings = Findings(describe(torch.device("cpu")), {**facts, "threads": terms.threads})
        try:
            with self._place() as work:
                findings.take(models, chosen, terms, work)
        finally:
            if findings.results:
                if not findings.complete:
                    log.warning(f"stopped on the way; turns so far: {findings.turns}")
                self.tell(findings.text(), list(findings.records()), findings.csv(), findings.draw)
        return 0

    def _refuse(self) -> None:
        """UserError for numbers that cannot be."""
        for name, least in (("tokens", 2), ("rounds", 1), ("retries", 0), ("threads", 1)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise UserError(f"--{name} {value} was given; {least} or more is allowed; try {least}")
        if not self.time_limit > 0:
            raise UserError(f"--time-limit {self.time_limit:g} was given; more than 0 s is allowed; try 900")

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """The folder to work in; UserError where it cannot be made."""
        if self.work is None:
            with tempfile.TemporaryDirectory(prefix="oneroof-peers-") as name:
                yield Path(name)
            return
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--work {self.work} cannot be made ({error.strerror}); a folder is allowed; try another"
            ) from None
        yield self.work.resolve()


def _words(given: str, every: Sequence[str]) -> tuple[str, ...]:
    """The words of a list by commas, each once; `all` is every one."""
    words = tuple(dict.fromkeys(word.strip() for word in given.split(",") if word.strip()))
    return tuple(every) if words == ("all",) else words
