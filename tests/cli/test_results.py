"""Records in order, each made once, some at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from oneroof.cli import results
from oneroof.cli.results import Record, groups, told
from oneroof.errors import UserError


def backwards(left: Sequence[int]) -> Iterator[tuple[int, Record]]:
    for index in reversed(left):
        yield index, {"index": index}


def test_records_come_in_order_however_they_were_made() -> None:
    assert [one["index"] for one in told(5, backwards, output=None, facts=1)] == [0, 1, 2, 3, 4]
    assert list(told(0, backwards, output=None, facts=1)) == []


def test_what_was_made_is_journalled_before_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    def fails(left: Sequence[int]) -> Iterator[tuple[int, Record]]:
        yield 2, {"index": 2}
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        list(told(4, fails, output=path, facts=1))
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [{"index": 2}]
    asked: list[int] = []

    def rest(left: Sequence[int]) -> Iterator[tuple[int, Record]]:
        asked.extend(left)
        return backwards(left)

    assert [one["index"] for one in told(4, rest, output=path, facts=1)] == [0, 1, 2, 3]
    assert asked == [0, 1, 3]
    with pytest.raises(UserError, match="another"):
        list(told(4, rest, output=path, facts=2))


def test_a_group_has_about_as_many_characters_as_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_TOGETHER", 10)
    sizes = [1, 100, 3, 3, 3, 0]
    assert list(groups([0, 1, 2, 3, 4, 5], sizes, "x")) == [[0, 1], [2, 3, 4], [5]]
    assert list(groups([1, 5], sizes, "x")) == [[1], [5]]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_told_unless_it_would_stand_among_the_results(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(results, "_TOGETHER", 1)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(results.log, "progress", lambda _: lambda done, total: seen.append((done, total)))
    assert len(list(groups([0, 1, 2], [5, 5, 5], "x"))) == 3
    assert seen == ([] if terminal else [(1, 3), (2, 3), (3, 3)])
