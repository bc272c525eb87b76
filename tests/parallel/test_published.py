"""Published models at published numbers of ranks, on the meta device: all shares together are the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oneroof.config import ModelConfig
from oneroof.layout import Cut, Grid, Share, check, cut_of
from oneroof.models import read_config
from scripts import parallel_page
from scripts.parallel_page import FACTS, PAGE, SHARED, Row, check_cut, config_of, rows, table, written

ROWS = rows() if SHARED.is_dir() else []
LARGE = [
    ("Qwen3-235B-A22B", Grid(tp=16)),
    ("Qwen3-235B-A22B", Grid(tp=16, ep=4)),
    ("Qwen3-235B-A22B", Grid(tp=16, ep=16)),
    ("ERNIE-4.5-300B-A47B-PT", Grid(tp=16)),
    ("ERNIE-4.5-300B-A47B-PT", Grid(tp=16, ep=16)),
    ("Qwen3-30B-A3B", Grid(tp=8, ep=8)),
    ("Qwen2.5-72B", Grid(tp=4, pp=4)),
    ("Qwen2.5-1.5B", Grid(tp=2, pp=3)),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model)
def test_every_cell_of_the_matrices_can_be(row: Row) -> None:
    config, _ = config_of(row.model)
    for size in row.sizes:
        check_cut(config, Grid(tp=size))


def test_both_matrices_are_read_whole(shared: Path) -> None:
    assert len(ROWS) == 27 and sum(len(row.large) + len(row.small) for row in ROWS) == 100
    assert ROWS[0] == Row("Qwen-7B", (1, 2, 4, 8), (1,)) and ROWS[-1].large == (16,)


@pytest.mark.parametrize("model", FACTS)
def test_models_whose_facts_are_in_the_script_can_be_cut(model: str) -> None:
    config, _ = config_of(model, Path("nowhere"))
    for size in (1, 2, 4, 8):
        check_cut(config, Grid(tp=size))


@pytest.mark.parametrize(("model", "grid"), LARGE, ids=str)
def test_large_models_are_cut_for_many_ranks(shared: Path, model: str, grid: Grid) -> None:
    check_cut(read_config(shared / "data" / "configs" / model), grid)


def test_no_size_that_the_check_allows_fails(shared: Path) -> None:
    config = read_config(shared / "data" / "configs" / "Qwen2.5-0.5B")
    for size in range(1, 15):
        check(config, Grid(tp=size))
        check_cut(config, Grid(tp=size))


def _wider(found: Cut) -> Cut:
    return replace(found, stop=found.stop + 1)


def _later(found: Cut) -> Cut:
    return replace(found, start=found.start + 1, stop=found.stop + 1)


@pytest.mark.parametrize("wrong", [_wider, _later])
@pytest.mark.parametrize("name", ["q_proj.weight", "down_proj.weight", "embed_tokens.weight"])
def test_a_wrong_cut_is_noticed(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Cut], Cut], name: str
) -> None:
    config, _ = config_of("Qwen2-0.5B", Path("nowhere"))

    def cut(config: ModelConfig, share: Share, tensor: str) -> Cut | None:
        found = cut_of(config, share, tensor)
        return wrong(found) if found is not None and tensor.endswith(name) and share.rank == 1 else found

    check_cut(config, Grid(tp=2))
    monkeypatch.setattr(parallel_page, "cut_of", cut)
    with pytest.raises(AssertionError):
        check_cut(config, Grid(tp=2))


def test_the_page_is_up_to_date(shared: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "`make docs` writes it"
    assert "🔴" not in table() and "Qwen2.5-14B" in page
