"""What is said on standard error, and how long work shows itself."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroof import log
from oneroof.errors import UserError


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("oneroof")
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.handlers[:] = handlers
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


def test_a_file_takes_more_than_standard_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.log"
    log.start("warning")
    log.to_file(path)
    log.debug("works")
    log.info("chosen")
    log.warning("odd")
    report = log.progress("loading")
    report(1, 1)
    assert capsys.readouterr().err == "oneroof: odd\n"
    lines = path.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["DEBUG works", "INFO chosen", "WARNING odd"]
    log.start("info")  # another run of the same process: the file was the last one's
    log.info("later")
    assert capsys.readouterr().err == "oneroof: later\n"
    assert path.read_text().splitlines() == lines


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run.log cannot be written \("):
        log.to_file(tmp_path / "file" / "run.log")


def test_a_bar_is_not_drawn_for_the_sake_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    log.start("warning")
    log.to_file(tmp_path / "run.log")
    clock = iter(range(1000))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    log.progress("loading")(1, 2)
    assert screen.getvalue() == ""


def test_a_programs_own_log_file_is_left_alone(tmp_path: Path) -> None:
    own = logging.FileHandler(tmp_path / "own.log")
    logging.getLogger("oneroof").addHandler(own)
    log.start()
    log.info("chosen")
    log.start()
    log.info("again")
    assert (tmp_path / "own.log").read_text() == "chosen\nagain\n"


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
