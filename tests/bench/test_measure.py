"""What a row says of pieces that come at known times, and of a real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from oneroof import LLM
from oneroof.bench import measure as room
from oneroof.bench.grid import Case
from oneroof.bench.measure import Round, Row, measure, prompts
from oneroof.engine.request import Completion, Output, Piece
from oneroof.errors import UserError


class Scripted:
    """An LLM whose pieces come at given times: (seconds, text, finish reason)."""

    def __init__(self, script: Sequence[tuple[float, int]], *, failing: bool = False) -> None:
        self.now = 100.0
        self.model = 0.0  # seconds that the engine says it spent in the model
        self._script = script
        self._failing = failing

    def stream(self, texts: object, params: object) -> Iterator[Piece]:
        """One token at each time of the script; half of the time is spent in the model."""
        for seconds, text in self._script:
            self.model += (100 + seconds - self.now) / 2
            self.now = 100 + seconds
            output = None
            if self._failing:
                broken = Completion("", (), "error", None, None, error="it is broken")
                output = Output(text, None, (1,), (broken,), None)
            yield Piece(text, 0, "", (7,), "error" if self._failing else None, output)

    def stats(self) -> SimpleNamespace:
        """As the engine's."""
        return SimpleNamespace(seconds_model=self.model)


def scripted(
    monkeypatch: pytest.MonkeyPatch, script: Sequence[tuple[float, int]], texts: int, tokens: int
) -> Round:
    llm = Scripted(script)
    monkeypatch.setattr(room.time, "perf_counter", lambda: llm.now)
    return measure(llm, [[1]] * texts, tokens, counted=True)  # type: ignore[arg-type]


def test_a_batch_that_begins_together_is_timed_from_its_first_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        (t + i * 1e-6, i) for t in (2.0, 2.5, 3.0, 4.0) for i in range(3)
    ]  # pieces of a step follow closely
    made = scripted(monkeypatch, steps, 3, 4)
    assert made.total == pytest.approx(4.0, abs=1e-4)
    assert made.prefill == pytest.approx(2.0, abs=1e-4)
    assert made.step == pytest.approx(2.0 / 3, abs=1e-4)
    assert made.outside == pytest.approx(0.5, abs=1e-4)


def test_a_step_is_timed_only_while_all_texts_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    early = [(t, 0) for t in (1.0, 3.0, 4.0, 5.0)]  # its second token waits for the prompt of the late one
    late = [(t + 1e-6, 1) for t in (3.0, 4.0, 5.0, 5.1)]  # alone, it has its last token soon
    made = scripted(monkeypatch, sorted(early + late), 2, 4)
    assert made.prefill == pytest.approx(3.0, abs=1e-4)
    assert made.step == pytest.approx(1.0, abs=1e-4)
    assert made.total == pytest.approx(5.1, abs=1e-4)


def test_texts_that_are_written_in_turns_have_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch, [(1, 0), (2, 0), (3, 1), (4, 1)], 2, 2)
    assert (made.step, made.outside) == (None, None)
    assert (made.prefill, made.total) == (3, 4)


def test_one_token_each_has_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch, [(1, 0), (1.1, 1)], 2, 1)
    assert made == Round(total=pytest.approx(1.1), prefill=pytest.approx(1.1), step=None, outside=None)


def test_a_text_that_fails_ends_the_measurement() -> None:
    with pytest.raises(UserError, match="text 0 of a batch failed: it is broken; "):
        measure(Scripted([(1, 0)], failing=True), [[1]], 4, counted=False)  # type: ignore[arg-type]


def row(*steps: float | None, batch: int = 4) -> Row:
    rounds = tuple(Round(total=8.0 + i, prefill=2.0, step=s, outside=0.1 * i) for i, s in enumerate(steps))
    return Row(case=Case(128, 16), batch=batch, rounds=rounds, read=3e9, bandwidth=10e9)


def test_a_row_has_the_formulas_of_the_original_test() -> None:
    made = row(0.5, 0.6, 0.4)
    assert made.step is not None
    assert (made.step.median, made.step.least, made.step.most) == (0.5, 0.4, 0.6)
    assert made.total.median == 9.0
    assert made.step_rate == 4 / 0.5
    assert made.rate == 4 * 16 / 9.0
    assert made.floor == pytest.approx(0.3)
    assert made.reached == pytest.approx(0.6)
    assert made.outside == pytest.approx(0.1)
    assert str(made) == "batch 4, 128+16: prefill 2000 ms, then 500 ms a token (8 tokens/s)"


def test_a_row_has_no_step_unless_every_round_has() -> None:
    made = row(0.5, None, 0.4)
    assert (made.step, made.step_rate, made.reached) == (None, None, None)
    assert str(made) == "batch 4, 128+16: prefill 2000 ms"


def test_prompts_are_new_at_each_call_and_the_same_for_a_seed() -> None:
    def twice() -> list[list[list[int]]]:
        generator = torch.Generator().manual_seed(3)
        return [prompts(Case(9, 1), 4, 50, generator) for _ in range(2)]

    first, second = twice()
    assert [first, second] == twice()
    assert first != second
    assert {len(p) for p in first + second} == {9} and len(first) == 4
    assert {token for p in first for token in p} <= set(range(50))


@pytest.mark.parametrize("engine", ["paged", "plain"])
def test_a_real_engine_writes_all_tokens_and_finds_nothing_cached(
    checkpoint: Callable[..., Path], engine: str
) -> None:
    folder = checkpoint("qwen2")
    counted = engine == "paged"
    with LLM(folder, device="cpu", dtype="float32", engine=engine, max_batch=3, max_model_len=64) as llm:
        generator = torch.Generator().manual_seed(0)
        rounds = [measure(llm, prompts(Case(40, 6), 3, 352, generator), 6, counted=counted) for _ in range(2)]
        assert llm.speed.tokens == 2 * 3 * 5
        if counted:
            stats = llm.stats()
            assert (stats.tokens, stats.cached_tokens, stats.preemptions) == (36, 0, 0)
    for made in rounds:
        assert made.step is not None
        assert 0 < made.prefill < made.total
        assert made.prefill + 5 * made.step == pytest.approx(made.total, rel=0.2)
        assert (made.outside is not None and 0 < made.outside < 1) == counted
