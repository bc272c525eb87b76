"""What a run says while it works: one logger, lines on standard error and, if asked, in a file; progress.

As a library, oneroof is silent below a warning until the program configures logging or calls `start`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from oneroof.errors import UserError

_LOGGER = logging.getLogger("oneroof")
_WIPE = "\r\x1b[K"  # back to the start of a terminal's line, and clear it
_REDRAW = 0.1  # seconds between two drawings of a bar on a terminal
_LINE = 10.0  # seconds between two lines elsewhere


def start(level: str = "info") -> None:
    """Send messages of `level` (debug, info, warning, error) and above to standard error from here on.

    A file that `to_file` opened before is closed.
    """
    for old in [h for h in _LOGGER.handlers if isinstance(h, _Lines | _File)]:
        _LOGGER.removeHandler(old)
        old.close()
    lines = _Lines(level.upper())
    _LOGGER.addHandler(lines)
    _LOGGER.propagate = False
    _LOGGER.setLevel(lines.level)


def to_file(path: Path) -> None:
    """Append all messages, those of level debug too, to `path` with their time; its folder is made.

    Raises UserError where that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _File(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); a log goes into any writable folder; try another"
        ) from None
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _LOGGER.addHandler(file)
    _LOGGER.setLevel(logging.DEBUG)


def hush() -> None:
    """From here on standard error hears warnings alone: another rank tells the rest."""
    for lines in [h for h in _LOGGER.handlers if isinstance(h, _Lines)]:
        lines.setLevel(max(lines.level, logging.WARNING))


def debug(message: str) -> None:
    """For whoever looks into the works."""
    _LOGGER.debug(message)


def info(message: str) -> None:
    """What was chosen, and why."""
    _LOGGER.info(message)


def warning(message: str) -> None:
    """Something that the user may not have meant."""
    _LOGGER.warning(message)


def progress(what: str) -> Callable[[int, int], None]:
    """A report of ``(done, all)`` for long work: a bar on a terminal, a line every ten seconds elsewhere.

    The bar is wiped when ``done`` reaches ``all``; work quicker than ten seconds prints no line.
    """
    terminal = sys.stderr.isatty()
    began = shown = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal shown
        now, finished = time.monotonic(), done >= total
        if not _shown(logging.INFO) or (not finished and now - shown < (_REDRAW if terminal else _LINE)):
            return
        if terminal:
            sys.stderr.write(_WIPE + ("" if finished else _bar(what, done, total)))
            sys.stderr.flush()
        elif now - began >= _LINE:
            info(f"{what}: {100 * done // max(total, 1)}% after {now - began:.0f} s")
        shown = now

    return report


def _shown(level: int) -> bool:
    """Whether messages of `level` are seen on standard error; a file may take more."""
    lines = next((h for h in _LOGGER.handlers if isinstance(h, _Lines)), None)
    return _LOGGER.isEnabledFor(level) if lines is None else lines.level <= level


class _Lines(logging.Handler):
    """Each message is a line on standard error; on a terminal it takes the place of a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        wipe = _WIPE if sys.stderr.isatty() else ""
        print(f"{wipe}oneroof: {record.getMessage()}", file=sys.stderr, flush=True)


class _File(logging.FileHandler):
    """The file of `to_file`, told apart from one that a program using us has added."""


def _bar(what: str, done: int, total: int, width: int = 30) -> str:
    filled = width * done // max(total, 1)
    return f"{what} [{'=' * filled}{' ' * (width - filled)}] {100 * done // max(total, 1)}%"
