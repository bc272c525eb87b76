"""Where the numbers of a benchmark go: options of every `bench` command, checked before it measures."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneroof.errors import UserError
from oneroof.report import Record, append

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the numbers go."""

    json: bool = False
    """Print one JSON object a number instead of the table."""

    output: Path | None = None
    """Append the same objects to a file."""

    csv: Path | None = None
    """Write a CSV file."""

    plot: Path | None = None
    """Draw a picture into a .png, .svg or .pdf file; needs matplotlib."""

    def check_outputs(self) -> None:
        """UserError for a file that cannot be written, or twice the same, before an hour is spent."""
        if self.plot is not None:
            _check_picture(self.plot)
        paths = [path for path in (self.output, self.csv, self.plot) if path is not None]
        if len({path.resolve() for path in paths}) < len(paths):
            raise UserError("--output, --csv and --plot name one file; each its own is allowed; rename one")
        for path in paths:
            _check_writable(path)

    def tell(self, text: str, records: Sequence[Record], csv: str, draw: Callable[[Path], None]) -> None:
        """Files first: whoever reads the output may have gone. It is printed also where a file fails."""
        try:
            if self.output is not None:
                append(self.output, records)
            if self.csv is not None:
                _write(self.csv, csv)
            if self.plot is not None:
                draw(self.plot)
        finally:
            print("\n".join(record.line() for record in records) if self.json else text, flush=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); a writable file is allowed; try another"
        ) from None


def _check_picture(path: Path) -> None:
    if path.suffix not in _PICTURES:
        raise UserError(
            f"--plot {path} was given; names that end in {', '.join(_PICTURES)} are allowed; "
            f"try {path.stem}.png"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "--plot needs matplotlib, which is not installed; 3.9 or newer is allowed; "
            "try pip install 'oneroof[plot]'"
        )


def _check_writable(path: Path) -> None:
    """UserError now rather than after an hour."""
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); a writable file is allowed; try another"
        ) from None
