"""Trains the demo model on the CPU, by the clock: the schedule is spread over ``--minutes`` at any speed.

Run after `prepare`, from the repository's root: ``torchrun --nproc-per-node 2 -m examples.demo_model.train``,
one rank a core. Every few minutes weights and optimiser are saved, whole or not at all; the same command goes
on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from examples.demo_model import ranks, windows
from examples.demo_model.objective import Objective, backward, entropy_of, every_expert
from examples.demo_model.optimizer import Optimizer
from examples.demo_model.windows import Ids
from oneroof import ops, tensorfile
from oneroof.batch import Batch
from oneroof.models import read_config
from oneroof.models.decoder import Decoder
from oneroof.models.init import initialize

SHARES = {"books": 0.70, "modern": 0.10, "classics": 0.08, "chat": 0.12}
STREAMS = (*SHARES, "valid")


@dataclass(frozen=True)
class Plan:
    """How a run is spread over its time."""

    minutes: float = 60.0
    tokens: int = 8192  # a step
    lengths: tuple[tuple[float, int], ...] = (
        (0.7, 256),
        (1.0, 512),
    )  # until this part of the run: window length
    matrix_rate: float = 0.02
    rate: float = 4e-3
    warmup: int = 50  # steps
    steady: float = 0.3  # part of the run before the rates fall, in a straight line, to nothing
    save_minutes: float = 4.0
    seed: int = 0

    def factor(self, done: float, step: int) -> float:
        """What the learning rates are multiplied by when this part of the run is done."""
        return min(1.0, (step + 1) / self.warmup, max(0.01, (1 - done) / (1 - self.steady)))

    def length(self, done: float) -> int:
        """Window length when this part of the run is done."""
        return next((length for until, length in self.lengths if done < until), self.lengths[-1][1])


@dataclass
class Progress:
    """Where a run stands; saved beside its weights."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    valid_nats: float = math.inf  # mean over the validation stream's tokens


class Run:
    """One training run in a work folder that `prepare` filled; every rank of it holds the whole model."""

    def __init__(self, work: Path, plan: Plan, streams: Mapping[str, Ids], *, compiled: bool = True) -> None:
        self.work, self.plan, self.streams = work, plan, streams
        self.model = Decoder(read_config(work / "model"), dtype=torch.bfloat16)
        initialize(self.model, plan.seed)
        self.optimizer = Optimizer(
            self.model, head_dim=self.model.config.head_dim, matrix_rate=plan.matrix_rate, rate=plan.rate
        )
        self.objective = Objective(self.model)
        self.progress = Progress()
        self.loss = math.inf  # smoothed, in nats a token
        if compiled:  # the forwards and their backwards alone: the optimiser's work is a few per cent
            self.objective.compile(dynamic=False)
            self.objective.entropy = torch.compile(self.objective.entropy, dynamic=False)  # type: ignore[method-assign]
        if (work / "progress.json").exists():
            self._resume()

    def train(self) -> None:
        """Step until the plan's time is spent."""
        began, saved, length = time.monotonic() - self.progress.seconds, time.monotonic(), 0
        batches: Iterator[tuple[Batch, Tensor]] = iter(())
        while (done := ranks.first((time.monotonic() - began) / 60 / self.plan.minutes)) < 1:
            if length != self.plan.length(done):
                length = self.plan.length(done)
                batches = self._batches(length)
            self.step(*next(batches), self.plan.factor(done, self.progress.step))
            self.progress.seconds = time.monotonic() - began
            if ranks.rank() == 0 and time.monotonic() - saved > 60 * self.plan.save_minutes:
                self.save()
                saved = time.monotonic()
        if ranks.rank() == 0:
            self.save()

    def step(self, batch: Batch, targets: Tensor, factor: float) -> None:
        """One step of all ranks, each with its share of the tokens."""
        loss, uneven = backward(self.objective, batch, targets)
        ranks.average([p.grad for p in self.model.parameters() if p.grad is not None])
        self.optimizer.step(factor)
        self.progress.step += 1
        self.progress.tokens += len(targets) * ranks.count()
        self.loss = float(loss) if math.isinf(self.loss) else 0.97 * self.loss + 0.03 * float(loss)
        if self.progress.step % 20 == 0:
            self._say(f"loss {self.loss:.3f} balance {float(uneven):.3f}")

    def _batches(self, length: int) -> Iterator[tuple[Batch, Tensor]]:
        seed = 1000 * (self.plan.seed + self.progress.step) + ranks.rank()
        return windows.training(self.streams, SHARES, length, self.plan.tokens // ranks.count(), seed)

    def validate(self) -> float:
        """Mean cross entropy in nats a token on the validation stream, in windows of the final length."""
        length, stream = self.plan.lengths[-1][1], self.streams["valid"]
        total = sum(entropy_of(self.model, *b) for b in windows.reading(stream, length, self.plan.tokens))
        return total / (len(stream) - 1)

    def save(self) -> None:
        """The model folder's weights, the optimiser's state, and where the run stands, in this order."""
        self.progress.valid_nats = self.validate()
        _write(self.work / "model" / "model.safetensors", self.model.tensors())
        _write(self.work / "optimizer.safetensors", self.optimizer.state())
        tensorfile.write_text(self.work / "progress.json", json.dumps(asdict(self.progress), indent=2) + "\n")
        self._say(f"saved; validation {self.progress.valid_nats:.4f} nats a token")

    def _resume(self) -> None:
        self.progress = Progress(**json.loads((self.work / "progress.json").read_text(encoding="utf-8")))
        self.optimizer.resume(safetensors.torch.load_file(self.work / "optimizer.safetensors"))
        self._say("goes on")

    def _say(self, what: str) -> None:
        if ranks.rank():
            return
        now = self.progress
        pace = f"{now.tokens / 1e6:.2f} M tokens, {now.tokens / max(now.seconds, 1e-9):.0f}/s"
        print(f"step {now.step}, {now.seconds / 60:.1f} min, {pace}: {what}", flush=True)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    specs = [tensorfile.Spec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    tensorfile.write(path, specs, tensors.__getitem__)


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"), help="what prepare filled")
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="earlier parts included")
    parser.add_argument(
        "--tokens", type=int, default=Plan.tokens, help="tokens of a step, all ranks together"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a rank")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ops.mixture.reference = every_expert
    streams = {name: np.load(options.work / f"{name}.npy") for name in STREAMS}
    with ranks.joined():
        Run(options.work, Plan(minutes=options.minutes, tokens=options.tokens), streams).train()


if __name__ == "__main__":
    main()
