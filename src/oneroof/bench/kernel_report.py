"""Timings of kernels as text, CSV, records and a picture: how near each is to what the machine gives."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from oneroof.bench.kernels import Timing
from oneroof.bench.measure import Spread
from oneroof.bench.table import aligned, number, percent, span
from oneroof.report import Record

_HEAD = ("kernel", "form", "tokens", "ms", "range", "GB/s", "GFLOP/s", "of floor %", "torch's ms", "ratio")
_NOTE = (
    "of floor: the longer of its bytes at the rate at which memory was read and its multiplications\n"
    "and additions at the float32 rate of this CPU's registers; above 100 where an instruction does more\n"
    "at once, or caches give what memory would. torch's: the same in the model's number format, unquantised."
)


def text(timings: Sequence[Timing], heading: str) -> str:
    """Heading, table and what its columns mean."""
    rows = [_HEAD, *(_cells(timing) for timing in timings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [row[0].ljust(widths[0]) + " " + aligned(row[1:], widths[1:]) for row in rows]
    rates = [f"{t.read / 1e9:.3g}" for t in timings]
    peaks = [f"{t.multiply_add / 1e9:.3g}" for t in timings]
    gave = f"memory gave {min(rates, key=float)} to {max(rates, key=float)} GB/s" if rates else ""
    most = f", registers {min(peaks, key=float)} to {max(peaks, key=float)} GFLOP/s" if peaks else ""
    return "\n".join([heading, "", *lines, "", gave + most, _NOTE])


def csv_text(timings: Sequence[Timing]) -> str:
    """One line a case."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*_HEAD[:4], "least ms", "most ms", *_HEAD[5:]))
    for timing in timings:
        cells = _cells(timing)
        ends = (f"{min(timing.seconds) * 1e3:.6g}", f"{max(timing.seconds) * 1e3:.6g}")
        writer.writerow((*cells[:4], *ends, *cells[5:]))
    return file.getvalue()


def records(
    timings: Sequence[Timing], facts: Mapping[str, str | int | float | bool], device: str
) -> Iterator[Record]:
    """Every number with what it depends on."""
    for timing in timings:
        case = timing.case
        config = {**facts, "kernel": case.op, "form": case.form, "tokens": case.tokens}
        numbers: list[tuple[str, float | None, str]] = [
            ("kernel time", timing.median * 1e3, "ms"),
            ("bandwidth", timing.read, "bytes/s"),
            ("multiply-adds", timing.multiply_add, "operations/s"),
            ("floor reached", timing.floor / timing.median, ""),
            ("ratio to torch", timing.ratio, ""),
        ]
        for name, value, unit in numbers:
            if value is not None and value == value:
                yield Record(name=name, value=value, unit=unit, config=config, device=device)


def draw(timings: Sequence[Timing], path: Path, title: str) -> None:
    """A bar for each case: its share of the floor. matplotlib is imported here."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.24 * len(timings)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{t.case.op}, {t.case.form}, {t.case.tokens}" for t in timings]
    shares = [100 * t.floor / t.median for t in timings]
    axes.barh(range(len(names)), shares, color="#3b6ea5")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(100, color="#888888", linewidth=1)
    axes.set_xlabel("percent of the floor (memory, or float32 multiply-adds)")
    axes.set_title(title, fontsize=9, loc="left")
    figure.savefig(path, dpi=150)


def _cells(timing: Timing) -> tuple[str, ...]:
    case, median = timing.case, timing.median
    spread = Spread(median, min(timing.seconds), max(timing.seconds))
    theirs = median * timing.ratio if timing.ratio is not None else None
    return (
        case.op,
        case.form,
        str(case.tokens),
        number(median * 1e3),
        span(spread, 1e3),
        number(case.bytes / median / 1e9),
        number(case.operations / median / 1e9),
        percent(timing.floor / median) if timing.floor == timing.floor else "-",
        number(None if theirs is None else theirs * 1e3),
        number(timing.ratio),
    )
