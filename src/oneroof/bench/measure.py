"""One cell of the grid: a batch of random prompts through `LLM.stream`, timed by when its pieces come.

Seconds throughout. What the caller does with a piece is not in the times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oneroof.bench.grid import Case
from oneroof.engine.llm import LLM
from oneroof.engine.request import Piece, SamplingParams
from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Round:
    """One batch, from the call to its last token."""

    total: float
    prefill: float  # until every text has its first token
    step: float | None  # a later token, while all texts are written; None where there is no such time
    outside: float | None  # share of the time after `prefill` outside the model and the choice of tokens


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and its range."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case at a batch size: what its rounds took, and the floor under a step."""

    case: Case
    batch: int
    rounds: tuple[Round, ...]
    read: float  # bytes that a step reads at least
    bandwidth: float  # bytes a second that memory gave just before

    def __str__(self) -> str:
        begun = f"batch {self.batch}, {self.case}: prefill {self.prefill.median * 1e3:.4g} ms"
        if self.step is None:
            return begun
        return f"{begun}, then {self.step.median * 1e3:.4g} ms a token ({self.step_rate:.4g} tokens/s)"

    @property
    def total(self) -> Spread:
        """From the call to the last token."""
        return spread([r.total for r in self.rounds])

    @property
    def prefill(self) -> Spread:
        """Until every text has its first token."""
        return spread([r.prefill for r in self.rounds])

    @property
    def step(self) -> Spread | None:
        """A later token of every text; None unless all were written at once for a while in every round."""
        steps = [r.step for r in self.rounds if r.step is not None]
        return spread(steps) if len(steps) == len(self.rounds) else None

    @property
    def outside(self) -> float | None:
        """Share of the time of later tokens outside the model and the choice of tokens, the median."""
        shares = [r.outside for r in self.rounds if r.outside is not None]
        return statistics.median(shares) if shares else None

    @property
    def step_rate(self) -> float | None:
        """Tokens a second after the first of each text."""
        return None if self.step is None else self.batch / self.step.median

    @property
    def rate(self) -> float:
        """Tokens a second from end to end."""
        return self.batch * self.case.tokens / self.total.median

    @property
    def floor(self) -> float:
        """Seconds that a step takes at least."""
        return self.read / self.bandwidth

    @property
    def reached(self) -> float | None:
        """The floor's share of a step."""
        return None if self.step is None else self.floor / self.step.median


def prompts(case: Case, batch: int, vocabulary: int, generator: torch.Generator) -> list[list[int]]:
    """Random token ids, new ones at each call."""
    drawn: list[list[int]] = torch.randint(0, vocabulary, (batch, case.prompt), generator=generator).tolist()
    return drawn


def measure(llm: LLM, texts: Sequence[Sequence[int]], tokens: int, *, counted: bool) -> Round:
    """Write `tokens` greedy tokens after each of `texts`; `counted`: the engine tells its seconds.

    Raises UserError where a text fails.
    """
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    times: list[list[float]] = [[] for _ in texts]
    silent = len(texts)
    prefill = spent = 0.0
    began = time.perf_counter()
    for piece in llm.stream(texts, params):
        now = time.perf_counter() - began
        _check(piece)
        mine = times[piece.index]
        if not mine:
            silent -= 1
            if not silent:
                prefill = now
                spent = llm.stats().seconds_model if counted else 0.0
        mine += [now] * len(piece.token_ids)
    total = max(mine[-1] for mine in times)
    step = _step(times)
    outside = None
    if counted and step is not None:
        outside = 1 - (llm.stats().seconds_model - spent) / (total - prefill)
    return Round(total=total, prefill=prefill, step=step, outside=outside)


def _check(piece: Piece) -> None:
    if piece.output is not None and piece.finish_reason == "error":
        why = piece.output.completions[0].error or "its logits are not numbers"
        raise UserError(
            f"text {piece.index} of a batch failed: {why}; only whole batches are timed; try another --dtype"
        )


def _step(times: Sequence[Sequence[float]]) -> float | None:
    """Seconds between two tokens of the text that began last, until the first text is done."""
    clock = max(times, key=lambda mine: mine[0])
    ended = min(times, key=lambda mine: mine[-1])
    steps = min(sum(t > clock[0] for t in ended), len(clock) - 1)
    return (clock[steps] - clock[0]) / steps if steps else None


def spread(values: Sequence[float]) -> Spread:
    """The median and the range of `values`, at least one."""
    return Spread(statistics.median(values), min(values), max(values))
