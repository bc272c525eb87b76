"""A comparison as a picture: a row of panels a model, a pair a cell, a bar a variant with its range.

This file imports matplotlib, which comes with the extra `plot`: import it when a picture is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneroof.bench.measure import Spread
from oneroof.bench.peers.results import Result, Row
from oneroof.bench.picture import store

_WIDTH, _BAR, _MARGIN = 3.2, 0.19, 1.1  # inches: of a panel, of a bar, around the bars of a panel


def draw(results: Sequence[Result], path: Path, title: str) -> None:
    """Tokens a second of prefill and decode; a grey mark is what memory allows. UserError for a bad path."""
    told = [(result, result.rows()) for result in results if result.turns]
    cells = list(dict.fromkeys(row.cell for _, rows in told for row in rows))
    names = dict.fromkeys(row.variant.peer.name for _, rows in told for row in rows)
    colours = {name: f"C{place % 10}" for place, name in enumerate(names)}
    heights = [_MARGIN + _BAR * len({row.variant for row in rows}) for _, rows in told]
    columns = 2 * len(cells)
    figure = Figure(figsize=(1.6 + _WIDTH * columns, 0.6 + sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(told), columns, squeeze=False, height_ratios=heights)
    for line, (result, rows) in zip(grid, told, strict=True):
        for place, cell in enumerate(cells):
            mine = [row for row in rows if row.cell == cell][::-1]
            prefill, decode = line[2 * place], line[2 * place + 1]
            _bars(prefill, mine, [row.prefill for row in mine], colours)
            _bars(decode, mine, [row.decode for row in mine], colours)
            decode.scatter([row.floor for row in mine], range(len(mine)), marker="|", s=120, color="grey")
            prefill.set_title(f"{result.model}\n{cell}: prefill, tokens/s", fontsize=9)
            decode.set_title(f"\n{cell}: decode, tokens/s", fontsize=9)
    store(figure, path)


def _bars(axes: Axes, rows: Sequence[Row], rates: Sequence[Spread], colours: Mapping[str, str]) -> None:
    if not rows:
        axes.set_axis_off()
        return
    below = [rate.median - rate.least for rate in rates]
    above = [rate.most - rate.median for rate in rates]
    axes.barh(
        range(len(rows)),
        [rate.median for rate in rates],
        xerr=[below, above],
        color=[colours[row.variant.peer.name] for row in rows],
        error_kw={"elinewidth": 1},
    )
    axes.set_yticks(range(len(rows)), [f"{row.variant} ({row.variant.bits})" for row in rows], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
