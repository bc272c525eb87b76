"""What is sent does not make the sender wait, and what cannot be sent costs its own request alone."""

from __future__ import annotations

import threading
import time
from socket import socket, socketpair

import pytest
from standin import ask

from oneroof.engine import wire
from oneroof.engine.outbox import Outbox, failed
from oneroof.engine.request import Completion, Logprob, Output, Piece, Vector
from oneroof.engine.wire import Events, Frames, Reply, Said, replies, unpack


def heard(line: socket) -> list[Reply]:
    """All that comes until the other end closes."""
    frames, found = Frames(), []
    while data := line.recv(2**16):
        found += [unpack(payload, replies) for payload in frames.push(data)]
    frames.finish()
    return found


def all_sent(outbox: Outbox, ours: socket, theirs: socket) -> list[Reply]:
    found: list[Reply] = []
    reader = threading.Thread(target=lambda: found.extend(heard(theirs)))
    reader.start()
    outbox.close(10.0)
    ours.close()
    reader.join(10.0)
    theirs.close()
    return found


def test_replies_and_events_arrive() -> None:
    ours, theirs = socketpair()
    outbox = Outbox(ours)
    piece, vector = Piece(0, 0, "a", (1,), None, None), Vector(1, (0.5,))
    outbox.post(Said(20, "hello"))
    outbox.bring([(1, piece), (2, vector)])
    found = all_sent(outbox, ours, theirs)
    assert found[0] == Said(20, "hello")
    assert [p for f in found if isinstance(f, Events) for p in f.pieces] == [(1, piece)]
    assert [v for f in found if isinstance(f, Events) for v in f.vectors] == [(2, vector)]


def test_nobody_waits_for_a_reader_who_does_not_read() -> None:
    ours, theirs = socketpair()
    outbox = Outbox(ours)
    outbox.post(Said(0, "x" * 2**22))  # more than the socket holds: all else waits behind it
    time.sleep(0.1)
    began = time.perf_counter()
    for i in range(20_000):
        outbox.bring([(key, Piece(0, 0, f"{i} ", (i,), None, None)) for key in (1, 2)])
    assert time.perf_counter() - began < 5.0
    found = [f for f in all_sent(outbox, ours, theirs) if isinstance(f, Events)]
    for key in (1, 2):
        came = [piece for f in found for k, piece in f.pieces if k == key]
        assert len(came) <= 2  # joined, while they waited
        assert "".join(p.text for p in came) == "".join(f"{i} " for i in range(20_000))
        assert [t for p in came for t in p.token_ids] == list(range(20_000))


def test_what_is_dropped_is_not_sent() -> None:
    ours, theirs = socketpair()
    outbox = Outbox(ours)
    outbox.post(Said(0, "x" * 2**22))  # more than the socket holds: all else waits behind it
    time.sleep(0.1)
    outbox.bring([(key, Piece(0, 0, "a", (1,), None, None)) for key in (1, 2)])
    outbox.drop(1)
    found = all_sent(outbox, ours, theirs)
    assert [key for f in found if isinstance(f, Events) for key, _ in f.pieces] == [2]


def test_an_output_too_large_to_send_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LIMIT", 4000)
    ours, theirs = socketpair()
    outbox = Outbox(ours)
    outbox.post(Said(0, "x" * 3000))
    shares = {t: Logprob(-1.0, t + 1, "token") for t in range(500)}
    completion = Completion("text", (3,), "stop", None, (shares,))
    large = Piece(4, 0, "text", (3,), "stop", Output(4, None, (1,), (completion,), (None, shares)))
    small = [(key, Piece(key, 0, "é" * 300, (1,), None, None)) for key in range(20)]
    outbox.bring([*small, (99, large), (98, Vector(5, (0.25,) * 1000)), (97, Vector(6, (0.25,)))])
    found = [f for f in all_sent(outbox, ours, theirs) if isinstance(f, Events)]
    pieces = dict(p for f in found for p in f.pieces)
    vectors = dict(v for f in found for v in f.vectors)
    assert [pieces[key] for key in range(20)] == [piece for _, piece in small]
    output = pieces[99].output
    assert output is not None
    assert (pieces[99].finish_reason, output.finish_reason, output.text) == ("error", "error", "text")
    assert "at most 4000" in str(output.completions[0].error)
    assert "at most 4000" in str(vectors[98].error)
    assert vectors[97] == Vector(6, (0.25,))


def test_a_client_who_has_gone_is_no_error() -> None:
    ours, theirs = socketpair()
    outbox = Outbox(ours)
    theirs.close()
    outbox.post(Said(0, "hello"))
    outbox.close(5.0)
    ours.close()


def test_a_request_that_cannot_begin_ends_with_an_output() -> None:
    piece = failed(ask("a", n=3), "the reason")
    assert piece.output is not None
    assert [(c.finish_reason, c.error) for c in piece.output.completions] == [("error", "the reason")] * 3
    assert (piece.index, piece.number, piece.finish_reason) == (0, 2, "error")
