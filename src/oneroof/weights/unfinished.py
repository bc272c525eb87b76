"""Writing a folder file by file so that a killed attempt is gone on with: a journal says what it is made of.

Files that are whole stay, one that is torn is continued behind its last whole tensor. A folder that holds
anything of somebody else is refused, and nothing in it is touched. The last file to come means: complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from oneroof import log
from oneroof.errors import UserError
from oneroof.jsonfile import read_object
from oneroof.tensorfile import (
    Report,
    Spec,
    locked,
    replacing,
    sync,
    unfinished,
    write_on,
    write_text,
    written,
)

JOURNAL = ".unfinished.json"
MADE = "made"  # the key of the record, in the journal and in the last file

Slabs = Callable[[str], Iterable[Tensor]]


@dataclass(frozen=True)
class File:
    """A file of tensors; `slabs` gives each in parts."""

    specs: Sequence[Spec]
    slabs: Slabs

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return sum(spec.bytes for spec in self.specs)


@dataclass(frozen=True)
class Plan:
    """What a folder will hold, by names within it."""

    record: Mapping[str, object]  # of JSON: what it is made of, and how
    copies: Mapping[str, Path]
    texts: Mapping[str, str]
    files: Mapping[str, File]
    last: tuple[str, dict[str, object]]  # a JSON file, to which the record is added

    def names(self) -> set[str]:
        """All of them."""
        return {*self.copies, *self.texts, *self.files, self.last[0]}


def complete(out: Path, plan: Plan, report: Report | None = None) -> bool:
    """Write all that is missing in `out`; False where that was nothing.

    Raises UserError where `out` holds anything else, is being written, or cannot be.
    """
    out = Path(os.path.realpath(out.expanduser()))  # where a link points to
    absent = [folder for folder in (out, *out.parents) if not folder.exists()]
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder; a new or an empty folder is allowed; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            if _is_complete(out, plan):
                return False
            _refuse_others(out, plan)
            _go_on(out, plan, report)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}); choose a folder with room and write access"
        ) from error
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):  # it is not empty where anything was written
                folder.rmdir()
    return True


def _is_complete(out: Path, plan: Plan) -> bool:
    if (out / JOURNAL).exists() or _record(out, plan) != plan.record:
        return False
    there = (out / name for name in (*plan.copies, *plan.texts))
    return all(x.is_file() for x in there) and all(written(out / n, f.specs) for n, f in plan.files.items())


def _record(out: Path, plan: Plan) -> object:
    """Of what the folder is, as the journal or its last file tells; None where neither does."""
    for name in (JOURNAL, plan.last[0]):
        if (out / name).is_file():
            return read_object(out / name).get(MADE)
    return None


def _refuse_others(out: Path, plan: Plan) -> None:
    found = _record(out, plan)
    ours = plan.names() if found == plan.record else set()
    if isinstance(found, dict) and found != plan.record:
        raise UserError(f"{out} {_difference(found, plan.record)}; a new folder is allowed; choose another")
    folders = {parent.as_posix() for name in ours for parent in Path(name).parents}
    for path in _below(out):
        name = path.relative_to(out).as_posix()
        if path.is_symlink() or (name not in folders if path.is_dir() else not _is_ours(name, ours)):
            raise UserError(
                f"{out} holds {name}, which is not of this command; a new or an empty folder is allowed; "
                "choose another"
            )


def _below(out: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(out, onerror=stop):
        yield from (Path(root) / name for name in sorted((*folders, *files)))


def _is_ours(name: str, ours: set[str]) -> bool:
    if name in ours or name == JOURNAL:
        return True
    folder, _, last = name.rpartition("/")
    part = re.fullmatch(r"\.(.+?)(\.\d+)?\.part", last)  # what `replacing` and `write_on` leave when killed
    return part is not None and (f"{folder}/{part[1]}".lstrip("/") in ours or part[1] == JOURNAL)


def _difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """What a folder that was made of something else was made of."""
    for key, value in wanted.items():
        other = found.get(key)
        if other == value:
            continue
        if isinstance(value, dict) and isinstance(other, dict):
            names = [name for name in {**other, **value} if other.get(name) != value.get(name)]
            return f"was made of {found.get('folder')} as it was before: {names[0]} has changed"
        old, new = (f"{record.get('command')} of {record.get('folder')}" for record in (found, wanted))
        return f"was made by {old}, not by {new}"
    return "was made of something else"


def _go_on(out: Path, plan: Plan, report: Report | None) -> None:
    journal = out / JOURNAL
    boot = _boot()
    trusted = journal.exists() and read_object(journal).get("boot") == boot
    done = [name for name, file in plan.files.items() if written(out / name, file.specs)]
    total = sum(file.bytes for file in plan.files.values())
    before = sum(plan.files[name].bytes for name in done)
    torn = [part for name in plan.files if (part := unfinished(out / name)).exists()]
    _check_room(out, total - before - sum(part.stat().st_size for part in torn))
    if done or torn:
        log.info(f"{out} was begun before: {len(done)} of {len(plan.files)} files are whole and stay")
    if not trusted:  # after a fall of the machine a file's end may be there without its numbers
        for part in torn:
            part.unlink()
        write_text(journal, json.dumps({MADE: plan.record, "boot": boot}) + "\n")
    for path in [path for path in _below(out) if re.fullmatch(r"\..+\.\d+\.part", path.name)]:
        path.unlink()
    for name in plan.names():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    for name, source in plan.copies.items():
        _copy(source, out / name)
    for name, text in plan.texts.items():
        write_text(out / name, text)
    for name, file in plan.files.items():
        if name not in done:
            write_on(out / name, file.specs, file.slabs, report=_shifted(report, before, total))
            before += file.bytes
    last, document = plan.last
    write_text(out / last, json.dumps({**document, MADE: plan.record}) + "\n")
    journal.unlink()
    sync(out)


def _boot() -> str:
    """What is another after each start of the machine; nothing where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _check_room(out: Path, size: int) -> None:
    free = shutil.disk_usage(out).free
    if free < size:
        raise UserError(f"{out} needs {size / 1e9:.3g} GB, {free / 1e9:.3g} GB are free there; make room")


def _copy(source: Path, target: Path) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); check its permissions") from None
    with file, replacing(target) as copy:
        shutil.copyfileobj(file, copy)


def _shifted(report: Report | None, before: int, total: int) -> Report | None:
    return None if report is None else lambda done, _: report(before + done, total)
