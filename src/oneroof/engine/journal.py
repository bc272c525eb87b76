"""A journal of results that survives being killed: JSON lines, each on the disk before the next begins.

The first line says what the run was, by a fingerprint; a run with another fingerprint does not continue it. A
last line that was torn is dropped and its work done again. One run at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from oneroof.errors import UserError

_FORMAT = "oneroof journal 1"


class Journal:
    """The results of one run, by index. A context manager; `close` lets another run have the file."""

    def __init__(self, path: Path, run: object) -> None:
        """Open or begin the journal of `run`: whatever decides the results, as plain JSON data.

        Raises UserError where the file cannot be written, is in use, is no journal, or holds results of
        another run.
        """
        self.path = path
        self.done: dict[int, dict[str, object]] = {}
        self._header = _line({"journal": _FORMAT, "fingerprint": fingerprint(run)})
        try:
            self._open()
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); any writable file is allowed; try another"
            ) from None

    def write(self, record: Mapping[str, object]) -> None:
        """Append a record, which has an integer `index`; it is on the disk when this returns.

        Raises UserError if the disk is full or gone; what was written before stays good.
        """
        try:
            _write_all(self._file, _line(record))
            os.fsync(self._file)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); make room, then run again to go on"
            ) from None

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        # NONBLOCK: a pipe that nobody reads is told, not waited for
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(self.path, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):  # a device or a pipe cannot be read back
                raise UserError(f"{self.path} is no regular file; a journal needs one; try another path")
            self._lock()
            self._resume()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path} is being written by another run; one at a time is allowed; try another file"
            ) from None

    def _resume(self) -> None:
        """Read what is there and cut off what was torn, or begin with the header."""
        content = self.path.read_bytes()
        header, newline, body = content.partition(b"\n")
        if not newline and self._header.startswith(header):  # nothing, or torn in its first line
            self._begin()
            return
        found = _parse(header)
        if not newline or found is None or found.get("journal") != _FORMAT:
            raise UserError(
                f"{self.path} exists and is not a journal of this program; a new file is allowed; try another"
            )
        whole, _, torn = body.rpartition(b"\n")
        same = header + b"\n" == self._header
        if not same and not whole:
            self._begin()  # another run that got nowhere
            return
        if not same:
            raise UserError(
                f"{self.path} holds results of another model, options or prompts; the same run can continue "
                "it; try another file or delete this one"
            )
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=2):
            self._take(number, line)
        os.ftruncate(self._file, len(content) - len(torn))

    def _begin(self) -> None:
        os.ftruncate(self._file, 0)
        _write_all(self._file, self._header)
        os.fsync(self._file)

    def _take(self, number: int, line: bytes) -> None:
        record = _parse(line)
        index = None if record is None else record.get("index")
        if record is None or not isinstance(index, int):
            raise UserError(
                f"{self.path} line {number} is no result; only whole lines are allowed; try another file"
            )
        self.done[index] = record


def fingerprint(run: object) -> str:
    """sha256 of plain JSON data: the same for the same run, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _line(record: Mapping[str, object]) -> bytes:
    return (
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="surrogatepass")
        + b"\n"
    )


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
