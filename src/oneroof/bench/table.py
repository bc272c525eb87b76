"""Rows as tables: for a reader, within 100 columns, and as CSV under the headers of ModelTest.

The averages of a batch size are means over its cases, told after the last of them.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from oneroof.bench.measure import Row, Spread

CSV_COLUMNS = (
    "Model",
    "Batchsize",
    "In_seq",
    "Out_seq",
    "Total time(s)",
    "Prefill all time(ms)",
    "Prefill average time(ms)",
    "Non-first token time(ms)",
    "Non-first token Throughput(Tokens/s)",
    "Throughput(Tokens/s)",
    "Non-first token Throughput Average(Tokens/s)",
    "E2E Throughput Average(Tokens/s)",
)

_HEAD = (
    ("", "", "batch"),
    ("", "", "in"),
    ("", "", "out"),
    ("total", "time", "s"),
    ("prefill", "all", "ms"),
    ("prefill", "average", "ms"),
    ("non-first", "token", "ms"),
    ("", "range", "ms"),
    ("non-first", "token", "tokens/s"),
    ("end", "to end", "tokens/s"),
    ("floor", "", "ms"),
    ("floor", "share", "%"),
    ("Python", "share", "%"),
)


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, a line for the averages after each batch size that has several cases."""
    cells: list[tuple[str, ...]] = []
    for batch in batches(rows):
        group = [row for row in rows if row.batch == batch]
        cells += [_cells(row) for row in group]
        if len(group) > 1:
            steps, ends = averages(group)
            cells.append((str(batch), "mean", *[""] * 6, number(steps), number(ends), "", "", ""))
    head = [tuple(column[line] for column in _HEAD) for line in range(3)]
    widths = [max(len(line[i]) for line in (*head, *cells)) for i in range(len(_HEAD))]
    lines = [aligned(line, widths) for line in head]
    return "\n".join([*lines, "-" * (sum(widths) + len(widths) - 1), *(aligned(c, widths) for c in cells)])


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of `table` has to know besides, line by line."""
    rates = [f"{pick(row.bandwidth for row in rows) / 1e9:.3g}" for pick in (min, max)]
    lines = [
        "floor: the weights, keys and values that a later token of the batch reads, at the "
        f"{' to '.join(dict.fromkeys(rates))} GB/s",
        "at which memory was read in this run; its share: of the non-first token time.",
    ]
    if any((row.reached or 0) > 1 for row in rows):
        lines.append("a share above 100%: part of what is read stays in the processor's cache.")
    if any(row.outside is not None for row in rows):
        lines.append(
            "Python's share: of the time of later tokens, what is not the model or the choice of tokens."
        )
    apart = [f"{row.batch} x {row.case}" for row in rows if row.step is None and row.case.tokens > 1]
    if apart:
        lines.append(
            f"never written all at once: {', '.join(apart)}; try longer outputs or more --max-batch-tokens."
        )
    return lines


def csv_text(rows: Sequence[Row], model: str) -> str:
    """A line for each row under `CSV_COLUMNS`; the averages stand in the last line of each batch size."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for batch in batches(rows):
        group = [row for row in rows if row.batch == batch]
        for row in group:
            means = averages(group) if row is group[-1] else (None, None)
            times = (row.total.median, row.prefill.median * 1e3, row.prefill.median * 1e3 / batch)
            step = None if row.step is None else row.step.median * 1e3
            rates = (step, row.step_rate, row.rate, *means)
            numbers = ["" if value is None else f"{value:.6g}" for value in (*times, *rates)]
            writer.writerow([model, batch, row.case.prompt, row.case.tokens, *numbers])
    return file.getvalue()


def averages(group: Sequence[Row]) -> tuple[float | None, float]:
    """Tokens a second after the first of each text, and from end to end: means over the rows of a batch."""
    steps = [row.step_rate for row in group if row.step_rate is not None]
    return statistics.mean(steps) if steps else None, statistics.mean(row.rate for row in group)


def batches(rows: Sequence[Row]) -> list[int]:
    """The batch sizes of `rows`, each once, in their order."""
    return list(dict.fromkeys(row.batch for row in rows))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.batch),
        str(row.case.prompt),
        str(row.case.tokens),
        number(row.total.median),
        number(row.prefill.median * 1e3),
        number(row.prefill.median * 1e3 / row.batch),
        number(None if row.step is None else row.step.median * 1e3),
        span(row.step, 1e3),
        number(row.step_rate),
        number(row.rate),
        number(row.floor * 1e3),
        percent(row.reached),
        percent(row.outside),
    )


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a table, each cell at the right of its column."""
    return " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def span(spread: Spread | None, scale: float = 1.0) -> str:
    """From the least to the most; nothing where they are one."""
    if spread is None or spread.least == spread.most:
        return ""
    return f"{number(spread.least * scale)}-{number(spread.most * scale)}"


def percent(share: float | None) -> str:
    """A share as whole percents."""
    return "-" if share is None else f"{100 * share:.0f}"


def number(value: float | None) -> str:
    """With three digits, or as many as stand before the point."""
    if value is None:
        return "-"
    return f"{value:.{sum(value < limit for limit in (1, 10, 100))}f}"
