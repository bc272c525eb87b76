"""One reader of JSON objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneroof.errors import UserError
from oneroof.jsonfile import read_object


def test_an_object_is_read_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"é": [1]}', encoding="utf-8")
    assert read_object(tmp_path / "a.json") == {"é": [1]}
    assert read_object(tmp_path / "b.json") == {}


@pytest.mark.parametrize("content", [b"", b"[1]", b"3", b"{", b'{"a": \xff}', b"[" * 100_000])
def test_anything_else_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="JSON object is allowed") as caught:
        read_object(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_object(tmp_path)
