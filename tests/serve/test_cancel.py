"""A client that goes away frees its pages within a step; one that reads slowly holds up nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from served import Served

LONG = {"prompt": "ab", "max_tokens": 1000, "ignore_eos": True, "n": 2}


class Caller:
    """An ASGI client that leaves when it has seen enough."""

    def __init__(self, path: str, body: object) -> None:
        headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
        }
        self.scope |= {
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "http_version": "1.1",
        }
        self.scope |= {
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "root_path": "",
            "asgi": {"version": "3.0"},
        }
        self._body: bytes | None = json.dumps(body).encode()
        self.left = asyncio.Event()
        self.sent: list[Any] = []
        self.slow: float = 0

    async def receive(self) -> Any:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await asyncio.sleep(self.slow)


async def until(true: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", LONG),
        ("/v1/completions", LONG | {"prompt": ["ab", "cd", "ef"]}),
        ("/v1/completions", LONG | {"max_tokens": 20, "logprobs": 1, "prompt": ["ab"] * 60, "n": 1}),
        (
            "/v1/chat/completions",
            {k: v for k, v in LONG.items() if k != "prompt"}
            | {"messages": [{"role": "user", "content": "a"}]},
        ),
    ],
    ids=["one", "several", "many", "chat"],
)
def test_a_client_that_leaves_frees_its_pages(
    server: Served, path: str, body: dict[str, object], stream: bool
) -> None:
    async def leave() -> None:
        before = await server.service.stats()
        caller = Caller(path, body | {"stream": stream})
        task = asyncio.ensure_future(server.app(caller.scope, caller.receive, caller.send))
        if stream and "logprobs" not in body:
            await until(lambda: len(caller.sent) > 3)
        else:
            await until(lambda: server.service.under_way > 0)
            await asyncio.sleep(0.05)
        running = await server.service.stats()
        caller.left.set()
        await asyncio.wait_for(task, 5)
        after = await server.service.stats()  # asked behind the aborts, so it is told when they are done
        assert before and running and after
        assert running.pages_free + running.pages_cached < running.pages
        assert after.pages_free + after.pages_cached == after.pages
        assert after.running == after.waiting == 0
        assert after.aborted > before.aborted
        assert server.service.under_way == 0

    server.run(leave())


def test_a_client_that_leaves_with_vectors_under_way(server: Served) -> None:
    async def leave() -> None:
        caller = Caller("/v1/embeddings", {"input": ["a b c " * 50] * 400})
        task = asyncio.ensure_future(server.app(caller.scope, caller.receive, caller.send))
        await until(lambda: server.service.under_way > 0)
        await asyncio.sleep(0.05)
        caller.left.set()
        await asyncio.wait_for(task, 5)
        stats = await server.service.stats()
        assert stats is not None
        assert stats.running == stats.waiting == server.service.under_way == 0

    server.run(leave())


def test_a_slow_reader_holds_up_nobody(server: Served) -> None:
    async def both() -> None:
        caller = Caller("/v1/completions", LONG | {"stream": True, "max_tokens": 300})
        caller.slow = 0.5
        task = asyncio.ensure_future(server.app(caller.scope, caller.receive, caller.send))
        await until(lambda: len(caller.sent) > 1)
        body = {"prompt": "cd", "max_tokens": 50, "ignore_eos": True}
        await asyncio.wait_for(server.client.post("/v1/completions", json=body), 5)
        assert len(caller.sent) < 20
        caller.slow = 0
        await asyncio.wait_for(task, 20)
        data = b"".join(m.get("body", b"") for m in caller.sent).decode().split("\n\n")
        texts = [json.loads(d[6:])["choices"][0] for d in data if d.startswith("data: {")]
        assert {t["finish_reason"] for t in texts if t["finish_reason"]} == {"length"}

    server.run(both())
