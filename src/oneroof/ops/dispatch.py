"""One name for each operation: the plain PyTorch reference says what it computes, a backend may serve it
faster.

A backend is a module that defines functions of the same names; it is installed once at start-up (`use`) and
may answer `NotImplemented` for facts that it does not serve (dtype, head size), never by the number of
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Generic, ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Op(Generic[P, R]):
    """A reference and what serves in its place.

    The reference runs where no backend is installed, where the backend answers `NotImplemented`, under
    compilation or export, and where a gradient is wanted that the backend has not declared (attribute
    ``differentiable = True``).
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        self.name = reference.__name__
        self.__doc__ = reference.__doc__
        self.backend = "reference"
        self._fast: Callable[P, R] | None = None
        self._differentiable = False

    def __call__(self, *inputs: P.args, **options: P.kwargs) -> R:
        fast = self._fast
        if (
            fast is None
            or torch.compiler.is_compiling()
            or (not self._differentiable and _wants_gradient((*inputs, *options.values())))
        ):
            return self.reference(*inputs, **options)
        result = fast(*inputs, **options)
        return self.reference(*inputs, **options) if result is NotImplemented else result

    def serve(self, backend: str, function: Callable[P, R] | None) -> None:
        """Let `function` of `backend` answer; None goes back to the reference."""
        self._fast = function
        self._differentiable = bool(vars(function).get("differentiable", False)) if function else False
        self.backend = backend if function else "reference"


OPS: dict[str, Op[..., object]] = {}  # filled by `op` while the reference modules are imported


def op(reference: Callable[P, R]) -> Op[P, R]:
    """Make the plain function `reference` an `Op`; its body is the specification."""
    made = Op(reference)
    OPS[made.name] = made  # type: ignore[assignment]  # a table of ops of many signatures
    return made


class Recording(Protocol):
    """Many ops in a row, noted once and run again without Python between them."""

    def run(
        self, inputs: Sequence[torch.Tensor | None], rows: int, sequences: int, width: int
    ) -> torch.Tensor:
        """What the ops make of `inputs`: as they were when it was made, but for how many rows they have.

        `width` is the number of pages in a row of the table, where that is among them.
        """


class Recorder(Protocol):
    """A backend's function `record`."""

    def __call__(
        self,
        body: Callable[[], torch.Tensor],
        inputs: Sequence[torch.Tensor | None],
        rows: int,
        sequences: int,
    ) -> Recording | None:
        """Note what ops `body` calls on `inputs`, which need hold no numbers; it is not computed.

        The inputs have as many `rows` and `sequences` as there will be at most. None where `body` calls what
        is not an op that the backend serves.
        """


_recorder: Recorder | None = None


def use(backend: str, module: ModuleType | None) -> None:
    """Install the functions of `module` that bear an op's name; None restores the references everywhere."""
    global _recorder
    for name, made in OPS.items():
        made.serve(backend, vars(module).get(name) if module else None)
    _recorder = vars(module).get("record") if module else None


def recorder() -> Recorder | None:
    """The installed backend's, where it has one."""
    return _recorder


def served() -> dict[str, str]:
    """What serves each op now: its name -> the backend's, or `reference`."""
    return {name: made.backend for name, made in sorted(OPS.items())}


def _wants_gradient(inputs: tuple[object, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)
