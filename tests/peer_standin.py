"""An engine in the place of a peer's, for `bench peers`: no model, numbers made up, and it errs on demand.

Its precision says what happens. It runs in a process of its own, so it knows the standard library alone.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

PACKAGES = {"pip": "pip"}


def refusal(facts: dict[str, Any], precision: str) -> str:
    """A peer that knows no such model."""
    return f"runs no {facts['model_type']}" if precision == "refuse" else ""


def convert(folder: Path, target: Path, precision: str) -> None:
    """A file beside which the order of all conversions is kept."""
    assert (folder / "config.json").exists()
    if precision == "broken":
        raise ValueError("its converter\nknows  nothing")
    target.mkdir()
    with (target.parent / "conversions").open("a") as file:
        file.write(f"{precision}\n")


class Writer:
    """What is written takes `float(precision)` ms a token, and four times that before."""

    def __init__(self, folder: Path, precision: str, threads: int, batch: int, positions: int) -> None:
        print("a peer says hello where results go")
        with (Path.cwd() / "turns").open("a") as file:
            file.write(f"{precision} {folder.name} {threads} {batch} {positions}\n")
        self._precision = precision
        self._written = 0

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of a later token; or a failure, in the second cell."""
        self._written += 1
        second = self._written > 2  # each cell is warmed up
        if second and self._precision == "raise":
            raise RuntimeError("no more memory")
        if second and self._precision == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if second and self._precision == "leave":
            os._exit(7)
        if second and self._precision == "hang":
            time.sleep(60)
        step = float(self._precision) / 1e3 if self._precision.replace(".", "").isdigit() else 0.01
        return 4 * step * len(prompts), step
