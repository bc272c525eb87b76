"""A model's weights as they lie in memory, kept in a file: the next start maps it and packs nothing.

It stands beside the checkpoint in `.oneroof/`, under a key of the checkpoint's content and of everything that
decides the layout; whatever does not fit is not read. The file is safetensors, written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from oneroof import log
from oneroof.errors import UserError
from oneroof.quant.format import Kept
from oneroof.tensorfile import Report, Spec, TensorFile, write, write_text

_VERSION = 1  # of the layout in panels; a change of `abi.h` changes it
_FOLDER = ".oneroof"
_DIGESTS = "digests.json"
_FIELDS = ("values", "scales", "zeros")  # tensors of a `Matrix`
_CHUNK = 1 << 24  # bytes read at once for a digest


class PackedFile:
    """Where the packed weights of one checkpoint in one form are, or will be."""

    def __init__(self, folder: Path, files: Sequence[Path], form: Mapping[str, object]) -> None:
        """`files` are the checkpoint's own; `form` is what else decides the bytes: scheme, dtype, layers."""
        self._folder = folder / _FOLDER
        self._prefix = "-".join(str(form[name]) for name in sorted(form)) + "-"
        facts = [_VERSION, dict(form), _digests(self._folder, files)]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.path = self._folder / f"{self._prefix}{key[:24]}.packed"

    def restore(self, model: nn.Module) -> bool:
        """Map the file into `model`, whose formats are in place; False where there is none that fits."""
        if not self.path.exists():
            return False
        try:
            file = TensorFile(self.path)
        except UserError as error:
            log.warning(f"{error}; the weights are packed anew")
            return False
        wanted = {name: _spec(name, tensor) for name, tensor in _pieces(model)}
        if wanted != file.specs:
            log.warning(f"{self.path} is not of this model; the weights are packed anew")
            return False
        with torch.no_grad():
            for name, tensor in _plain(model):
                tensor.copy_(_read(file, name, tensor))
        for name, kept in _formats(model):
            found = {field: _read(file, f"{name}.{field}", tensor) for field, tensor in _parts(kept)}
            values, scales, zeros = (found.get(field) for field in _FIELDS)
            assert values is not None
            kept.matrix = replace(kept.matrix, values=values, scales=scales, zeros=zeros)
        return True

    def save(self, model: nn.Module, report: Report | None = None) -> None:
        """Write the file, and take away those of other contents; a folder that cannot be written is told."""
        pieces = dict(_pieces(model))
        specs = [_spec(name, tensor) for name, tensor in pieces.items()]

        def read(name: str) -> Tensor:
            return _viewed(pieces[name])

        try:
            self._folder.mkdir(exist_ok=True)
            write(self.path, specs, read, report=report)
        except (OSError, UserError) as error:
            log.warning(f"{self._folder} keeps no packed weights: {error}")
            return
        for old in self._folder.glob(f"{self._prefix}*.packed"):
            if old != self.path:
                old.unlink(missing_ok=True)


def _formats(model: nn.Module) -> Iterator[tuple[str, Kept]]:
    for name, module in model.named_modules():
        for field, value in vars(module).items():
            if isinstance(value, Kept):
                yield f"{name}.{field}", value


def _plain(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in model.named_parameters() if tensor.numel())


def _parts(kept: Kept) -> Iterator[tuple[str, Tensor]]:
    for field in _FIELDS:
        tensor = getattr(kept.matrix, field)
        if tensor is not None:
            yield field, tensor


def _pieces(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from _plain(model)
    for name, kept in _formats(model):
        yield from ((f"{name}.{field}", tensor) for field, tensor in _parts(kept))


def _read(file: TensorFile, name: str, like: Tensor) -> Tensor:
    return file.read(name).view(like.dtype).view(like.shape)


def _viewed(tensor: Tensor) -> Tensor:
    """Bytes as whole words, so that they lie at multiples of four in the file."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.int32) if flat.dtype == torch.uint8 and flat.numel() % 4 == 0 else flat


def _spec(name: str, tensor: Tensor) -> Spec:
    viewed = _viewed(tensor)
    return Spec(name, viewed.dtype, tuple(viewed.shape))


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file; one that is as it was when it was last looked at is not read again."""
    kept = folder / _DIGESTS
    known = _known(kept)
    found: dict[str, list[str | int]] = {}
    for path in files:
        state = path.stat()
        facts: list[str | int] = [state.st_size, state.st_mtime_ns, state.st_ino]
        name = path.relative_to(folder.parent).as_posix()  # ranks have files of the same name
        old = known.get(name)
        same = isinstance(old, list) and old[:-1] == facts and isinstance(old[-1], str)
        found[name] = [*facts, str(old[-1]) if same and isinstance(old, list) else _digest(path)]
    if found != known:
        try:
            folder.mkdir(exist_ok=True)
            write_text(kept, json.dumps(found) + "\n")
        except (OSError, UserError) as error:
            log.debug(f"{kept} cannot be written: {error}")
    return {name: str(row[-1]) for name, row in found.items()}


def _known(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        read: Callable[[], bytes] = lambda: file.read(_CHUNK)  # noqa: E731
        for chunk in iter(read, b""):
            found.update(chunk)
    return found.hexdigest()
