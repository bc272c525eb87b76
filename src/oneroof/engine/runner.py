"""The model at work on one step: launch it, and collect later what it chose.

Between the two nothing waits for the device. What one row's settings cannot do fails that row alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from oneroof.device import Int64s, upload
from oneroof.engine.answer import BAD, Answer
from oneroof.engine.assemble import Sheet, ordered, write_sheet
from oneroof.engine.logprobs import chunks, logprobs, prompt_logprobs
from oneroof.engine.orders import Rows, StepOrder
from oneroof.engine.request import Logprob, Reading
from oneroof.engine.sampler import Settings, sample
from oneroof.engine.scheduler import Part, Step
from oneroof.engine.sequence import Sequence
from oneroof.engine.team import Team, do_chores
from oneroof.engine.whole import meaning
from oneroof.load import Loaded
from oneroof.pages import KVCache

Owners = Mapping[Sequence, Answer | Reading]
Shares = list[dict[int, Logprob]]


@dataclass(frozen=True)
class _Choice:
    """A row of logits and whose next token it gives."""

    part: int
    heir: int  # of the part
    answer: Answer
    sequence: Sequence
    row: int  # of the batch
    length: int  # tokens before the chosen one


@dataclass(frozen=True)
class _Asked:
    """A part of a prompt whose tokens' log-probabilities are wanted, from its row `first` on."""

    part: int
    first: int
    following: list[int]
    top: int


@dataclass
class Flight:
    """A step that was launched and is not collected yet."""

    parts: list[Part]
    step: Step
    sheet: Sheet | None = None
    lanes: list[int] | None = None  # where a token is on the device alone
    asked: list[_Asked] = field(default_factory=list)
    readings: list[tuple[int, int, Reading]] = field(default_factory=list)  # part, row
    choices: list[_Choice] = field(default_factory=list)
    done: bool = False  # the model has been at work on it
    tokens: Tensor | None = None  # one a choice
    logits: Tensor | None = None  # kept where log-probabilities were asked for
    vectors: dict[int, Tensor] = field(default_factory=dict)  # part -> what a reading brings
    prompts: dict[int, Shares] = field(
        default_factory=dict
    )  # part -> log-probabilities of the prompt's tokens
    errors: dict[int, str] = field(default_factory=dict)  # choice -> what was wrong with its settings

    def rows(self, vocabulary: int) -> Rows:
        """The rows that logits are made of, call by call."""
        calls: Rows = [
            [one.first + i for i in some]
            for one in self.asked
            for some in chunks(len(one.following), vocabulary)
        ]
        calls += [[row] for _, row, reading in self.readings if reading.words]
        chosen = list(dict.fromkeys(choice.row for choice in self.choices))
        return [*calls, chosen] if chosen else calls


@dataclass(frozen=True)
class Result:
    """What one part brought."""

    part: Part
    chosen: list[list[int]]  # by heir
    shares: list[Shares]  # by heir, one a token where asked for
    errors: list[str | None]  # by heir
    vector: list[float] | None
    prompt: Shares  # of the tokens after each of the part's rows, where asked for


class Runner:
    """`loaded` over `cache`, for sequences in `lanes` lanes."""

    def __init__(
        self, loaded: Loaded, cache: KVCache, lanes: int, *, ahead: bool, team: Team | None = None
    ) -> None:
        """`ahead`: steps are launched before the tokens of the last one are known on the host. `team`: other
        ranks have the rest of the model, and are told every step.
        """
        self.cache = cache
        self.seconds = 0.0  # in the model, its logits and the choice of tokens
        self._loaded = loaded
        self._team = team
        self._model = loaded.model if team is None else team.model
        self._latest = torch.zeros(lanes, dtype=torch.int64, device=loaded.device) if ahead else None
        self._settings: tuple[tuple[Answer, ...], Settings] | None = None

    @torch.inference_mode()
    def launch(self, step: Step, owners: Owners) -> Flight:
        """Begin `step`; `owners` say whose its sequences are. Raises whatever the model raises."""
        flight = Flight(ordered(step.parts), step)
        if flight.parts:
            flight.sheet = write_sheet(flight.parts, self.cache.page_size)
            flight.asked = list(_asked(flight.parts, owners))
            flight.readings = list(_readings(flight.parts, owners))
            flight.choices = _choices(flight.parts, owners)
            if self._latest is not None and flight.sheet.unknown:
                flight.lanes = [part.sequence.lane for part in flight.parts]
        if self._team is not None:
            with self._team.together():
                rows = flight.rows(self._loaded.config.vocabulary)
                self._team.tell(StepOrder.of(step.chores, flight.sheet, rows))
        if self._team is None or not self._team.stages > 1:
            self._run(flight)
        return flight

    def _run(self, flight: Flight) -> None:
        """Let the model be at work on it; of several stages, those before this one have begun already."""
        flight.done = True
        began = time.perf_counter()
        with nullcontext() if self._team is None else self._team.together():
            do_chores(self.cache, flight.step.chores)
            if flight.sheet is not None:
                self._read(flight, flight.sheet)
        self.seconds += time.perf_counter() - began

    def _read(self, flight: Flight, sheet: Sheet) -> None:
        batch = sheet.batch(
            page_size=self.cache.page_size,
            device=self._loaded.device,
            latest=self._latest,
            lanes=flight.lanes,
        )
        hidden = self._model(batch, self.cache)
        for one in flight.asked:
            flight.prompts[one.part] = prompt_logprobs(
                hidden[one.first : one.first + len(one.following)],
                self._loaded.model.logits,
                one.following,
                one.top,
                self._loaded.spelled,
                vocabulary=self._loaded.config.vocabulary,
            )
        for part, row, reading in flight.readings:
            flight.vectors[part] = meaning(self._loaded, hidden[row], reading)
        if flight.choices:
            self._choose(flight, hidden)

    @torch.inference_mode()
    def collect(self, flight: Flight) -> list[Result]:
        """What the step brought, part by part; the one place that waits for the device."""
        if not flight.done:
            self._run(flight)
        began = time.perf_counter()
        made: list[int] = [] if flight.tokens is None else flight.tokens.tolist()
        shares = self._logprobs(flight)
        vectors = {part: vector.tolist() for part, vector in flight.vectors.items()}
        self.seconds += time.perf_counter() - began
        rows: dict[tuple[int, int], list[int]] = {}  # of each heir, its choices in order
        for i, choice in enumerate(flight.choices):
            rows.setdefault((choice.part, choice.heir), []).append(i)
        results = []
        for p, part in enumerate(flight.parts):
            chosen, given, errors = [], [], []
            for h in range(len(part.heirs)):
                mine = rows.get((p, h), [])
                kept = _agreed([made[i] for i in mine], part.drafts)
                chosen.append(kept)
                given.append([shares[i] for i in mine[: len(kept)] if i in shares])
                errors.append(next((flight.errors[i] for i in mine if i in flight.errors), None))
            results.append(Result(part, chosen, given, errors, vectors.get(p), flight.prompts.get(p, [])))
        return results

    def _choose(self, flight: Flight, hidden: Tensor) -> None:
        choices = flight.choices
        rows = list(dict.fromkeys(c.row for c in choices))
        whole = len(rows) == len(hidden)  # each row of the batch is chosen from, in order
        logits = self._loaded.model.logits(hidden if whole else hidden[upload(rows, hidden.device)])
        if len(rows) < len(choices):  # a prompt that is read once for several completions
            place = {row: i for i, row in enumerate(rows)}
            logits = logits[upload([place[c.row] for c in choices], hidden.device)]
        try:
            flight.tokens = self._sample(logits, choices)
        except Exception:  # whatever it is: some row's settings; the others are not to suffer for it
            flight.tokens = self._sample_each(flight, logits)
        if self._latest is not None:
            lanes = upload([c.sequence.lane for c in choices], hidden.device)
            self._latest[lanes] = flight.tokens.clamp(min=0)  # a row that failed may be read once more
        if any(c.answer.request.params.logprobs is not None for c in choices):
            flight.logits = logits

    def _sample(self, logits: Tensor, choices: list[_Choice]) -> Tensor:
        answers = tuple(c.answer for c in choices)
        if self._settings is None or self._settings[0] != answers:
            made = Settings.of(
                [a.request.params for a in answers],
                [a.seed for a in answers],
                [len(a.request.token_ids) for a in answers],
                vocabulary=self._loaded.config.vocabulary,
                device=logits.device,
            )
            self._settings = answers, made
        settings = self._settings[1]
        lengths = upload([c.length for c in choices], logits.device)
        history = None if settings.penalties is None else upload(_history(choices), logits.device)
        return sample(logits, settings, lengths, history)

    def _sample_each(self, flight: Flight, logits: Tensor) -> Tensor:
        tokens = torch.full((len(flight.choices),), BAD, device=logits.device)
        for i, choice in enumerate(flight.choices):
            try:
                tokens[i] = self._sample(logits[i : i + 1], [choice])[0]
            except Exception as error:
                flight.errors[i] = f"its tokens cannot be chosen: {type(error).__name__}: {error}"
        return tokens

    def _logprobs(self, flight: Flight) -> dict[int, dict[int, Logprob]]:
        """By choice, for those that asked."""
        if flight.logits is None or flight.tokens is None:
            return {}
        asked = [(i, c.answer.request.params.logprobs) for i, c in enumerate(flight.choices)]
        tops = {i: top for i, top in asked if top is not None}
        chosen = torch.tensor(list(tops), device=flight.logits.device)
        found = logprobs(
            flight.logits[chosen], flight.tokens[chosen], list(tops.values()), self._loaded.spelled
        )
        return dict(zip(tops, found, strict=True))


def _asked(parts: list[Part], owners: Owners) -> Iterator[_Asked]:
    row = 0
    for p, part in enumerate(parts):
        first, row = row, row + part.count
        owner, sequence = owners[part.sequence], part.sequence
        if isinstance(owner, Reading) or sequence.number or part.start >= sequence.prompt - 1:
            continue
        top = owner.request.params.prompt_logprobs
        if top is not None:
            following = sequence.tokens[part.start + 1 : min(part.end + 1, sequence.prompt)]
            yield _Asked(p, first, list(following), top)


def _readings(parts: list[Part], owners: Owners) -> Iterator[tuple[int, int, Reading]]:
    row = 0
    for p, part in enumerate(parts):
        row += part.count
        owner = owners[part.sequence]
        if isinstance(owner, Reading) and part.heirs:
            yield p, row - 1, owner


def _choices(parts: list[Part], owners: Owners) -> list[_Choice]:
    choices: list[_Choice] = []
    row = 0
    for p, part in enumerate(parts):
        row += part.count
        for h, heir in enumerate(part.heirs):
            owner = owners[heir]
            if isinstance(owner, Reading):
                continue
            choices += [
                _Choice(p, h, owner, heir, row - 1 - back, part.end - back)
                for back in range(len(part.drafts), -1, -1)
            ]
    return choices


def _agreed(made: list[int], drafts: tuple[int, ...]) -> list[int]:
    """The tokens that stand: as long as the guess before was right, the next one was made from the truth."""
    right = 0
    while right < min(len(drafts), len(made) - 1) and drafts[right] == made[right]:
        right += 1
    return made[: right + 1]


def _history(choices: list[_Choice]) -> Int64s:
    """[R, L] the tokens of rows with penalties, which are all known on the host; other rows are zero."""
    penalized = [(row, c) for row, c in enumerate(choices) if c.answer.request.params.penalized]
    table = np.zeros((len(choices), max(c.length for _, c in penalized)), dtype=np.int64)
    for row, choice in penalized:
        table[row, : choice.length] = choice.sequence.tokens[: choice.length]
    return table
