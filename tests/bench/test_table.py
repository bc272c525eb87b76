"""The table for a reader, and the CSV for programs that read the original's."""

from __future__ import annotations

import csv
import io

import pytest
from bench_rows import made

from oneroof.bench.grid import Case
from oneroof.bench.measure import Row
from oneroof.bench.table import csv_text, notes, table

SHORT, LONG = Case(128, 32), Case(4096, 1024)
ROWS = [made(b, c, 0.02 * b, 0.03 * b, 0.01 * b) for b in (1, 8) for c in (SHORT, LONG)]

HEADERS = (  # as ModelTest writes them
    "Model,Batchsize,In_seq,Out_seq,Total time(s),Prefill all time(ms),Prefill average time(ms),"
    "Non-first token time(ms),Non-first token Throughput(Tokens/s),Throughput(Tokens/s),"
    "Non-first token Throughput Average(Tokens/s),E2E Throughput Average(Tokens/s)"
)


def read(rows: list[Row]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(rows, "a, model"))))


def test_the_csv_has_the_headers_of_the_original() -> None:
    assert csv_text(ROWS, "m").splitlines()[0] == HEADERS


def test_the_csv_has_the_formulas_of_the_original() -> None:
    one = read(ROWS)[2]
    assert [one[name] for name in ("Model", "Batchsize", "In_seq", "Out_seq")] == [
        "a, model",
        "8",
        "128",
        "32",
    ]
    numbers = {name: float(value) for name, value in list(one.items())[4:10]}
    assert numbers == {
        "Total time(s)": 2.0,
        "Prefill all time(ms)": 400.0,
        "Prefill average time(ms)": 50.0,
        "Non-first token time(ms)": 160.0,
        "Non-first token Throughput(Tokens/s)": 8 / 0.16,
        "Throughput(Tokens/s)": 8 * 32 / 2.0,
    }


def test_averages_stand_in_the_last_line_of_each_batch_size() -> None:
    found = [list(line.values())[10:] for line in read(ROWS)]
    assert [found[0], found[2]] == [["", ""]] * 2
    assert [float(value) for value in found[1]] == [50, (32 / 2 + 1024 / 2) / 2]
    assert [float(value) for value in found[3]] == [50, 8 * (32 / 2 + 1024 / 2) / 2]


def test_one_token_out_leaves_its_places_empty() -> None:
    (one,) = read([made(4, Case(128, 1), None)])
    empty = [name for name, value in one.items() if not value]
    assert empty == [name for name in HEADERS.split(",") if name.startswith("Non-first")]
    assert " - " in table([made(4, Case(128, 1), None)]).splitlines()[-1]


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_the_table_is_aligned_and_within_100_columns(scale: float) -> None:
    rows = [made(b, c, 0.0212, 0.0301, scale=scale) for b in (1, 512) for c in (SHORT, Case(32768, 8192))]
    lines = table(rows).splitlines()
    assert max(map(len, lines)) <= 100
    rule = next(i for i, line in enumerate(lines) if set(line) == {"-"})
    assert len(lines[rule]) == max(map(len, lines))
    assert [len(line) for line in lines[rule + 1 :]].count(len(lines[rule])) == 4  # whole rows reach the end
    assert [line.split()[:2] for line in lines if "mean" in line] == [["1", "mean"], ["512", "mean"]]


def test_a_row_shows_its_numbers_with_three_digits() -> None:
    cells = table(ROWS).splitlines()[4].split()
    assert cells == [
        "1",
        "128",
        "32",
        "2.00",
        "400",
        "400",
        "20.0",
        "10.0-30.0",
        "50.0",
        "16.0",
        "10.0",
        "50",
        "7",
    ]


def test_a_single_case_has_no_mean() -> None:
    assert "mean" not in table(ROWS[:1])


def test_notes_say_what_the_floor_is_and_what_is_not_to_be_trusted() -> None:
    plain = "\n".join(notes(ROWS))
    assert "at the 20 GB/s" in plain and "Python's share" in plain
    assert "share above 100%" not in plain and "never" not in plain
    assert "above 100%" in "\n".join(notes([made(1, SHORT, 0.002)]))
    turns = "\n".join(notes([*ROWS, made(64, SHORT, None)]))
    assert "never written all at once: 64 x 128+32;" in turns
    assert all(len(line) <= 100 for line in notes([made(1, SHORT, 0.002), made(64, SHORT, None)]))
    assert "never" not in "\n".join(notes([made(64, Case(128, 1), None)]))
