"""A process in the place of the engine's worker, without a model, that errs on demand: ``standin.py FD``.

What a request's prompt says is what happens; a number is written so many times as tokens, one a step.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from socket import SHUT_RDWR, socket

from oneroof.engine import worker
from oneroof.engine.request import Completion, Output, Piece, Reading, Request, SamplingParams, Vector
from oneroof.engine.stats import Stats
from oneroof.engine.wire import Load, Ready, Said, pack
from oneroof.engine.worker import main
from oneroof.errors import UserError

NOTHING = {f: 0 for f in Stats.__dataclass_fields__ if not f.startswith("seconds")}


def ask(prompt: str, limit: int = 1, **fields: object) -> Request:
    """A request for `limit` tokens, whose prompt is what happens."""
    params = SamplingParams(max_tokens=limit, **fields)  # type: ignore[arg-type]
    return Request(0, prompt, (1,), params, frozenset(), 0, limit)


class Standin:
    """Steps without a model. `calls` is what was called, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._under_way: dict[int, Request | Reading] = {}
        self._written: dict[int, int] = {}
        self._steps = 0

    @property
    def busy(self) -> bool:
        return bool(self._under_way)

    def add(self, key: int, request: Request | Reading) -> None:
        self.calls.append(f"add {key}")
        if isinstance(request, Request) and request.prompt == "refuse":
            raise UserError("prompt 0 is refused; others are allowed; try another")
        self._under_way[key], self._written[key] = request, 0
        if isinstance(request, Request) and request.prompt == "odd":
            raise KeyError("odd")

    def abort(self, key: int) -> None:
        self.calls.append(f"abort {key}")
        self._under_way.pop(key, None)

    def step(self) -> list[tuple[int, Piece | Vector]]:
        self.calls.append("step")
        self._steps += 1
        return [(key, self._event(key, work)) for key, work in list(self._under_way.items())]

    def stats(self) -> Stats:
        counts = NOTHING | {"running": len(self._under_way), "steps": self._steps}
        return Stats(**counts, seconds=0.0, seconds_model=0.0)

    def _event(self, key: int, work: Request | Reading) -> Piece | Vector:
        if isinstance(work, Reading):
            del self._under_way[key]
            return Vector(work.index, (0.5,))
        match work.prompt:
            case "bug":
                raise RuntimeError("the bug itself")
            case "sleep":
                time.sleep(60)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "leave":
                os._exit(0)
            case "babble":
                os.write(int(sys.argv[1]), b"HTTP/1.1 400 Bad Request")
            case "slow":
                time.sleep(0.01)
            case "tear":
                os.write(
                    int(sys.argv[1]), pack(Said(0, "x" * 10**7))[:20]
                )  # what others say is taken for the rest
                os._exit(3)
            case "hang up":
                socket(fileno=os.dup(int(sys.argv[1]))).shutdown(SHUT_RDWR)
                time.sleep(60)
        self._written[key] += 1
        number, text = self._written[key], f"{self._written[key]} "
        if number < work.limit:
            return Piece(work.index, 0, text, (number,), None, None)
        del self._under_way[key]
        tokens = tuple(range(1, number + 1))
        whole = Completion("".join(f"{t} " for t in tokens), tokens, "length", None, None)
        return Piece(work.index, 0, text, (number,), "length", Output(0, work.prompt, (1,), (whole,), None))


def build(order: Load, progress: Callable[[int, int], None]) -> tuple[Standin, Ready]:
    """What the model's name says is what happens."""
    if order.model == "missing":
        raise UserError("missing is no model; others are allowed; try another")
    if order.model == "bug":
        raise RuntimeError("no memory left")
    if order.model == "sleep":
        time.sleep(60)
    for done in (1, 2, 3):
        progress(done, 3)
    logging.getLogger("oneroof").warning("a word of warning")
    logging.getLogger("oneroof").debug("a word to nobody")
    print("printed by a library", flush=True)
    print("said by another", file=sys.stderr)
    return Standin(), Ready(folder="", device="none", dtype="none", context=99, writes=True)


if __name__ == "__main__":
    worker._GRACE = 0.6  # tests wait for it; but longer than the client waits for a second sign
    sys.exit(main(sys.argv[1:], build))
