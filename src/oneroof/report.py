"""One kind of result for the whole house, from training metrics to kernel timings, as JSON lines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number, with all that is needed to measure it again."""

    name: str  # what was measured: "decode", "perplexity"
    value: float
    unit: str  # "tokens/s", "bytes", "" for a ratio
    config: Mapping[str, str | int | float | bool]  # the options that could change the value
    device: str  # as `oneroof.device.describe` says it
    commit: str = field(default_factory=lambda: source())

    def line(self) -> str:
        """The record as one line of JSON, without its newline."""
        return json.dumps(asdict(self), ensure_ascii=False)


def append(path: Path, records: Iterable[Record]) -> None:
    """Add `records` to the file at `path`, one a line; UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(record.line() + "\n" for record in records)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); a writable file is allowed; try another"
        ) from None


def read(path: Path) -> Iterator[Record]:
    """The records of a file; UserError names the first line that is none."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{path} line {number} is no record ({error}); JSON lines are allowed; mend it"
                ) from None


def source() -> str:
    """The commit of the source that runs (``+``: files differ from it), or `unknown` outside a checkout."""
    return _source()


@cache
def _source() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):  # no git, or no commit yet
        return "unknown"


def _git(root: Path, *words: str) -> str:
    ran = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return ran.stdout.strip()
