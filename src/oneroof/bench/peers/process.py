"""A peer's process, from the command's side: an order goes in, events come out until it ends or is late.

Every process is a session of its own: a Ctrl-C is the command's to handle, and what a peer starts ends with
it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from oneroof.bench.peers.roster import Peer

Event = Mapping[str, object]

_CHILD = Path(__file__).parent / "engines" / "child.py"


class PeerError(Exception):
    """A peer did not do as it was told; the message is a reason for one line."""


def events(
    peer: Peer, python: Path, order: Mapping[str, object], *, log: Path, threads: int, limit: float
) -> Iterator[Event]:
    """What `peer` tells about `order`, as it tells it. `log` gets what it prints; `limit`: seconds.

    Raises PeerError where it fails, dies or is too slow; what it told before has been seen by then.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as words:
        child = subprocess.Popen(
            [str(python), str(_CHILD), str(peer.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            cwd=log.parent,
            env=_environment(threads),
            start_new_session=True,
        )
    try:
        yield from _heard(child, order, time.monotonic() + limit, limit)
    finally:
        _end(child)


def _heard(
    child: subprocess.Popen[str], order: Mapping[str, object], deadline: float, limit: float
) -> Iterator[Event]:
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(child, lines, json.dumps(order) + "\n"), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise PeerError(f"took longer than {limit:g} s") from None
        if line is None:
            raise PeerError(_end_of(child.wait()))
        event = json.loads(line)
        if "failed" in event:
            raise PeerError(str(event["failed"]))
        if "done" in event:
            return
        yield event


def _pump(child: subprocess.Popen[str], lines: queue.Queue[str | None], order: str) -> None:
    """Write the order and hand on what is read; its input stays open, as the child ends with it."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(order)
        child.stdin.flush()
        for line in child.stdout:
            lines.put(line)
    except (OSError, ValueError):  # it has died, or was ended: the end of its output says so
        return
    finally:
        lines.put(None)


def _end(child: subprocess.Popen[str]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        child.kill()
    child.wait()


def _end_of(status: int) -> str:
    if status >= 0:
        return f"ended with status {status} before it was done"
    return f"was ended by {signal.Signals(-status).name}"


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    ours = {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **ours}
