"""The engine's process steps while there is work, hears everybody in between, and ends with its client."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import standin
from standin import Standin, ask

from oneroof import device
from oneroof.engine.engine import Engine
from oneroof.engine.options import EngineOptions
from oneroof.engine.outbox import Outbox
from oneroof.engine.request import Reading, Request, SamplingParams, Vector
from oneroof.engine.wire import (
    Abort,
    Ask,
    Events,
    Frames,
    Load,
    Order,
    Read,
    Ready,
    Refused,
    Reply,
    Said,
    Told,
    Write,
    orders,
    pack,
    replies,
    unpack,
)
from oneroof.engine.worker import Inbox, _load, run
from oneroof.layers.format import Rows
from oneroof.ops.cpu import backend
from oneroof.quant.format import Kept


class Process:
    """A worker with the stand-in for an engine, and our end of its socket."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        self.line.settimeout(10.0)
        self.frames = Frames()
        self.pending: list[bytes] = []
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, standin.__file__, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def say(self, *orders: Order) -> None:
        self.line.sendall(b"".join(pack(order) for order in orders))

    def hear(self) -> Reply | None:
        """The next reply that is no progress and no log; None where the line has ended."""
        while True:
            while not self.pending:
                data = self.line.recv(2**16)
                if not data:
                    return None
                self.pending += self.frames.push(data)
            reply = unpack(self.pending.pop(0), replies)
            if type(reply).__name__ not in ("Loading", "Said"):
                return reply

    def end(self) -> tuple[int, str]:
        """Its status and what it said on standard error."""
        said, _ = self.process.communicate(timeout=10.0)
        return self.process.returncode, said


@pytest.fixture
def process() -> Iterator[Process]:
    found = Process()
    yield found
    found.process.kill()
    found.line.close()
    found.process.communicate()


@pytest.fixture
def ready(process: Process) -> Process:
    process.say(Load(model="any"))
    assert isinstance(process.hear(), Ready)
    return process


def talk(orders: list[Order | None], until: int) -> tuple[Standin, list[Reply]]:
    """`run` a stand-in over `orders`, all there at once, until so many replies have come."""
    ours, theirs = socket.socketpair()
    engine, outbox = Standin(), Outbox(ours)
    inbox: Inbox = SimpleQueue()
    for order in orders:
        inbox.put(order)
    thread = threading.Thread(target=run, args=(engine, inbox, outbox))
    thread.start()
    frames, found = Frames(), []
    theirs.settimeout(10.0)
    while len(found) < until:
        found += [unpack(p, replies) for p in frames.push(theirs.recv(2**16))]
    inbox.put(None)
    thread.join(10.0)
    assert not thread.is_alive()
    ours.close()
    theirs.close()
    return engine, found


def test_all_that_waits_is_heard_before_the_next_step() -> None:
    orders: list[Order | None] = [Write(1, ask("a", 5)), Write(2, ask("a", 5)), Abort(1), Abort(2), Ask(3)]
    engine, found = talk(orders, 1)
    assert engine.calls == ["add 1", "add 2", "abort 1", "abort 2"]  # no step was made for who has left
    assert found == [Told(3, engine.stats())]


def test_a_refusal_is_its_callers_alone() -> None:
    engine, found = talk([Write(1, ask("refuse")), Write(2, ask("odd", n=2)), Write(3, ask("a"))], 2)
    assert found[0] == Refused("prompt 0 is refused; others are allowed; try another", 1)
    pieces = dict(p for f in found if isinstance(f, Events) for p in f.pieces)
    assert pieces[2].output is not None
    assert pieces[2].output.completions[1].error == "it could not be begun: KeyError: 'odd'"
    assert pieces[3].output is not None
    assert pieces[3].output.text == "1 "
    assert "abort 2" in engine.calls  # nothing of it is left


def test_a_reading_brings_a_vector() -> None:
    _, found = talk([Read(1, Reading(4, (1, 2)))], 1)
    assert found == [Events([], [(1, Vector(4, (0.5,)))])]


def test_without_work_nothing_is_stepped() -> None:
    inbox: Inbox = SimpleQueue()
    ours, theirs = socket.socketpair()
    engine = Standin()
    thread = threading.Thread(target=run, args=(engine, inbox, Outbox(ours)))
    thread.start()
    began = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - began < 0.1
    inbox.put(None)
    thread.join(10.0)
    assert engine.calls == []
    ours.close()
    theirs.close()


def test_the_events_of_one_step_are_one_message(ready: Process) -> None:
    ready.say(*(Write(key, ask("a")) for key in range(50)))
    keys: list[int] = []
    messages = 0
    while len(keys) < 50:
        reply = ready.hear()
        assert isinstance(reply, Events)
        keys += [key for key, _ in reply.pieces]
        messages += 1
    assert sorted(keys) == list(range(50))
    assert messages < 10  # orders that came while others were begun made steps of their own


@pytest.mark.parametrize("bind", [True, False])
def test_it_is_bound_as_the_commands_are(monkeypatch: pytest.MonkeyPatch, bind: bool) -> None:
    bound: list[int] = []
    monkeypatch.setattr(device, "use_threads", lambda threads: 3)
    monkeypatch.setattr(device, "bind_threads", lambda threads: bound.append(threads) or "bound")
    shared: list[int] = []
    monkeypatch.setattr(backend, "set_threads", shared.append)
    order = Load(model="demo", device="cpu", bind_cpu=bind, options=EngineOptions(kv_memory=0.002))
    _, ready = _load(order, lambda done, total: None)
    assert ready.writes
    assert bound == ([3] if bind else [])
    assert shared[0] == 3  # of the native kernels
    assert Load(model="demo").bind_cpu


def test_the_form_of_weights_and_cache_goes_through() -> None:
    options = EngineOptions(kv_memory=0.002, kv="kv8")
    order = unpack(pack(Load(model="demo", device="cpu", quantization="w4a16", options=options))[8:], orders)
    assert isinstance(order, Load) and order.options.kv == "kv8"
    engine, _ = _load(order, lambda done, total: None)
    assert isinstance(engine, Engine)
    assert engine.runner.cache.scales is not None
    rows = engine.loaded.model.tensors()["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(rows, Rows) and isinstance(rows.format, Kept)
    assert rows.format.matrix.kind == "int4"


def test_ctrl_c_is_the_clients(ready: Process) -> None:
    ready.process.send_signal(signal.SIGINT)
    ready.say(Ask(1))
    assert isinstance(ready.hear(), Told)


def test_it_ends_when_the_line_does(ready: Process) -> None:
    ready.line.close()
    assert ready.end()[0] == 0


@pytest.mark.parametrize("model", ["any", "sleep"])
def test_it_ends_within_a_step_or_loading_that_takes_long(process: Process, model: str) -> None:
    process.say(Load(model=model), Write(1, ask("sleep")))
    if model == "any":
        assert isinstance(process.hear(), Ready)
    time.sleep(0.2)
    process.line.close()
    began = time.monotonic()
    assert process.end()[0] == 0
    assert time.monotonic() - began < 1.5


def test_a_bug_in_a_step_ends_it_with_a_traceback(ready: Process) -> None:
    ready.say(Write(1, ask("bug")))
    assert ready.hear() is None
    status, said = ready.end()
    assert status == 1
    assert said.rstrip().endswith("RuntimeError: the bug itself")


def test_a_bug_in_loading_does_too_and_a_refusal_is_a_message(process: Process) -> None:
    process.say(Load(model="bug"))
    assert process.hear() is None
    assert "no memory left" in process.end()[1]
    other = Process()
    other.say(Load(model="missing"))
    assert other.hear() == Refused("missing is no model; others are allowed; try another")
    assert other.end() == (2, "")
    other.line.close()


def test_foreign_bytes_are_a_clear_error(ready: Process) -> None:
    ready.line.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert ready.hear() is None
    status, said = ready.end()
    assert status == 1
    assert said.rstrip().endswith("WireError: b'GET ' came where a frame begins with b'1RF2'")


def test_an_order_that_is_wrong_in_itself_is_refused_alone(ready: Process) -> None:
    wrong = Request(0, None, (True,), SamplingParams(), frozenset(), 0, 1)
    ready.say(Write(1, wrong), Write(2, ask("a")))
    found = {type(reply): reply for reply in (ready.hear(), ready.hear())}
    refused = found[Refused]
    assert isinstance(refused, Refused)
    assert refused.key == 1
    assert "token_ids" in refused.line
    assert Events in found


def test_its_log_goes_to_the_client_by_level(process: Process) -> None:
    process.say(Load(model="any", level=30))
    process.line.settimeout(10.0)
    found: list[Reply] = []
    while not any(isinstance(r, Ready) for r in found):
        found += [unpack(p, replies) for p in process.frames.push(process.line.recv(2**16))]
    assert [r for r in found if isinstance(r, Said)] == [Said(30, "a word of warning")]


def test_nobody_is_orphaned_when_the_client_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from oneroof.engine.child import Child; from oneroof.engine.wire import *; "
        "import oneroof.engine.child as c, standin; c.PROGRAM = (sys.executable, standin.__file__); "
        "child = Child(lambda: None); child.socket.sendall(pack(Load(model='any'))); "
        "child.socket.recv(1); print(child.pid, flush=True); time.sleep(60)"
    )
    search = {"PYTHONPATH": f"{Path(standin.__file__).parent}:{Path(__file__).parents[2] / 'src'}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=search, cwd=tmp_path
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert running(pid)
    parent.kill()
    parent.communicate()
    began = time.monotonic()
    while running(pid) and time.monotonic() - began < 5.0:
        time.sleep(0.02)
    assert not running(pid)


def running(pid: int) -> bool:
    """There is such a process, and it is more than an entry that nobody has collected."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
