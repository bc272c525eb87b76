"""A forward as a list of the native kernels that it calls, which runs as one call.

It is made by running Python once with empty tensors and noting the calls. What a kernel writes lies in one
piece of memory, used again as soon as nobody reads it; the addresses of inputs, and how many rows there are,
are written into the structures before each run.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import Structure, addressof, c_int64, c_void_p, cast
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oneroof.ops.cpu.entry import Noted, kernel, tape
from oneroof.ops.cpu.structures import Command, Patch

_ALIGNED = 64
_COUNTS = ("rows", "sequences", "width")  # the first values, before the inputs' addresses and the result's
_FIELDS = {"tokens": "rows", "sequences": "sequences", "table_width": "width"}  # of the structures


def record(
    body: Callable[[], Tensor], inputs: Sequence[Tensor | None], rows: int, sequences: int
) -> CpuRecording | None:
    """As `ops.Recorder` has it."""
    made: list[Tensor] = []
    try:
        with _taped() as noted, _Watch(made):
            out = body()
    except _ForeignError:
        return None
    if not any(out.data_ptr() == t.data_ptr() for t in made) or not out.is_contiguous():
        return None
    return CpuRecording(noted, list(inputs), made, out, {"tokens": rows, "sequences": sequences})


class _ForeignError(Exception):
    """Something was called that is no kernel of ours."""


@contextmanager
def _taped() -> Iterator[list[Noted]]:
    noted: list[Noted] = []
    before = tape.set(noted)
    try:
        yield noted
    finally:
        tape.reset(before)


class _Watch(TorchDispatchMode):
    """Lets tensors be made, which it keeps, and viewed; whatever would read or write one is foreign."""

    _MAKES = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default,
    )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler, which takes seconds, to keep it out of here."""
        return False

    def __init__(self, made: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made = made

    def __torch_dispatch__(
        self,
        func: Any,  # torch gives it no type
        types: Sequence[type],
        given: tuple[object, ...] = (),
        options: Mapping[str, object] | None = None,
    ) -> object:
        """What torch calls for each of its operations."""
        if not func.is_view and func not in self._MAKES:
            raise _ForeignError(str(func))
        out = func(*given, **(options or {}))
        if not func.is_view:
            self._made.append(out)
        elif not _memory([out]) <= _memory(given):  # `to`, `contiguous` and their like may be copies
            raise _ForeignError(str(func))
        return out


class _Spans:
    """Pieces of memory that a structure's address may be of, by an index of each."""

    def __init__(self, tensors: Iterable[tuple[int, Tensor]]) -> None:
        self._all = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, i) for i, t in tensors)
        self._begins = [begin for begin, _, _ in self._all]

    def find(self, address: int) -> tuple[int, int] | None:
        """Which it is in, and how far from its beginning."""
        at = bisect_right(self._begins, address) - 1
        if at < 0 or address >= self._all[at][1]:
            return None
        return self._all[at][2], address - self._begins[at]


def _memory(tensors: Iterable[object]) -> set[int]:
    flat = [t for one in tensors for t in (one if isinstance(one, tuple | list) else (one,))]
    return {t.untyped_storage().data_ptr() for t in flat if isinstance(t, Tensor)}


class CpuRecording:
    """The calls, their structures, and what is to be written into them."""

    def __init__(
        self,
        noted: list[Noted],
        inputs: list[Tensor | None],
        made: list[Tensor],
        out: Tensor,
        counts: Mapping[str, int],
    ) -> None:
        self._noted = noted  # structures, and what must not be freed
        self._shape, self._dtype = out.shape[1:], out.dtype
        ours = [t for t in made if t.nbytes and t.data_ptr() != out.data_ptr()]
        changing = enumerate([*inputs, out], len(_COUNTS))
        given, spans = _Spans((i, t) for i, t in changing if t is not None), _Spans(enumerate(ours))
        patches: list[Patch] = []
        uses: list[tuple[c_void_p, int, int]] = []  # a field, which of `ours` it is in, and where
        lives: dict[int, tuple[int, int]] = {}  # of each of `ours`: its first and last call
        for call, (_, structure, _) in enumerate(noted):
            for name, place, value in _fields(structure):
                if name in _FIELDS:
                    assert value == counts.get(name, value), (name, value)
                    patches.append(Patch(place, _COUNTS.index(_FIELDS[name]), 0))
                elif (found := given.find(value)) is not None:
                    patches.append(Patch(place, *found))
                elif (found := spans.find(value)) is not None:
                    uses.append((c_void_p.from_address(place), *found))
                    lives[found[0]] = (lives.get(found[0], (call, call))[0], call)
        places, size = _arrange(lives, {i: ours[i].nbytes for i in lives})
        self._memory = torch.empty(size + _ALIGNED, dtype=torch.uint8)
        begin = -(-self._memory.data_ptr() // _ALIGNED) * _ALIGNED
        for field, index, offset in uses:
            field.value = begin + places[index] + offset
        self._commands = (Command * len(noted))(
            *(Command(cast(kernel(n.name), c_void_p), addressof(n.structure)) for n in noted)  # type: ignore[arg-type]
        )
        self._patches = (Patch * len(patches))(*patches)
        self._values = (c_int64 * (len(_COUNTS) + len(inputs) + 1))()
        self._call = (addressof(self._commands), len(noted), addressof(self._patches), len(patches))
        self._run = kernel("oneroof_run")

    @property
    def nbytes(self) -> int:
        """Memory for what kernels write, of which only as much is touched as there are rows."""
        return self._memory.nbytes

    def run(self, inputs: Sequence[Tensor | None], rows: int, sequences: int, width: int) -> Tensor:
        """As `ops.Recording` has it."""
        out = torch.empty((rows, *self._shape), dtype=self._dtype)
        addresses = [0 if t is None else t.data_ptr() for t in inputs]
        self._values[:] = [rows, sequences, width, *addresses, out.data_ptr()]
        self._run(*self._call, addressof(self._values))
        return out


def _fields(structure: Structure) -> Iterator[tuple[str, int, int]]:
    """The name, address and value of each field that is an address or a count."""
    base, kind = addressof(structure), type(structure)
    for name, *rest in kind._fields_:
        if rest[0] is c_void_p or name in _FIELDS:
            yield name, base + getattr(kind, name).offset, getattr(structure, name) or 0


def _arrange(lives: Mapping[int, tuple[int, int]], sizes: Mapping[int, int]) -> tuple[dict[int, int], int]:
    """Places for buffers, none of which share memory while both are in use; and how much that takes."""
    placed: dict[int, int] = {}
    used: list[int] = []  # those in use, by their places
    for index in sorted(lives, key=lambda i: lives[i]):
        used = [other for other in used if lives[other][1] >= lives[index][0]]
        at = 0
        for other in used:
            end = placed[other] + sizes[other]
            if placed[other] < at + sizes[index] and at < end:
                at = -(-end // _ALIGNED) * _ALIGNED
        placed[index] = at
        insort(used, index, key=placed.__getitem__)
    return placed, max((at + sizes[i] for i, at in placed.items()), default=0)
