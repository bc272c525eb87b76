"""A model among its peers as a table for a reader, within 100 columns, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from oneroof.bench.peers.results import Footing, Ratio, Result, Row
from oneroof.bench.table import aligned, number, percent, span
from oneroof.models.sizes import sizes

_HEAD = (
    ("", "batch"),
    ("", "in"),
    ("", "peer"),
    ("", "bits"),
    ("prefill", "tokens/s"),
    ("", "range"),
    ("of peak", "%"),
    ("decode", "tokens/s"),
    ("", "range"),
    ("of floor", "%"),
)
_FOOT = (("", "peer"), ("", "version"), ("load", "s"), ("peak", "MB"))
NOTES = (
    "decode: tokens of all texts, after the first of each. of floor: of the rate at which the weights",
    "(int8 1 byte each, int4 4.5 bits), keys and values (2 bytes; of 32-bit weights 4) can be read.",
    "of peak: of the rate of float32 multiplications and additions; the weights' products are counted.",
    "both rates are those of this run; int8 instructions, or weights in a cache, may do more than 100.",
)
CSV_COLUMNS = (
    *("model", "peer", "form", "version", "bits", "batch", "in", "out"),
    *("prefill tokens/s", "prefill least", "prefill most", "decode tokens/s", "decode least", "decode most"),
    *("of peak", "of floor", "load s", "peak MB", "foreign processors"),
)


def section(result: Result) -> str:
    """Everything of one model: heading, numbers, ratios, what each peer takes, and who is missing."""
    rows = result.rows()
    parts = [heading(result)]
    if rows:
        parts += ["", _table(_HEAD, [_cells(row) for row in rows])]
    if ratios := result.ratios():
        parts += ["", "oneroof's best over the best peer:", *map(ratio_line, ratios)]
    if footings := result.footings():
        parts += ["", _table(_FOOT, [_foot(footing) for footing in footings])]
    gone = [f"left out: {variant}: {why}" for variant, why in result.skipped.items()]
    gone += [f"stopped: {variant}: {why}" for variant, why in result.failures.items()]
    return "\n".join([*parts, *([""] if gone else []), *gone])


def heading(result: Result) -> str:
    """The model's name and size, and what the machine gave meanwhile."""
    counted = sizes(result.config)
    named = (
        f"{result.model}: {counted.parameters / 1e6:.0f}M parameters, {counted.active / 1e6:.0f}M for a token"
    )
    readings = [turn.reading for turn in result.turns]
    if not readings:
        return named
    read = [one.bandwidth / 1e9 for one in readings]
    made = [one.arithmetic / 1e9 for one in readings]
    return (
        f"{named}\nread {number(min(read))}-{number(max(read))} GB/s, multiply-add "
        f"{number(min(made))}-{number(max(made))} GFLOP/s; others took up to "
        f"{max((row.foreign for row in result.rows()), default=0.0):.2f} processors"
    )


def ratio_line(ratio: Ratio) -> str:
    """One ratio in words."""
    kind = "any precision" if ratio.bits is None else f"{ratio.bits} bits"
    sides = f"{ratio.ours.variant} / {ratio.peer.variant}"
    return f"  {ratio.cell}, {kind}, {ratio.quantity}: {ratio.value:.2f} ({sides})"


def share(row: Row) -> float:
    """Of the floor."""
    return row.decode.median / row.floor


def csv_text(results: Sequence[Result]) -> str:
    """A line for each row of each model under `CSV_COLUMNS`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        feet = {footing.variant: footing for footing in result.footings()}
        for row in result.rows():
            foot = feet.get(row.variant)
            names = (result.model, row.variant.peer.name, row.variant.form, row.version, row.variant.bits)
            shape = (row.cell.batch, row.cell.case.prompt, row.cell.case.tokens)
            writer.writerow([*names, *shape, *(f"{value:.6g}" for value in _values(row, foot))])
    return file.getvalue()


def _values(row: Row, foot: Footing | None) -> Iterator[float]:
    for rate in (row.prefill, row.decode):
        yield from (rate.median, rate.least, rate.most)
    yield from (row.prefill.median / row.summit, share(row))
    yield from (float("nan"),) * 2 if foot is None else (foot.loaded.median, foot.peak / 1e6)
    yield row.foreign


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.cell.batch),
        str(row.cell.case.prompt),
        str(row.variant),
        str(row.variant.bits),
        number(row.prefill.median),
        span(row.prefill),
        percent(row.prefill.median / row.summit),
        number(row.decode.median),
        span(row.decode),
        percent(share(row)),
    )


def _foot(footing: Footing) -> tuple[str, ...]:
    return str(footing.variant), footing.version, number(footing.loaded.median), f"{footing.peak / 1e6:.0f}"


def _table(head: Sequence[tuple[str, str]], lines: Sequence[tuple[str, ...]]) -> str:
    """Columns under two lines of heads; the peers' names begin at one place."""
    top = [tuple(column[line] for column in head) for line in range(2)]
    widths = [max(len(line[i]) for line in (*top, *lines)) for i in range(len(head))]
    place = top[1].index("peer")

    def told(line: tuple[str, ...]) -> str:
        named = line[place].ljust(widths[place])
        return aligned((*line[:place], named, *line[place + 1 :]), widths)

    return "\n".join([*map(told, top), "-" * (sum(widths) + len(widths) - 1), *map(told, lines)])
