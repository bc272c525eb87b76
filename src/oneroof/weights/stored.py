"""The weights of a checkpoint folder, whatever holds them: a safetensors file, shards, torch's `.bin` files.

Every file is found and every header checked before a tensor is read. `.bin` files are read with
`weights_only`: one that needs more of pickle is refused, and none of its code runs. The layout of torch
before 1.6 cannot be mapped: of those files, one at a time is in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from oneroof.errors import UserError
from oneroof.jsonfile import read_object
from oneroof.tensorfile import INDEX, Spec, TensorFile
from oneroof.weights.window import Window, through

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.safetensors|\.bin)")


class Weights(Protocol):
    """A folder's stored tensors, whatever holds them. `alone`: the rank whose share is all that is there."""

    folder: Path
    paths: tuple[Path, ...]
    specs: dict[str, Spec]
    alone: int | None

    def read(self, name: str) -> Tensor:
        """The tensor, a view of its file where one file has all of it."""
        ...

    def window(self, name: str, window: Window) -> Tensor:
        """A part of it; of what is not looked at, nothing is read."""
        ...

    def require(self, name: str, window: Window) -> None:
        """UserError where that part is not there."""
        ...

    def release(self, name: str) -> None:
        """Give back the memory that reading `name` took."""
        ...


class StoredWeights:
    """All stored tensors of a folder by name: `specs` without reading any, `read` as views of the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alone: int | None = None
        paths, index = _find(folder)
        self.paths = tuple(paths)
        self._files: dict[str, TensorFile | _Pickled | _Old] = {}
        old = _OldFile()
        self.specs: dict[str, Spec] = {}  # in the order they lie in the files
        for path in paths:
            if path.suffix == ".safetensors":
                file: TensorFile | _Pickled | _Old = TensorFile(path)
            else:
                file = _Pickled(path) if _is_zip(path) else _Old(path, old)
            for name, spec in file.specs.items():
                if index.get(name, path.name) != path.name:
                    continue
                if name in self.specs:
                    raise UserError(
                        f"{path} stores {name} once more than the files before it; remove one of them"
                    )
                self.specs[name] = spec
                self._files[name] = file
        for name, shard in index.items():
            if name not in self.specs:
                raise UserError(
                    f"{folder / shard} lacks {name}, which its index names; fetch that file again"
                )

    def read(self, name: str) -> Tensor:
        """The tensor as a view of its file."""
        return self._files[name].read(name)

    def window(self, name: str, window: Window) -> Tensor:
        """A part of it, as a view of its file."""
        return through(self.read(name), window)

    def require(self, name: str, window: Window) -> None:
        """Nothing: all of it is there."""

    def release(self, name: str) -> None:
        """Give back the memory that reading `name` took."""
        self._files[name].release(name)


class _Pickled:
    """A `.bin` file of torch, opened as `TensorFile` opens a safetensors one."""

    def __init__(self, path: Path) -> None:
        self._tensors = dict(_entries(path))
        self._mapped = _mapped(path)
        self.specs = _specs(self._tensors)

    def read(self, name: str) -> Tensor:
        """The tensor, a view of the file."""
        return self._tensors[name]

    def release(self, name: str) -> None:
        """Drop its pages, where they are pages of the file."""
        storage = self._tensors[name].untyped_storage()
        begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        if any(low <= begin and end <= high for low, high in self._mapped):
            first = begin // mmap.PAGESIZE * mmap.PAGESIZE
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED
            )


class _Old:
    """A `.bin` file that cannot be mapped: read for its names, and again when a tensor is asked for."""

    def __init__(self, path: Path, file: _OldFile) -> None:
        self._path = path
        self._file = file
        self.specs = _specs(file.tensors(path))

    def read(self, name: str) -> Tensor:
        """The tensor, in memory."""
        return self._file.tensors(self._path)[name]

    def release(self, name: str) -> None:
        """Nothing: its memory goes when the next file is read."""


class _OldFile:
    """The one such file that is in memory."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._tensors: dict[str, Tensor] = {}

    def tensors(self, path: Path) -> dict[str, Tensor]:
        """Those of `path`, which takes the place of the one before."""
        if path != self._path:
            self._path, self._tensors = None, {}  # gone before the next comes
            self._tensors = dict(_entries(path))
            self._path = path
        return self._tensors


def _specs(tensors: dict[str, Tensor]) -> dict[str, Spec]:
    return {name: Spec(name, x.dtype, tuple(x.shape)) for name, x in tensors.items()}


def _entries(path: Path) -> Iterator[tuple[str, Tensor]]:
    state = _unpickle(path)
    if not isinstance(state, dict):
        raise UserError(
            f"{path} holds a {type(state).__name__}; a dict of tensors is allowed; convert it first"
        )
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise UserError(
                f"{path}: {name} is no plain tensor; a dict of tensors is allowed; convert it first"
            )
        yield str(name), tensor.detach()


def _unpickle(path: Path) -> object:
    broken, zipped = f"{path} cannot be read as weights", _is_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise UserError(
            f"{broken}: it is torn or holds more than tensors; nothing in it was run; use safetensors"
        ) from None
    except OSError as error:
        raise UserError(f"{broken} ({error.strerror}); check the path and its permissions") from None
    except _TORN as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{broken} ({first[:120]}); it is torn or no torch file; fetch it again") from None


_TORN = (  # what torch.load raises where a file ends early or is another's
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UserError(
            f"{path} cannot be read as weights ({error.strerror}); check the path and its permissions"
        ) from None


def _mapped(path: Path) -> list[tuple[int, int]]:
    """Where in memory the file is mapped; nothing where the system does not say."""
    maps, name = Path("/proc/self/maps"), str(path.resolve())
    lines = maps.read_text(errors="replace").splitlines() if maps.exists() else []
    spans = [line.split(maxsplit=5)[0].split("-") for line in lines if line.endswith(name)]
    return [(int(low, 16), int(high, 16)) for low, high in spans]


def _find(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """(the files, which file each tensor is in by the index, if there is one); every file is there."""
    for kind, single, index in (
        ("safetensors", "model.safetensors", INDEX),
        ("bin", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / single).exists():
            return [folder / single], {}
        if (folder / index).exists():
            where = _weight_map(folder / index)
            return _present(folder, sorted(set(where.values())), index), where
        shards = _numbered(folder, kind)
        if shards:
            return _present(folder, shards, "the other shards"), {}
    raise UserError(
        f"{folder} has no weights; model.safetensors, {INDEX} or pytorch_model.bin is allowed; check the path"
    )


def _weight_map(path: Path) -> dict[str, str]:
    index = read_object(path)
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(x, str) for x in where.values()):
        raise UserError(f"{path} has no weight_map from tensor names to files; fetch it again")
    for name in where.values():
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise UserError(f"{path} points to {name}; .safetensors and .bin files beside it are allowed")
    return where


def _numbered(folder: Path, kind: str) -> list[str]:
    """Names of all shards that a complete set has, from those that are there; none where there are none."""
    try:
        found = sorted(path.name for path in folder.glob(f"*model-*-of-*.{kind}"))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    matches = [match for name in found if (match := _SHARD.fullmatch(name))]
    if not matches:
        return []
    first = matches[0]
    stem, width, count, suffix = first["stem"], len(first["number"]), first["count"], first["suffix"]
    return [f"{stem}-{i:0{width}d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]


def _present(folder: Path, names: list[str], asks: str) -> list[Path]:
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder} lacks {name}, which {asks} asks for; fetch that file")
    return [folder / name for name in names]
