"""The picture is drawn, with a line a case, its floor, and the limit of a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")

from bench_rows import made
from matplotlib.figure import Figure

from oneroof.bench.grid import Case
from oneroof.bench.measure import Row
from oneroof.bench.picture import draw
from oneroof.errors import UserError

CASES = (Case(128, 32), Case(512, 64))
ROWS = [made(b, case, 0.02 * b, 0.03 * b) for b in (8, 1, 4) for case in CASES]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Figure]:
    """The figures that are written, which are written all the same."""
    figures: list[Figure] = []
    write = Figure.savefig

    def savefig(figure: Figure, path: Path, **options: object) -> None:
        figures.append(figure)
        write(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def lines(figure: Figure, panel: int, style: str) -> list[tuple[Sequence[float], Sequence[float]]]:
    """(x, y) of the lines of a style that have as many points as there are batch sizes."""
    found = [
        one for one in figure.axes[panel].lines if one.get_linestyle() == style and len(one.get_xdata()) == 3
    ]
    return [(list(one.get_xdata()), [round(float(y), 6) for y in one.get_ydata()]) for one in found]


def test_a_grid_shows_tokens_a_second_beside_the_floor_and_the_prefill(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw(ROWS, tmp_path / "a.png", "a title")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
    (figure,) = drawn
    assert lines(figure, 0, "-") == [([1, 4, 8], [40.0, 40.0, 40.0])] * 2
    assert lines(figure, 0, "--") == [([1, 4, 8], [100.0, 400.0, 800.0])] * 2
    assert lines(figure, 1, "-") == [([1, 4, 8], [300.0, 300.0, 300.0])] * 2
    legend = figure.axes[0].get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["128 in, 32 out", "512 in, 64 out", "what memory allows"]


def test_a_search_shows_times_beside_its_limit(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(ROWS, tmp_path / "a.svg", "a title", limit=0.07)
    (figure,) = drawn
    assert lines(figure, 0, "-") == [([1, 4, 8], [25.0, 100.0, 200.0])] * 2
    assert lines(figure, 0, "--") == [([1, 4, 8], [10.0, 10.0, 10.0])] * 2
    assert [70.0, 70.0] in [list(one.get_ydata()) for one in figure.axes[0].lines]
    assert (tmp_path / "a.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize("rows", [ROWS[:1], [made(4, Case(128, 1), None)]])
def test_a_single_row_can_be_drawn(rows: list[Row], tmp_path: Path) -> None:
    draw(rows, tmp_path / "a.png", "a title")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png cannot be written"):
        draw(ROWS, tmp_path / "nowhere" / "a.png", "a title")
