"""The server's process: a socket, uvicorn with our bounds, the model beside it, and a gentle end."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from oneroof import log
from oneroof.engine.remote import EngineDied
from oneroof.engine.wire import Load
from oneroof.errors import RankLost, UserError
from oneroof.serve.app import make_app
from oneroof.serve.door import Doorman
from oneroof.serve.keys import Keys
from oneroof.serve.limits import Limits
from oneroof.serve.service import Service


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the server is reached, and by whom."""

    host: str
    port: int
    users: Keys
    admins: Keys
    insecure: bool  # an address that others reach is allowed without keys

    @property
    def local(self) -> bool:
        """Nobody but this machine's users is meant."""
        return is_loopback(self.host) and not len(self.users) and not self.insecure

    def check(self) -> None:
        """UserError for an address that others reach where anybody could come in."""
        if not (is_loopback(self.host) or len(self.users) or self.insecure):
            raise UserError(
                f"--host {self.host} was given and no key; 127.0.0.1 is allowed without one; give "
                "--api-key-file FILE, or --insecure where anybody may come in"
            )


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    order: Load,
    names: list[str],
    place: Place,
    limits: Limits,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Serve until a signal ends it. UserError where the model or the address cannot be had; RankLost where
    the engine does not stay.
    """
    place.check()
    listener = _listen(place)
    with listener:
        asyncio.run(_serve(order, names, place, limits, listener, progress))


async def _serve(
    order: Load,
    names: list[str],
    place: Place,
    limits: Limits,
    listener: socket.socket,
    progress: Callable[[int, int], None] | None,
) -> None:
    service = Service(names, limits)
    server = _Server(_config(service, place, limits), service)
    host = f"[{place.host}]" if ":" in place.host else place.host
    address = f"http://{host}:{listener.getsockname()[1]}"

    async def run_model() -> None:
        try:
            await service.open(order, progress)
            await _report(service, place, address, order)
            await service.keep()
        finally:
            server.should_exit = True

    running = asyncio.create_task(run_model())
    try:
        await server.serve([listener])
    finally:
        loading = not running.done()
        if loading:
            running.cancel()
        await service.close()
        with suppress(asyncio.CancelledError):
            try:
                await running
            except EngineDied as error:
                if not loading:
                    raise RankLost(str(error)) from error
    log.info("the server has ended")


async def _report(service: Service, place: Place, address: str, order: Load) -> None:
    """What was chosen, once it serves."""
    said, stats, options = service.said, await service.stats(), order.options
    assert said is not None
    log.info(f"{said.folder} on {said.device} in {said.dtype}; {said.context} tokens of context at most")
    if stats is not None:
        log.info(
            f"the cache holds {stats.pages * options.page_size} tokens; {options.max_batch} texts are "
            f"written at a time, and {service.limits.queue} may wait"
        )
    kinds = "text, embeddings and scores" if said.writes else "embeddings alone: the model has no head"
    log.info(f"it gives {kinds}; requests call it {' or '.join(service.names)}")
    users = f"with one of {len(place.users)} keys" if len(place.users) else "without a key"
    log.info(f"ready at {address} {users}; {address}/v1 is the base for OpenAI's clients")
    if not len(place.users) and not is_loopback(place.host):
        log.warning("anybody who reaches this address may use the model")


def _listen(place: Place) -> socket.socket:
    """The socket, before anything is loaded."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        listener = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {place.host} is no address here ({error}); 127.0.0.1 is allowed; try that"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(min(2048, socket.SOMAXCONN))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UserError(
            f"--port {place.port} of {place.host} cannot be had ({error.strerror}); a free one is allowed; "
            "try another, or 0 for any"
        ) from None
    return listener


def _config(service: Service, place: Place, limits: Limits) -> uvicorn.Config:
    def protocol(*words: Any, **named: Any) -> _Protocol:
        return _Protocol(*words, head_seconds=limits.head_seconds, **named)

    return uvicorn.Config(
        make_app(service, Doorman(place.users, place.admins, local=place.local)),
        http=protocol,  # type: ignore[arg-type]  # it is called as the class would be
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # `Entrance` tells what fails
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
        h11_max_incomplete_event_size=limits.head,
    )


class _Server(uvicorn.Server):
    """The first signal drains, the second ends at once; neither is an error."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals come to us while it serves."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _asked(self) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        self._service.draining = True
        self.should_exit = True
        if left := self._service.under_way:
            texts = "1 text is" if left == 1 else f"{left} texts are"
            log.info(f"ending: {texts} still written; once more to end at once")


class _Protocol(H11Protocol):
    """A connection whose requests have to show their heads in time."""

    def __init__(self, *words: Any, head_seconds: float, **named: Any) -> None:
        super().__init__(*words, **named)
        self._head_seconds = head_seconds
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection begins, and waits for its first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Some of a head, or of a body."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._due is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._due = self.loop.call_later(self._head_seconds, self._late)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        self.transport.close()
