"""The grid's order and engines, and the search for the largest batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from oneroof import LLM, load
from oneroof.bench import model as room
from oneroof.bench.grid import Case
from oneroof.bench.measure import Round
from oneroof.bench.model import ModelBench, Probe
from oneroof.engine.options import EngineOptions
from oneroof.errors import UserError

SHORT, LONG = Case(8, 4), Case(20, 2)


@pytest.fixture
def opened() -> list[tuple[int, int]]:
    """The engines that were opened: (texts, positions)."""
    return []


@pytest.fixture
def told() -> list[tuple[int, int]]:
    """The progress that was told: (rounds done, rounds in all)."""
    return []


@pytest.fixture
def bench(
    checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    opened: list[tuple[int, int]],
    told: list[tuple[int, int]],
) -> ModelBench:
    """A bench on engines that need no time: a step takes a millisecond a text, and 40 texts are too many."""
    loaded = load(checkpoint("qwen2"), device="cpu", dtype="float32")

    @contextmanager
    def opener(batch: int, positions: int) -> Iterator[SimpleNamespace]:
        opened.append((batch, positions))
        if batch > 40:
            raise UserError("no room")
        yield SimpleNamespace(loaded=loaded, options=EngineOptions())

    def measured(llm: object, texts: list[list[int]], tokens: int, *, counted: bool) -> Round:
        step = len(texts) / 1e3 if len(texts) != 30 else None
        return Round(total=1.0, prefill=0.5, step=step, outside=None)

    monkeypatch.setattr(room, "measure", measured)
    monkeypatch.setattr(room, "streamed", lambda device: 1e10)
    return ModelBench(
        opener,  # type: ignore[arg-type]
        rounds=2,
        warmup=1,
        seed=0,
        counted=False,
        progress=lambda done, total: told.append((done, total)),
    )


def test_each_batch_size_has_one_engine_as_large_as_its_longest_case(
    bench: ModelBench, opened: list[tuple[int, int]], told: list[tuple[int, int]]
) -> None:
    rows = list(bench.grid([(1, (SHORT, LONG)), (4, (SHORT,))]))
    assert [(r.batch, r.case) for r in rows] == [(1, SHORT), (1, LONG), (4, SHORT)]
    assert opened == [(1, 22), (4, 12)]
    assert [len(r.rounds) for r in rows] == [2, 2, 2]
    assert sorted(set(told)) == [(i, 9) for i in range(10)]  # warm-up and rounds of three rows
    assert told[0] == (0, 9)  # before the first round, which may be long


def search(bench: ModelBench, limit: float, low: int = 1, high: int = 64) -> tuple[int, list[Probe]]:
    probes = list(bench.search(SHORT, low, high, limit / 1e3))
    return max((p.batch for p in probes if not p.why), default=0), probes


@pytest.mark.parametrize("largest", [0, 1, 2, 7, 16, 25])
def test_the_largest_batch_within_the_limit_is_found(bench: ModelBench, largest: int) -> None:
    found, probes = search(bench, largest + 0.5)
    assert found == largest
    assert len(probes) <= 7


def test_a_limit_that_is_met_exactly_is_met(bench: ModelBench) -> None:
    assert search(bench, 12.0)[0] == 12


def test_the_search_stays_in_its_range(bench: ModelBench) -> None:
    assert search(bench, 1000.0, high=25)[0] == 25
    assert search(bench, 3.5, low=5)[0] == 0
    assert search(bench, 8.0, low=8, high=8)[0] == 8


def test_what_the_memory_does_not_hold_is_too_large(bench: ModelBench) -> None:
    found, probes = search(bench, 1000.0, low=31)
    assert found == 40
    assert {p.batch for p in probes if p.why} == {p.batch for p in probes if p.batch > 40}
    assert all(p.why == "no room" and p.row is None for p in probes if p.why)


def test_a_batch_that_was_never_written_at_once_is_too_large(bench: ModelBench) -> None:
    found, (probe,) = search(bench, 1000.0, low=30, high=30)
    assert (found, probe.why) == (0, "its texts were never written all at once")


def test_the_bench_runs_on_the_paged_engine(checkpoint: Callable[..., Path]) -> None:
    loaded = load(checkpoint("qwen3_moe"), device="cpu", dtype="float32")
    bench = ModelBench(
        lambda batch, positions: LLM(loaded, max_batch=batch, max_model_len=positions),
        rounds=2,
        warmup=0,
        seed=0,
        counted=True,
        progress=lambda done, total: None,
    )
    (row,) = bench.grid([(3, (Case(30, 5),))])
    assert row.step is not None and row.outside is not None
    assert 0 < row.floor < row.step.median  # a tiny model is far from it
