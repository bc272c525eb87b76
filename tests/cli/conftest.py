"""Commands that run within the test's own process log to that test's standard error."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def log_to_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that was started by an earlier test writes to that test's standard error."""
    monkeypatch.setattr(logging.getLogger("oneroof"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("oneroof"), "propagate", True)  # else pytest adds a handler


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """`pipe(b"a line\\n")`: what standard input holds."""
    return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
