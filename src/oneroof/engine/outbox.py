"""What the engine's process has to say, sent by a thread of its own: no step waits for a slow reader."""

from __future__ import annotations

import threading
from dataclasses import replace
from socket import socket

from oneroof.engine.pile import Pile
from oneroof.engine.request import Completion, Output, Piece, Request, Vector
from oneroof.engine.wire import Events, Reply, WireError, pack


class Outbox:
    """Takes replies at once and sends them in time, the events of all steps since the last time in one.

    Pieces that wait are joined: what waits is bounded by the texts, whether anyone reads or not.
    """

    def __init__(self, line: socket) -> None:
        self._line = line
        self._bell = threading.Condition()
        self._replies: list[Reply] = []
        self._pile = Pile()
        self._vectors: list[tuple[int, Vector]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
        self._thread.start()

    def post(self, reply: Reply) -> None:
        """Send `reply`, before the events that wait."""
        with self._bell:
            self._replies.append(reply)
            self._bell.notify()

    def bring(self, events: list[tuple[int, Piece | Vector]]) -> None:
        """Send what a step brought."""
        with self._bell:
            for key, event in events:
                if isinstance(event, Piece):
                    self._pile.add(key, event)
                else:
                    self._vectors.append((key, event))
            self._bell.notify()

    def drop(self, key: int) -> None:
        """Nobody waits for `key` any more."""
        with self._bell:
            self._pile.drop(key)

    def close(self, seconds: float) -> None:
        """Send what waits, within `seconds`, and end."""
        with self._bell:
            self._closing = True
            self._bell.notify()
        self._thread.join(seconds)

    def _send(self) -> None:
        while True:
            with self._bell:
                self._bell.wait_for(lambda: self._closing or self._replies or self._pile or self._vectors)
                replies, self._replies = self._replies, []
                vectors, self._vectors = self._vectors, []
                pieces = self._pile.take()
                if not (replies or vectors or pieces):
                    return  # closing, and all is sent
            frames = [pack(reply) for reply in replies]
            if pieces or vectors:
                frames += _frames(Events(pieces, vectors))
            try:
                self._line.sendall(b"".join(frames))
            except ConnectionError:  # the client is gone; whoever reads the socket sees it too, and ends us
                return


def failed(request: Request, error: str) -> Piece:
    """The only piece of a request that could not be served."""
    completion = Completion("", (), "error", None, None, error)
    output = Output(request.index, request.prompt, request.token_ids, (completion,) * request.params.n, None)
    return Piece(request.index, request.params.n - 1, "", (), "error", output)


def _frames(events: Events) -> list[bytes]:
    """`events` in as few frames as they fit; what fits into none goes as an error of its request alone."""
    try:
        return [pack(events)]
    except WireError as error:
        pieces, vectors = events.pieces, events.vectors
        if len(pieces) + len(vectors) > 1:
            p, v = (len(pieces) + 1) // 2, len(vectors) // 2
            halves = (Events(pieces[:p], vectors[:v]), Events(pieces[p:], vectors[v:]))
            return [frame for half in halves for frame in _frames(half)]
        shorter = [(key, _unsendable(piece, str(error))) for key, piece in pieces]
        return [pack(Events(shorter, [(key, Vector(v.index, (), str(error))) for key, v in vectors]))]


def _unsendable(piece: Piece, error: str) -> Piece:
    """`piece` without what may be huge, log-probabilities above all."""
    output = piece.output
    if output is not None:
        completions = tuple(
            replace(c, logprobs=None, finish_reason="error", error=error) for c in output.completions
        )
        output = replace(output, completions=completions, prompt_logprobs=None)
    return replace(piece, finish_reason="error", output=output)
