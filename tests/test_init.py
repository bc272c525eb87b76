"""The face: what `from oneroof import ...` gives."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import oneroof

FOLDER = Path(oneroof.__file__).parent


@pytest.mark.parametrize("first", ["", "import oneroof.load; ", "from oneroof import LLM; "])
def test_load_is_the_function_whatever_was_imported_before(first: str) -> None:
    program = first + "from oneroof import load; assert callable(load) and load.__name__ == 'load'"
    subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", program], check=True, cwd=FOLDER.parent
    )


def test_every_name_of_the_face_is_there() -> None:
    assert all(getattr(oneroof, name) is not None for name in oneroof.__all__)
    assert set(dir(oneroof)) == set(oneroof.__all__)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        oneroof.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_stub_names_what_the_face_hands_on() -> None:
    stub = ast.parse((FOLDER / "__init__.pyi").read_text(encoding="utf-8"))
    named = {a.name: n.module for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert named == oneroof._HOMES  # type: ignore[attr-defined]
