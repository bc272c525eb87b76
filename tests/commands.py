"""A command with one field of every kind, for the tests of the command line."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Rank:
    """How an adapter is shaped."""

    rank: int = 8
    """Its rank."""

    dropout: float = 0.1


@dataclass(frozen=True)
class Shared:
    """What all of them take. And more."""

    model: str
    """A folder."""

    _: KW_ONLY

    threads: int | Literal["auto"] = "auto"
    """Cores,
    one each."""

    layers: int | None = None


@dataclass(frozen=True)
class Cook(Shared):
    """Cook something."""

    dish: tuple[str, ...]

    _: KW_ONLY

    heat: Literal["low", "high"]
    """How hot."""

    salt: float = 0.5
    quiet: bool = False
    note: tuple[str, ...] = ()
    book: Path = Path("book")
    lora: Rank = field(default_factory=Rank)
