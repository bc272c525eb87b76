"""Rows as records: one number each, with what it depends on."""

from __future__ import annotations

import json

import pytest
from bench_rows import made

from oneroof.bench.grid import Case
from oneroof.bench.records import records
from oneroof.report import Record

FACTS = {"dtype": "bfloat16", "rounds": 3}


def test_every_number_of_a_row_is_a_record() -> None:
    rows = [made(4, case, 0.04, 0.06, 0.02) for case in (Case(128, 32), Case(512, 64))]
    found = [Record(**json.loads(one.line())) for one in records(rows, FACTS, "cpu: some")]
    assert {one.device for one in found} == {"cpu: some"}
    first = {
        (one.name, str(one.config.get("statistic", ""))): (one.value, one.unit)
        for one in found
        if one.config.get("input") == 128
    }
    assert first == {
        ("total time", "median"): (2.0, "s"),
        ("total time", "least"): (1.0, "s"),
        ("total time", "most"): (3.0, "s"),
        ("prefill all time", "median"): (400.0, "ms"),
        ("prefill all time", "least"): (200.0, "ms"),
        ("prefill all time", "most"): (pytest.approx(600.0), "ms"),
        ("prefill average time", "median"): (100.0, "ms"),
        ("prefill average time", "least"): (50.0, "ms"),
        ("prefill average time", "most"): (pytest.approx(150.0), "ms"),
        ("non-first token time", "median"): (40.0, "ms"),
        ("non-first token time", "least"): (20.0, "ms"),
        ("non-first token time", "most"): (60.0, "ms"),
        ("non-first token throughput", ""): (100.0, "tokens/s"),
        ("e2e throughput", ""): (64.0, "tokens/s"),
        ("bytes read by a step", ""): (2e8, "bytes"),
        ("bandwidth", ""): (2e10, "bytes/s"),
        ("floor of the non-first token time", ""): (10.0, "ms"),
        ("floor reached", ""): (0.25, ""),
        ("Python's share", ""): (0.07, ""),
    }
    shape = {"dtype": "bfloat16", "rounds": 3, "batch": 4, "input": 128, "output": 32}
    assert found[0].config == {**shape, "statistic": "median"}


def test_averages_are_records_of_their_batch_size() -> None:
    rows = [made(b, case, 0.04) for b in (2, 4) for case in (Case(128, 32), Case(512, 64))]
    means = [one for one in records(rows, FACTS, "cpu") if one.name.endswith("average")]
    assert [(one.name, one.value, one.config["batch"]) for one in means] == [
        ("non-first token throughput average", 50.0, 2),
        ("e2e throughput average", 96.0, 2),
        ("non-first token throughput average", 100.0, 4),
        ("e2e throughput average", 192.0, 4),
    ]
    assert means[0].config["cases"] == "128+32 512+64"


def test_what_was_not_measured_is_no_record() -> None:
    names = {one.name for one in records([made(4, Case(128, 1), None)], FACTS, "cpu")}
    assert "prefill all time" in names
    assert not {name for name in names if "non-first token t" in name and "floor" not in name}
    assert "Python's share" not in names
