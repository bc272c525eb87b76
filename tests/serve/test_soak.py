"""Many clients, some of whom leave: then the server is as it was, and every answer is what it is alone."""

from __future__ import annotations

import asyncio
import random
import re
import time
from pathlib import Path

import httpx
import pytest
from served import events, started

SECONDS = 20
CLIENTS = 24


@pytest.mark.slow
def test_answers_under_load_are_those_alone_and_nothing_is_left(model: Path) -> None:
    with started(model, key=False) as process:
        path = f"{process.url}/v1/completions"

        def body(number: int) -> dict[str, object]:
            size = 5 + number * 7 % 60
            return {"prompt": f"{number} upon " * (1 + number % 5), "max_tokens": size, "temperature": 0}

        alone = [httpx.post(path, json=body(i), timeout=60).json()["choices"][0]["text"] for i in range(20)]
        wrong, answered, left = list[int](), 0, 0

        async def client(rng: random.Random, http: httpx.AsyncClient, due: float) -> None:
            nonlocal answered, left
            while time.monotonic() < due:
                number, leaves = rng.randrange(20), rng.random() < 0.4
                async with http.stream("POST", path, json=body(number) | {"stream": True}) as answer:
                    text = ""
                    async for piece in answer.aiter_text():
                        text += piece
                        if leaves and rng.random() < 0.3:
                            left += 1
                            break
                    else:
                        answered += 1
                        told = "".join(chunk["choices"][0]["text"] for chunk in events(text))
                        wrong.extend([number] * (told != alone[number]))

        async def all_clients() -> None:
            async with httpx.AsyncClient(timeout=120) as http:
                due = time.monotonic() + SECONDS
                await asyncio.gather(*(client(random.Random(i), http, due) for i in range(CLIENTS)))

        asyncio.run(all_clients())
        assert not wrong
        assert answered > 20 and left > 20
        time.sleep(0.5)
        text = httpx.get(f"{process.url}/metrics").text
        for name in ("cache_pages_used", "requests_running", "requests_waiting", "requests_failed_total"):
            [value] = re.findall(rf"^oneroof_{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
            assert float(value) == 0, name
