"""The command itself, with real sockets, signals and clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import KEY, SMALL, Process, events, started

HEADERS = {"authorization": f"Bearer {KEY}"}
LONG = {"prompt": "ab", "max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def process(model: Path) -> Iterator[Process]:
    with started(
        model, "--limits.head-seconds", "1", "--limits.body-seconds", "1", "--limits.idle-seconds", "1"
    ) as found:
        yield found
        assert found.end() == 0
        assert "the server has ended" in found.said[-1]


def get(process: Process, path: str, **more: Any) -> httpx.Response:
    return httpx.get(process.url + path, headers=HEADERS, timeout=30, **more)


def pages(process: Process) -> tuple[float, float]:
    """Pages that are held, and texts that wait or run."""
    text = get(process, "/metrics").text
    found = {n: float(v) for n, v in re.findall(r"^(oneroof_\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}
    busy = found["oneroof_requests_running"] + found["oneroof_requests_waiting"]
    return found["oneroof_cache_pages_used"], busy


def test_openais_own_client_is_served(process: Process) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0)
    name = client.models.list().data[0].id
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"model": name, "messages": messages, "max_tokens": 10, "temperature": 0, "seed": 3}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    completion = client.completions.create(model=name, prompt="ab", max_tokens=5, echo=True, logprobs=1)
    assert completion.choices[0].text.startswith("ab")
    vectors = client.embeddings.create(model=name, input=["a", "b"])
    assert len(vectors.data) == 2 and isinstance(vectors.data[0].embedding[0], float)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked | {"model": "gpt-4"})
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    client.chat.completions.create(**asked, tools=[tool])
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(**asked, tools=[tool], tool_choice="required")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{process.url}/v1", api_key="wrong", max_retries=0).models.list()


def freed(process: Process) -> bool:
    due = time.monotonic() + 20
    while pages(process) != (0, 0):
        if time.monotonic() > due:
            return False
        time.sleep(0.05)
    return True


def test_a_connection_that_breaks_frees_its_pages(process: Process) -> None:
    path = f"{process.url}/v1/completions"
    with httpx.stream("POST", path, json=LONG | {"stream": True}, headers=HEADERS, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert pages(process)[0] > 0
    assert freed(process)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(path, json=LONG | {"n": 8}, headers=HEADERS, timeout=httpx.Timeout(30, read=0.3))
    assert freed(process)


def test_request_ids_go_there_and_back(process: Process) -> None:
    answer = httpx.get(f"{process.url}/v1/models", headers=HEADERS | {"x-request-id": "my-id.7"})
    assert answer.headers["x-request-id"] == "my-id.7"
    other = httpx.get(f"{process.url}/v1/models", headers=HEADERS | {"x-request-id": "no good\tid"})
    assert re.fullmatch("[0-9a-f]{24}", other.headers["x-request-id"])
    told = [json.loads(line.partition("access ")[2]) for line in process.said if "my-id.7" in line]
    assert [(one["status"], one["path"], one["key"]) for one in told] == [(200, "/v1/models", "key1")]


def raw(process: Process, data: bytes, seconds: float = 5) -> bytes:
    """What comes back for these bytes until the connection is closed."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=seconds) as line:
        line.sendall(data)
        found = b""
        while data := line.recv(65536):
            found += data
        return found


def test_a_head_that_does_not_end_is_not_waited_for(process: Process) -> None:
    for begin in (b"", b"GET /health HTTP/1.1\r\nhost: a\r\nx-slow: "):
        began = time.monotonic()
        raw(process, begin)
        assert 0.5 < time.monotonic() - began < 4


def test_a_body_that_does_not_come_is_not_waited_for(process: Process) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
    answer = raw(process, f"{head}content-type: application/json\r\ncontent-length: 99\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\n" + b"x: a\r\n" * 20_000 + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http://evil/health/../v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET /health/%2e%2e/v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET /v1/models%00 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ],
)
def test_a_head_that_is_none_is_refused(process: Process, head: bytes) -> None:
    answer = raw(process, head)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer[:200]
    assert get(process, "/v1/models").status_code == 200


def test_a_server_that_is_told_to_end_ends_its_answers_first(model: Path) -> None:
    with started(model, key=False) as process:
        found: list[str] = []

        def read() -> None:
            body = LONG | {"stream": True, "max_tokens": 600}
            with httpx.stream("POST", f"{process.url}/v1/completions", json=body, timeout=30) as answer:
                found.extend(answer.iter_text())

        reader = threading.Thread(target=read)
        reader.start()
        while not found:
            time.sleep(0.01)
        assert process.end() == 0
        reader.join(30)
        assert events("".join(found))[-1]["choices"][0]["finish_reason"] == "length"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{process.url}/health")


@pytest.mark.slow
def test_an_engine_that_dies_is_started_anew(model: Path) -> None:
    with started(model, key=False) as process:
        children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()
        with httpx.stream(
            "POST", f"{process.url}/v1/completions", json=LONG | {"stream": True}, timeout=30
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(int(children[0]), signal.SIGKILL)
            rest = "\n".join(lines)
        assert "engine_died" in rest
        due = time.monotonic() + 60
        while httpx.get(f"{process.url}/ready").status_code != 200:
            assert time.monotonic() < due
            time.sleep(0.2)
        again = httpx.post(f"{process.url}/v1/completions", json=LONG | {"max_tokens": 3}, timeout=30)
        assert again.status_code == 200
        assert process.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 was given and no key"),
        (("--port", "70000"), "--port 70000"),
        (("--host", "203.0.113.7", "--insecure"), "of 203.0.113.7 cannot be had"),
        (("--engine", "plain"), "--engine plain"),
        (("--dp", "2"), "--dp 2"),
        (("--limits.n", "0"), "--limits.n 0"),
        (("--api-key-file", "/nowhere/keys"), "/nowhere/keys cannot be read"),
        (("--max-model-len", "99999999"), "max_model_len"),
        (("--profile", "/tmp"), "--profile"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(
    model: Path, words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from oneroof.cli.main import main

    assert main(["serve", str(model), "--port", "0", *SMALL, *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert line in said[-1]
    assert said[-1].startswith("oneroof: ")


def test_a_port_that_is_taken_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from oneroof.cli.main import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(model), "--port", port, *SMALL]) == 2
    assert f"--port {port} of 127.0.0.1 cannot be had" in capsys.readouterr().err


def test_help_needs_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    from oneroof.cli.main import main

    assert main(["serve", "--help"]) == 0
    assert "--limits.queue" in capsys.readouterr().out
