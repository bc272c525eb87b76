"""The process that a peer runs in: one order on standard input, events as JSON lines on standard output.

It is started as a file with the interpreter that has the peer, so it knows the standard library alone. What
the peer itself prints goes to standard error. It ends with its input, so nobody outlives the command.

Orders: ``{"do": "look"}`` asks whether the peer is there; ``convert`` writes its own format; ``measure``
loads it and writes texts, with an event for each cell.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_WARM = 4  # tokens that a text before the measured ones is long


def main() -> int:
    """Carry out the order for the engine whose file is named on the command line."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**event: object) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        ORDERS[order["do"]](_engine(Path(sys.argv[1])), order, tell)
    except Exception as error:  # whatever a peer raises is a line in the table
        import traceback

        traceback.print_exc()
        tell(failed=_line(error))
        return 1
    tell(done=True)
    return 0


def look(engine: ModuleType, order: dict[str, Any], tell: Callable[..., None]) -> None:
    """Which of the engine's packages are missing here; else the version, and why it refuses which form."""
    missing = [name for name, module in engine.PACKAGES.items() if not _there(module)]
    if missing:
        tell(missing=missing)
        return
    refusals = {form: engine.refusal(order["facts"], form) for form in order["forms"]}
    tell(version=importlib.metadata.version(next(iter(engine.PACKAGES))), refusals=refusals)


def convert(engine: ModuleType, order: dict[str, Any], tell: Callable[..., None]) -> None:
    """Write the model in the peer's own format."""
    engine.convert(Path(order["folder"]), Path(order["target"]), order["precision"])


def measure(engine: ModuleType, order: dict[str, Any], tell: Callable[..., None]) -> None:
    """Load, then write each cell once; its event has the seconds of the prefill and of a later token."""
    began = time.perf_counter()
    writer = engine.Writer(
        Path(order["folder"]), order["precision"], order["threads"], order["batch"], order["positions"]
    )
    tell(loaded=time.perf_counter() - began)
    for number, cell in enumerate(order["cells"]):
        prompts, tokens = cell["prompts"], cell["tokens"]
        writer.write(cell["warmup"], min(tokens, _WARM))
        before = busy()
        prefill, step = writer.write(prompts, tokens)
        tell(cell=number, prefill=prefill, step=step, foreign=foreign(before, busy()))
    tell(peak=peak())


ORDERS = {"look": look, "convert": convert, "measure": measure}


def peak() -> int:
    """Bytes that this process had in memory at most.

    `ru_maxrss` would not do: a process inherits it from the one that started it.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def busy() -> tuple[float, float, float]:
    """Now, and the seconds of processors that all processes and this one have taken so far."""
    words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    user, nice, system, _, _, irq, softirq, stolen = (int(word) for word in words[1:9])
    own = os.times()
    whole = (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), whole, own.user + own.system


def foreign(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    """Processors that others kept busy meanwhile, on average."""
    wall, whole, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, (whole - own) / wall)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _engine(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"engine_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300] if words else type(error).__name__


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    here = str(Path(__file__).parent)
    sys.path[:] = [place for place in sys.path if place != here]  # its neighbours bear the names of packages
    sys.exit(main())
