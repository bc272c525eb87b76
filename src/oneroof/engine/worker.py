"""The engine's process: ``python -m oneroof.engine.worker FD``, started by `AsyncEngine` and by nobody else.

It speaks over the socket that it was started with, and lives as long as the other end does: there is nothing
on the file system or the network by which anyone else could reach it, and no orphan is left. A bug ends it,
with a traceback and a status that is not 0; another process can then be started in its place.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from socket import socket
from typing import Protocol

from oneroof import log
from oneroof.engine.outbox import Outbox, failed
from oneroof.engine.request import Piece, Reading, Request, Vector
from oneroof.engine.stats import Stats
from oneroof.engine.wire import (
    Abort,
    Ask,
    Frames,
    Load,
    Loading,
    Order,
    Read,
    Ready,
    Refused,
    Said,
    Told,
    WireError,
    Write,
    key_of,
    orders,
    unpack,
)
from oneroof.errors import RankLost, UserError

_GRACE = 1.0  # seconds that a step, or loading, may go on after the client has gone
_CHUNK = 2**16  # bytes of one read

Inbox = SimpleQueue[Order | None]  # None: the client has gone


class Stepping(Protocol):
    """What is served: an `oneroof.engine.engine.Engine`."""

    @property
    def busy(self) -> bool:
        """Something waits, runs or is in flight."""

    def add(self, key: int, request: Request | Reading) -> None:
        """Begin; UserError for what can never be served."""

    def abort(self, key: int) -> None:
        """`key` is over."""

    def step(self) -> list[tuple[int, Piece | Vector]]:
        """One step, and what it brought."""

    def stats(self) -> Stats:
        """Counts and state."""


Build = Callable[[Load, Callable[[int, int], None]], tuple[Stepping, Ready]]


def main(words: Sequence[str], build: Build | None = None) -> int:
    """Serve the socket whose number is the only word; `build` makes the engine. The status to exit with."""
    for number in (signal.SIGINT, signal.SIGTERM):  # to a whole terminal, or service: the client decides
        signal.signal(number, signal.SIG_IGN)
    line = socket(fileno=int(words[0]))
    line.set_inheritable(False)  # else a compiler that we start would keep the line open after our death
    inbox: Inbox = SimpleQueue()
    threading.excepthook = lambda fault: _die(fault.exc_value)  # without its thread, a client waits for ever
    outbox = Outbox(line)
    threading.Thread(target=_receive, args=(line, inbox, outbox), name="inbox", daemon=True).start()
    try:
        return _serve(inbox, outbox, build or _load)
    except Exception as fault:
        return _die(fault)


def run(engine: Stepping, inbox: Inbox, outbox: Outbox) -> None:
    """Step while there is work and sleep while there is none, until the client has gone.

    All that waits is heard between two steps, so that an abort frees its pages before the next one.
    """
    while True:
        while not engine.busy or not inbox.empty():
            order = inbox.get()  # sleeps only where there is no work: nobody else takes from the inbox
            if order is None:
                return
            _obey(order, engine, outbox)
        outbox.bring(engine.step())


def _serve(inbox: Inbox, outbox: Outbox, build: Build) -> int:
    order = inbox.get()
    if order is None:
        return 0
    assert isinstance(order, Load), "the first word is Load"
    logger = logging.getLogger("oneroof")
    logger.addHandler(_Sayer(outbox))
    logger.setLevel(order.level)
    logger.propagate = False
    try:
        engine, ready = build(order, lambda done, total: outbox.post(Loading(done, total)))
    except UserError as error:
        outbox.post(Refused(str(error)))
        outbox.close(_GRACE)
        return 2
    gc.collect()
    gc.freeze()  # a model has many objects that stay: to look through them again and again would cost steps
    outbox.post(ready)
    run(engine, inbox, outbox)
    return 0


def _obey(order: Order, engine: Stepping, outbox: Outbox) -> None:
    match order:
        case Write(key, request):
            _add(key, request, engine, outbox, lambda line: failed(request, line))
        case Read(key, reading):
            _add(key, reading, engine, outbox, lambda line: Vector(reading.index, (), line))
        case Abort(key):
            engine.abort(key)
            outbox.drop(key)
        case Ask(key):
            outbox.post(Told(key, engine.stats()))
        case Load():
            raise AssertionError("Load is the first word alone")


def _add(
    key: int,
    work: Request | Reading,
    engine: Stepping,
    outbox: Outbox,
    failure: Callable[[str], Piece | Vector],
) -> None:
    """Begin `work`; what is wrong with it is its caller's alone."""
    try:
        engine.add(key, work)
    except UserError as error:
        outbox.post(Refused(str(error), key))
    except Exception as fault:  # a bug, but of this request; the others did nothing to deserve it
        traceback.print_exc()
        engine.abort(key)
        outbox.bring([(key, failure(f"it could not be begun: {type(fault).__name__}: {fault}"))])


def _load(order: Load, progress: Callable[[int, int], None]) -> tuple[Stepping, Ready]:
    """The model and its engine. Torch is imported here: the line is read by then, and SIGINT ignored."""
    from oneroof.hub import locate

    locate(order.model, revision=order.revision, hub=order.hub)  # before torch, which takes a second

    from oneroof.device import bind_threads, describe, use_threads
    from oneroof.engine.ranks import assemble_engine, grid_of
    from oneroof.ops.cpu import backend

    if grid_of(order).ranks * order.engines == 1:  # else each rank has its own
        threads = use_threads(order.threads)
        backend.set_threads(threads)
        if order.bind_cpu:
            log.debug(bind_threads(threads))
    made = assemble_engine(order, progress)
    engine, loaded = made.engine, made.engine.loaded
    ready = Ready(
        folder=str(loaded.folder),
        device=describe(loaded.device, backend.threads()),
        dtype=str(loaded.dtype).removeprefix("torch."),
        context=engine.context,
        writes=loaded.model.head is not None,
    )
    return engine, ready


def _receive(line: socket, inbox: Inbox, outbox: Outbox) -> None:
    """Hear the client, also while a step takes long; end the process soon after it has gone, in any case."""
    frames = Frames()
    with suppress(ConnectionError):  # it was killed with something unread
        while data := line.recv(_CHUNK):
            for payload in frames.push(data):
                _hear(payload, inbox, outbox)
    inbox.put(None)
    time.sleep(_GRACE)
    os._exit(0)


def _hear(payload: bytes, inbox: Inbox, outbox: Outbox) -> None:
    """An order that is wrong in itself, such as a token that is no number, is its caller's fault alone."""
    try:
        inbox.put(unpack(payload, orders))
    except (WireError, UserError) as error:
        key = key_of(payload)
        if key is None:
            raise
        outbox.post(Refused(str(error), key))


def _die(fault: BaseException | None) -> int:
    """Say why and end at once: the client learns of it when the line closes, which nothing may delay."""
    try:
        if isinstance(fault, RankLost):
            print(fault, file=sys.stderr)
        else:
            traceback.print_exception(fault)
        sys.stderr.flush()
    finally:
        os._exit(1)


class _Sayer(logging.Handler):
    """Our log goes to the client's, with its level; standard error is left for what others say."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        self._outbox.post(Said(record.levelno, record.getMessage()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
