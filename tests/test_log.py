"""What is said on standard error, and how long work shows itself."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from oneroof import log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("oneroof")
    level, propagate = logger.level, logger.propagate
    yield
    logger.setLevel(level)
    logger.propagate = propagate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_below_the_level_are_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("info")
    log.debug("works")
    log.info("chosen")
    assert capsys.readouterr().err == "oneroof: chosen\n"


def test_starting_again_changes_the_level_and_says_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("info")
    log.start("warning")
    log.info("chosen")
    log.warning("odd")
    assert capsys.readouterr().err == "oneroof: odd\n"


def test_quick_work_prints_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log.start()
    report = log.progress("loading")
    for done in range(101):
        report(done, 100)
    assert capsys.readouterr().err == ""


def test_slow_work_prints_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.start()
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    report = log.progress("loading")
    for done in (1, 2, 3, 4):
        report(done, 4)
    assert capsys.readouterr().err == "oneroof: loading: 50% after 12 s\noneroof: loading: 100% after 24 s\n"


def test_a_bar_is_drawn_and_wiped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    log.start()
    clock = iter(range(1000))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    report = log.progress("loading")
    report(1, 2)
    assert "loading [===============               ] 50%" in screen.getvalue()
    report(2, 2)
    assert screen.getvalue().endswith("\r\x1b[K")
