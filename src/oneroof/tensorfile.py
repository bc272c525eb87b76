"""The safetensors format: files mapped and read without a copy, written one tensor at a time, in shards.

A torn or foreign file is a `UserError` before any of its tensors is touched. What is written appears under
its name only when it is whole and on disk. No pickle, and no other format.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

import torch
from torch import Tensor

from oneroof.errors import UserError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
INDEX = "model.safetensors.index.json"

WORDS = {dtype: word for word, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_ALIGNED = 64  # bytes: a reader that maps the file finds its first tensor where a cache line begins
_LFS = b"version https://git-lfs"
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # mmap.MAP_NORESERVE, which Python 3.11 does not name

Report = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class Spec:
    """What is known of a stored tensor without reading it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its numbers, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class TensorFile:
    """An open safetensors file. Opening reads and checks the header alone; `read` gives views of the file.

    The file stays mapped for as long as any of its tensors lives, so there is nothing to close. Raises
    UserError where the file cannot be opened, is torn, or is not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                header = _read_header(file, path, size)
                self._start = file.tell()
                private = mmap.MAP_PRIVATE | _NORESERVE  # no memory is set aside for a copy that nobody makes
                self._map = mmap.mmap(
                    file.fileno(), size, flags=private, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); check the path and its permissions"
            ) from None
        header.pop("__metadata__", None)
        self._spans = _spans(header, path, size - self._start)
        self.specs = {name: spec for name, (spec, _) in self._spans.items()}  # in file order

    def read(self, name: str) -> Tensor:
        """The tensor as a view of the file: no copy; only the rows that are looked at are read from disk.

        A view is for reading; what is written to it is lost.
        """
        spec, begin = self._spans[name]
        if not spec.bytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=spec.bytes, offset=self._start + begin)
        if (self._start + begin) % spec.dtype.itemsize:
            flat = flat.clone()  # numbers must lie at multiples of their size; not every writer sees to it
        return flat.view(spec.dtype).view(spec.shape)

    def release(self, name: str) -> None:
        """Give back the memory that reading `name` took; its views stay good, and read the file again."""
        spec, begin = self._spans[name]
        first = (self._start + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        if spec.bytes:
            self._map.madvise(mmap.MADV_DONTNEED, first, self._start + begin + spec.bytes - first)


def write(
    path: Path, specs: Sequence[Spec], read: Callable[[str], Tensor], *, report: Report | None = None
) -> None:
    """Write one file, asking `read` for one tensor after the other; none is kept.

    Large numbers come first, so that every tensor lies at a multiple of its number's size.
    """
    ordered = _ordered(specs)
    total, done = sum(spec.bytes for spec in ordered), 0
    with replacing(path) as file:
        file.write(_header(ordered))
        for spec in ordered:
            file.write(_numbers(read(spec.name), spec))  # not kept while the next one is read
            done += spec.bytes
            if report is not None:
                report(done, total)


def write_on(
    path: Path,
    specs: Sequence[Spec],
    slabs: Callable[[str], Iterable[Tensor]],
    *,
    kept: bool = True,
    report: Report | None = None,
) -> None:
    """`write` that goes on behind the last whole tensor of a killed attempt, and can be gone on with itself.

    `slabs` gives a tensor in parts, in the order of its numbers; one of them is in memory. `kept` False: what
    an attempt left is not to be trusted. One writer at a time: see `locked`.
    """
    ordered = _ordered(specs)
    header, total = _header(ordered), sum(spec.bytes for spec in ordered)
    part = unfinished(path)
    try:
        with part.open("r+b" if part.exists() else "w+b") as file:
            whole, done = _kept(file, header, ordered) if kept else (0, 0)
            file.seek(0)
            file.write(header)
            file.seek(done, os.SEEK_CUR)
            file.truncate()
            for spec in ordered[whole:]:
                for slab in slabs(spec.name):
                    file.write(_bytes(slab))
                    del slab  # before the next one comes
                done += spec.bytes
                assert file.tell() == len(header) + done, spec
                if report is not None:
                    report(done, total)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def written(path: Path, specs: Sequence[Spec]) -> bool:
    """Whether `path` is the file that `write_on` or `write` makes of tensors like these."""
    header = _header(ordered := _ordered(specs))
    if not path.is_file() or path.stat().st_size != len(header) + sum(spec.bytes for spec in ordered):
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def unfinished(path: Path) -> Path:
    """Where `write_on` keeps what is not whole yet."""
    return path.with_name(f".{path.name}.part")


def write_shards(
    folder: Path,
    specs: Sequence[Spec],
    read: Callable[[str], Tensor],
    *,
    limit: int,
    report: Report | None = None,
) -> None:
    """Write `model.safetensors`, or shards of at most `limit` bytes and their index; no tensor is cut.

    `folder` is made where it is missing; one that already holds weights is refused with a UserError. Where
    writing fails, no file of it is left.
    """
    _make(folder)
    files = shards(specs, limit)
    total, before = sum(spec.bytes for spec in specs), 0
    try:
        for name, shard in files.items():
            tell = _shifted(report, before, total)
            write(folder / name, shard, read, report=tell)
            before += sum(spec.bytes for spec in shard)
        if len(files) > 1:
            write_text(folder / INDEX, json.dumps(index(files), indent=2) + "\n")
    except BaseException:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise


def shards(specs: Sequence[Spec], limit: int) -> dict[str, list[Spec]]:
    """Which file has which tensors, where none is larger than `limit` bytes unless one tensor is."""
    parts: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if parts[-1] and size + spec.bytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(spec)
        size += spec.bytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts)}


def index(files: Mapping[str, Sequence[Spec]]) -> dict[str, object]:
    """What stands in the index of such files."""
    total = sum(spec.bytes for specs in files.values() for spec in specs)
    where = {spec.name: file for file, specs in files.items() for spec in specs}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well, on disk by then; otherwise nothing is left.

    Raises UserError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else has it so. Raises UserError where another command is at work in the folder."""
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being written by another command; wait for it or choose another name"
            ) from None
        yield
    finally:
        os.close(number)


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on disk, so that it outlives a crash."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _read_header(file: BinaryIO, path: Path, size: int) -> dict[str, object]:
    foreign = f"{path} is not a safetensors file"
    start = file.read(len(_LFS))
    if start == _LFS:
        raise UserError(f"{path} is a Git LFS pointer, not weights; run `git lfs pull` in its folder")
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > _LONGEST_HEADER or start[8:9] != b"{":
        raise UserError(f"{foreign} (it has no header); safetensors is allowed; fetch the file again")
    if 8 + length > size:
        raise UserError(
            f"{path} is torn: its header says {length} bytes, the file ends after {size - 8}; fetch it again"
        )
    file.seek(8)
    try:
        header = json.loads(file.read(length), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{foreign} (its header is no JSON: {error}); fetch the file again") from None
    if not isinstance(header, dict):
        raise UserError(f"{foreign} (its header is no JSON object); fetch the file again")
    return header


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _spans(header: dict[str, object], path: Path, held: int) -> dict[str, tuple[Spec, int]]:
    """name -> (spec, its first byte after the header), in file order; they tile the `held` bytes exactly."""
    entries = sorted(
        (_entry(name, value, path) for name, value in header.items()), key=lambda entry: entry[1:]
    )
    end = 0
    for spec, begin, stop in entries:
        if begin != end:
            raise UserError(
                f"{path} is broken: {spec.name} begins at byte {begin}, not at {end}; fetch it again"
            )
        end = stop
    if end > held:
        raise UserError(
            f"{path} is torn: its tensors take {end} bytes, {held} are there; fetch the file again"
        )
    if end < held:
        raise UserError(f"{path} is broken: {held - end} bytes follow its last tensor; fetch the file again")
    return {spec.name: (spec, begin) for spec, begin, _ in entries}


def _entry(name: str, value: object, path: Path) -> tuple[Spec, int, int]:
    """(spec, first byte, byte after the last) of one line of the header."""
    if not isinstance(value, dict):
        raise UserError(f"{path} is broken: its header says nothing of {name}; fetch the file again")
    shape, offsets, word = value.get("shape"), value.get("data_offsets"), value.get("dtype")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise UserError(f"{path} is broken: {name} has shape {shape} at {offsets}; fetch the file again")
    if not isinstance(word, str) or word not in DTYPES:
        raise UserError(
            f"{path}: {name} is of dtype {word}; allowed are {', '.join(DTYPES)}; convert it first"
        )
    spec = Spec(name, DTYPES[word], tuple(shape))
    begin, stop = offsets
    if stop - begin != spec.bytes:
        raise UserError(
            f"{path} is broken: {name} {shape} {word} takes {spec.bytes} bytes, not {stop - begin}"
        )
    return spec, begin, stop


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def _ordered(specs: Sequence[Spec]) -> list[Spec]:
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def _kept(file: BinaryIO, header: bytes, specs: Sequence[Spec]) -> tuple[int, int]:
    """(tensors that are whole in an unfinished file, their bytes); none where it began otherwise."""
    if file.read(len(header)) != header:
        return 0, 0
    held = os.fstat(file.fileno()).st_size - len(header)
    end = 0
    for index, spec in enumerate(specs):
        if end + spec.bytes > held:
            return index, end
        end += spec.bytes
    return len(specs), end


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror}); choose a folder with room and write access"
    )


def _header(specs: Sequence[Spec]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        end += spec.bytes
        table[spec.name] = {
            "dtype": WORDS[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end - spec.bytes, end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _numbers(tensor: Tensor, spec: Spec) -> memoryview:
    if (tensor.dtype, tuple(tensor.shape)) != (spec.dtype, spec.shape):
        raise ValueError(
            f"{spec.name}: {tensor.dtype} {tuple(tensor.shape)} came, not {spec.dtype} {spec.shape}"
        )
    return _bytes(tensor)


def _bytes(tensor: Tensor) -> memoryview:
    numbers: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return numbers


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = [x.name for x in folder.iterdir() if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", x.name)]
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); choose another place") from None
    if old:
        raise UserError(
            f"{folder} already holds weights ({old[0]}); an empty folder is allowed; choose another"
        )


def _shifted(report: Report | None, before: int, total: int) -> Report | None:
    return None if report is None else lambda done, _: report(before + done, total)
