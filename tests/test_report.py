"""Records: one line each, read back as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneroof.errors import UserError
from oneroof.report import Record, append, read, source

ONE = Record(
    name="decode", value=12.5, unit="tokens/s", config={"dtype": "float32", "batch": 1}, device="cpu"
)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    append(path, [ONE])
    append(path, [ONE, ONE])
    assert list(read(path)) == [ONE] * 3


def test_a_record_knows_its_source() -> None:
    assert ONE.commit == source() != ""


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        append(tmp_path / "file" / "results.jsonl", [ONE])


@pytest.mark.parametrize("line", ["{", "[]", '{"name": "x"}'])
def test_a_foreign_line_is_told_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{ONE.line()}\n{line}\n")
    with pytest.raises(UserError, match="line 2 is no record"):
        list(read(path))
