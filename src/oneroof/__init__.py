"""oneroof: the whole life of a Qwen or ERNIE-4.5 model under one roof.

The face hands names on when they are asked for, so that importing it costs nothing; their types are in
`__init__.pyi`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__", "load"]

_HOMES = {"LLM": "oneroof.engine.llm", "SamplingParams": "oneroof.engine.request", "load": "oneroof.load"}


class _Face(ModuleType):
    """This module, in which `load` stays the function although a file bears the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):  # as importing oneroof.load does
            super().__setattr__(name, value)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'oneroof' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Face
