"""The command `bench kernels`: how near each kernel is to what this machine's memory and arithmetic give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oneroof import log
from oneroof.cli.outputs import OutputOptions
from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BenchKernels(OutputOptions):
    """Measure the CPU kernels of a model's shapes one by one, each beside its floor and torch's own.

    Weights are random; only the folder's config.json is read. A case goes through more weights than caches
    hold.
    """

    model: str = "demo"
    """A folder with a config.json, a hub id, or demo."""

    forms: str = "none,w8a16,w8a8-dynamic,w4a16,w4a8-dynamic"
    """Forms of the weights, as --quantization names them."""

    tokens: str = "1,8,128"
    """Numbers of tokens that a product has at once."""

    keys: int = 1024
    """Keys behind each token of the attention."""

    rounds: int = 5
    """Rounds that are measured."""

    threads: int | Literal["auto"] = "auto"
    """CPU threads; auto takes the cores that this process may use."""

    def run(self) -> int:
        """Measure and tell; also what there is so far, where it is interrupted on the way."""
        counts = self._tokens()
        for name in ("keys", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--{name} {getattr(self, name)} was given; 1 or more is allowed; leave it out"
                )
        self.check_outputs()

        import torch  # not for --help, nor for a mistyped word

        from oneroof.bench import kernel_report as report
        from oneroof.bench.kernels import Timing, cases, measure
        from oneroof.device import cpu_name, use_threads
        from oneroof.hub import locate
        from oneroof.models import read_config
        from oneroof.ops.cpu import backend
        from oneroof.ops.dispatch import served
        from oneroof.quant.schemes import SCHEMES

        forms = self.forms.split(",")
        if unknown := [form for form in forms if form not in SCHEMES]:
            raise UserError(
                f"--forms {unknown[0]} is unknown; {', '.join(SCHEMES)} are allowed; try --forms none"
            )
        config = read_config(locate(self.model))
        threads = use_threads(self.threads)
        backend.set_threads(threads)
        backend.install()
        facts: dict[str, str | int] = {"model": self.model, "threads": threads}
        facts |= {"keys": self.keys, "rounds": self.rounds}
        device = f"cpu: {cpu_name()}, {threads} threads, {served()['matmul']} kernels"
        heading = f"{self.model}; {device}; medians of {self.rounds} rounds"
        torch.manual_seed(0)
        timings: list[Timing] = []
        try:
            with torch.inference_mode():
                for timing in measure(cases(config, forms, counts, self.keys), self.rounds):
                    timings.append(timing)
                    case = timing.case
                    log.info(f"{case.op}, {case.form}, {case.tokens} tokens: {timing.median * 1e3:.3g} ms")
        finally:
            if timings:
                self.tell(
                    report.text(timings, heading),
                    list(report.records(timings, facts, device)),
                    report.csv_text(timings),
                    lambda path: report.draw(timings, path, heading),
                )
        return 0

    def _tokens(self) -> list[int]:
        words = self.tokens.split(",")
        if not all(word.isdecimal() and int(word) for word in words):
            raise UserError(
                f"--tokens {self.tokens} was given; whole numbers from 1 on are allowed; try 1,8,128"
            )
        return [int(word) for word in words]
