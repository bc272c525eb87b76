"""A server within the test's own process, over a tiny checkpoint whose engine is a process as always."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from oneroof.engine.options import EngineOptions
from oneroof.engine.stats import Stats
from oneroof.engine.wire import Load
from oneroof.serve.app import make_app
from oneroof.serve.door import Doorman
from oneroof.serve.keys import Keys
from oneroof.serve.limits import Limits
from oneroof.serve.service import Service

T = TypeVar("T")

OPTIONS = EngineOptions(kv_memory=0.004, max_batch=8, max_batch_tokens=64)
SERVER = "http://127.0.0.1"
KEY = "a-key-of-the-tests"


@dataclass
class Served:
    """The server and its one client."""

    run: Callable[[Coroutine[Any, Any, Any]], Any]
    service: Service
    app: Any
    client: httpx.AsyncClient

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.run(self.client.get(path, **more))

    def post(self, path: str, body: object = None, **more: Any) -> httpx.Response:
        given = more if body is None else {"json": body, **more}
        return self.run(self.client.post(path, **given))

    def chunks(self, path: str, body: Mapping[str, object]) -> list[Any]:
        """The data of a stream's events; the last is [DONE], and is left out."""
        answer = self.post(path, {**body, "stream": True})
        assert answer.status_code == 200, answer.text
        return events(answer.text)

    def stats(self) -> Stats:
        found = self.run(self.service.stats())
        assert found is not None
        return found

    def idle(self) -> bool:
        """No page is held, and nothing waits or runs."""
        stats = self.stats()
        quiet = not (stats.waiting or stats.running or self.service.under_way)
        return quiet and stats.pages_free + stats.pages_cached == stats.pages


def events(text: str) -> list[Any]:
    """The data of server-sent events."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@contextmanager
def serving(
    model: Path,
    *,
    keys: tuple[str, ...] = (),
    admins: tuple[str, ...] = (),
    limits: Limits | None = None,
    options: EngineOptions = OPTIONS,
    local: bool = False,
) -> Iterator[Served]:
    """A server for `model`, called tiny."""
    with asyncio.Runner() as runner:
        service = Service(["tiny", "alias"], limits or Limits())
        order = Load(model=str(model), device="cpu", dtype="float32", threads=1, options=options)
        runner.run(service.open(order))
        app = make_app(service, Doorman(Keys(keys), Keys(admins), local=local))
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        client = httpx.AsyncClient(transport=transport, base_url=SERVER, timeout=60)
        try:
            yield Served(runner.run, service, app, client)
        finally:
            runner.run(client.aclose())
            runner.run(service.close())


SMALL = ("--device", "cpu", "--dtype", "float32", "--threads", "1", "--kv-memory", "0.004")


@dataclass
class Process:
    """`oneroof serve` under way."""

    popen: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        found = re.search(r"ready at (http://\S+)", "".join(self.said))
        assert found, self.said
        return found[1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(90)


@contextmanager
def started(model: Path, *words: str, key: bool = True) -> Iterator[Process]:
    """A server that is ready."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"ONEROOF_API_KEY": KEY} if key else {})
    command = [sys.executable, "-m", "oneroof", "serve", str(model), "--port", "0", *SMALL, *words]
    popen = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=_src()
    )
    process = Process(popen)
    ready = threading.Event()

    def listen() -> None:
        assert popen.stderr is not None
        for line in popen.stderr:
            process.said.append(line)
            if "ready at" in line:
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert ready.wait(120)
        assert popen.poll() is None, process.said
        yield process
    finally:
        popen.kill()
        popen.wait()


def _src() -> Path:
    return Path(__file__).parents[1] / "src"
