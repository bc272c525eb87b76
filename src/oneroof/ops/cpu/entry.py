"""The library's kernels as Python functions with their types; what each takes is told in abi.h.

A kernel that takes one structure is called at once, or noted on the tape of the recording that is being made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from ctypes import Structure, addressof, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any, NamedTuple, cast

from oneroof.ops.cpu.library import native


class Declined:
    """The type of `NotImplemented`, which for mypy is any."""


DECLINED = cast(Declined, NotImplemented)
_STRUCTURE = (c_void_p,)
_TAKES: dict[str, tuple[Any, ...]] = {  # what does not take one structure
    "oneroof_lookup": (c_void_p, c_void_p, c_int64, c_void_p, c_int32),
    "oneroof_end": (c_void_p,),
    "oneroof_hear": (c_void_p, c_int64, c_void_p),
    "oneroof_tell": (c_void_p, c_char_p, c_int64),
    "oneroof_run": (c_void_p, c_int64, c_void_p, c_int64, c_void_p),
}
_GIVES: dict[str, Any] = {"oneroof_lookup": c_int32, "oneroof_tell": c_int32, "oneroof_hear": c_int64}


class Noted(NamedTuple):
    """A call that was not made; `kept` is what constant addresses of its structure point to."""

    name: str
    structure: Structure
    kept: tuple[object, ...]


tape: ContextVar[list[Noted] | None] = ContextVar("tape", default=None)


@cache
def kernel(name: str) -> Callable[..., int | None]:
    """`oneroof_attention` and its like; the library must be there. Lets go of the interpreter's lock."""
    found = native()
    assert found is not None
    function = found.lib[name]
    function.argtypes = _TAKES.get(name, _STRUCTURE)
    function.restype = _GIVES.get(name)
    made: Callable[..., int | None] = function
    return made


def launch(name: str, structure: Structure, *kept: object) -> None:
    """Call the kernel `name`; the addresses of `kept` in `structure` stay the same from run to run."""
    noted = tape.get()
    if noted is None:
        kernel(name)(addressof(structure))
    else:
        noted.append(Noted(name, type(structure).from_buffer_copy(structure), kept))
