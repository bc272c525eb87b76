"""What a run tells: a heading, the rows, and the answers of a search."""

from __future__ import annotations

import pytest
from bench_rows import made

from oneroof.bench.findings import Findings, Search
from oneroof.bench.grid import Case
from oneroof.bench.model import ModelBench, Probe
from oneroof.errors import UserError

CASE = Case(128, 32)
FACTS = {"dtype": "bfloat16", "engine": "paged", "rounds": 3, "random_weights": False}


class Told(ModelBench):
    """A bench whose search has been."""

    def __init__(self, probes: list[Probe]) -> None:
        self._probes = probes

    def search(self, case: Case, low: int, high: int, limit: float):  # type: ignore[no-untyped-def]
        """The probes as they were given."""
        return iter(self._probes)


def test_the_heading_says_which_model_where_and_how() -> None:
    first, second = Findings("m", "cpu: some", FACTS).heading().splitlines()
    assert first == "m, bfloat16; cpu: some"
    assert second.startswith("paged engine, medians of 3 rounds, commit ")
    drawn = {**FACTS, "random_weights": True, "layers": 2, "rounds": 1}
    first, second = Findings("m", "cpu: some", drawn).heading().splitlines()
    assert first == "m, 2 layers, bfloat16, random weights; cpu: some"
    assert "paged engine, one round, commit" in second


def test_a_grid_is_complete_once_all_its_rows_are_there() -> None:
    findings = Findings("m", "cpu", FACTS)

    def rows():  # type: ignore[no-untyped-def]
        yield made(1, CASE, 0.01)
        assert (len(findings.rows), findings.complete) == (1, False)
        yield made(4, CASE, 0.02)

    findings.take(rows())
    assert (len(findings.rows), findings.complete) == (2, True)
    assert "at most" not in findings.text()


def test_the_answer_is_the_largest_batch_that_was_quick_enough() -> None:
    findings = Findings("m", "cpu", FACTS, Search(0.02, 1, 8))
    probes = [
        Probe(4, made(4, CASE, 0.015)),
        Probe(6, made(6, CASE, 0.03), "too slow"),
        Probe(5, made(5, CASE, 0.019)),
    ]
    findings.take_search(Told(probes), [CASE])
    assert findings.text().splitlines()[-1] == "128+32: at most 20 ms a later token: batch 5 (19 ms)"
    assert [line.split()[1] for line in findings.csv().replace(",", " ").splitlines()[1:]] == ["4", "5", "6"]
    *_, answer = findings.records()
    assert (answer.name, answer.value, answer.unit) == ("largest batch", 5, "texts")
    assert answer.config == {**FACTS, "input": 128, "output": 32, "low": 1, "high": 8, "limit ms": 20.0}


def test_the_answer_says_where_the_range_was_too_narrow() -> None:
    search = Search(0.02, 2, 8)
    assert search.answer(CASE, None) == "128+32: at most 20 ms a later token: no batch from 2 to 8"
    top = search.answer(CASE, made(8, CASE, 0.0123))
    assert top == "128+32: at most 20 ms a later token: batch 8, the largest allowed (12.3 ms)"
    findings = Findings("m", "cpu", FACTS, search)
    findings.take_search(Told([Probe(5, made(5, CASE, 0.1), "too slow")]), [CASE])
    assert [r.value for r in findings.records() if r.name == "largest batch"] == [0]


def test_a_search_that_could_measure_nothing_is_an_error() -> None:
    findings = Findings("m", "cpu", FACTS, Search(0.02, 1, 8))
    with pytest.raises(UserError, match="no room for it"):
        findings.take_search(Told([Probe(4, None, "no room"), Probe(2, None, "no room for it")]), [CASE])
    assert not findings.complete and not findings.best
