"""Rows as a picture: the speed of later tokens over the batch size, beside the floor, and the prefill.

This file imports matplotlib, which comes with the extra `plot`: import it when a picture is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from oneroof.bench.grid import Case
from oneroof.bench.measure import Row, Spread
from oneroof.errors import UserError


@dataclass(frozen=True)
class _Point:
    batch: int
    measured: Spread
    floor: float | None = None


def draw(rows: Sequence[Row], path: Path, title: str, *, limit: float | None = None) -> None:
    """Two panels over the batch size, a line a case, with bars from the least to the most of the rounds.

    Left: tokens a second after the first of each text, or, where there is a `limit` (seconds), the time of
    one; dashed is the floor. Right: the time until every text has its first token. UserError where `path`
    cannot be written.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    for number, case in enumerate(dict.fromkeys(row.case for row in rows)):
        mine = sorted((row for row in rows if row.case == case), key=lambda row: row.batch)
        _line(left, [_later(row, limit) for row in mine if row.step], f"C{number % 10}", case)
        _line(right, [_Point(row.batch, _times(row.prefill, 1e3)) for row in mine], f"C{number % 10}", case)
    sizes = sorted({row.batch for row in rows})
    _dress(left, "tokens/s after the first of each text" if limit is None else "ms a later token", sizes)
    _dress(right, "ms until every text has its first token", sizes)
    handles, labels = right.get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle="--", color="grey"))
    labels.append("what memory allows")
    if limit is not None:
        handles.append(left.axhline(limit * 1e3, color="black", linewidth=1))
        labels.append(f"limit, {limit * 1e3:g} ms")
    left.legend(handles, labels, fontsize=8)
    store(figure, path)


def store(figure: Figure, path: Path) -> None:
    """Write the picture; UserError where it cannot be."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); a writable file is allowed; try another"
        ) from None


def _later(row: Row, limit: float | None) -> _Point:
    assert row.step is not None
    if limit is not None:
        return _Point(row.batch, _times(row.step, 1e3), row.floor * 1e3)
    step, batch = row.step, row.batch
    rates = Spread(batch / step.median, batch / step.most, batch / step.least)
    return _Point(batch, rates, batch / row.floor)


def _line(axes: Axes, points: Sequence[_Point], colour: str, case: Case) -> None:
    if not points:
        return
    places = [point.batch for point in points]
    axes.errorbar(
        places,
        [p.measured.median for p in points],
        [
            [p.measured.median - p.measured.least for p in points],
            [p.measured.most - p.measured.median for p in points],
        ],
        fmt="o-",
        capsize=3,
        markersize=4,
        color=colour,
        label=f"{case.prompt} in, {case.tokens} out",
    )
    floors = [point.floor for point in points if point.floor is not None]
    if floors:
        axes.plot(places, floors, "--", marker="_", color=colour, alpha=0.6)


def _dress(axes: Axes, title: str, sizes: Sequence[int]) -> None:
    axes.set_title(title, fontsize=10)
    if not axes.has_data():  # one token each: there are no later ones
        axes.set_axis_off()
        return
    axes.set_xlabel("batch size")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _times(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.least * factor, spread.most * factor)
