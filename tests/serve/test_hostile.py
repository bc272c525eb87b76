"""No request makes the server fail, stall or forget itself: it answers afterwards as it did before."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Served, serving

from oneroof.serve.limits import Limits

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}
HELLO = [{"role": "user", "content": "Hello"}]
PROBE = {"prompt": "the probe", "max_tokens": 5, "temperature": 0, "logprobs": 1}
LIMITS = Limits(body=400_000, queue=8, n=4, prompts=6, stop=4, inputs=8, messages=50, logprob_entries=5000)


@pytest.fixture(scope="module")
def strict(model: Path) -> Iterator[Served]:
    with serving(model, limits=LIMITS) as found:
        yield found


@pytest.fixture(autouse=True)
def unharmed(strict: Served) -> Iterator[None]:
    """Before and after each test the same tokens come, and no page is held."""
    before = strict.post(TEXTS, PROBE).json()["choices"]
    yield
    assert strict.post(TEXTS, PROBE).json()["choices"] == before
    assert strict.idle()


def refused(answer: httpx.Response, *statuses: int) -> str:
    """The message of a refusal in OpenAI's shape."""
    assert answer.status_code in (statuses or (400,)), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer.content) < 3000
    return str(error["message"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nonsense",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"\xff\xfe{}",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "\xed\xa0\x80": 1}',
        b'{"prompt": "a", "\\u0000": 1}',
        b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"prompt": "a", "metadata": ' + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"}",
        b"[" * 100_000,
        b'{"prompt": "a"}{"prompt": "b"}',
        b'{"prompt": "a", "prompt": 5}',
    ],
)
def test_a_body_that_is_no_request_is_refused(strict: Served, content: bytes) -> None:
    refused(strict.post(TEXTS, content=content, headers=JSON))


@pytest.mark.parametrize(
    "field",
    [
        {"n": 5},
        {"n": 10**9},
        {"n": 0},
        {"n": -1},
        {"n": True},
        {"n": "2"},
        {"n": 1.5},
        {"n": 10**30},
        {"max_tokens": -1},
        {"max_tokens": 0},
        {"max_tokens": 10**12},
        {"max_tokens": "all"},
        {"logprobs": 21},
        {"logprobs": -1},
        {"logprobs": True},
        {"prompt_logprobs": 10**6},
        {"logprobs": 20, "max_tokens": 500},
        {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": []},
        {"temperature": None, "top_p": 0},
        {"top_p": 1.01},
        {"top_k": -2},
        {"min_p": 2},
        {"seed": 2**63},
        {"seed": -(2**63) - 1},
        {"seed": 0.5},
        {"stop": ["a"] * 5},
        {"stop": [""]},
        {"stop": ""},
        {"stop": "a" * 300},
        {"stop": [None]},
        {"stop": {"a": 1}},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [10**9]},
        {"stop_token_ids": list(range(300))},
        {"stop_token_ids": ["a"]},
        {"presence_penalty": 3},
        {"frequency_penalty": -9},
        {"repetition_penalty": 0},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_all": True}},
        {"stream": True, "stream_options": []},
        {"echo": 1},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [""]},
        {"prompt": ["a", 1]},
        {"prompt": [-1]},
        {"prompt": [10**9]},
        {"prompt": [1.5]},
        {"prompt": [True]},
        {"prompt": {"a": 1}},
        {"prompt": ["a"] * 7},
        {"prompt": "a " * 5000},
        {"prompt": [1] * 2000},
        {"prompt": ["a"] * 6, "n": 4},
        {"cache_salt": ""},
        {"cache_salt": "a" * 1000},
        {"model": 5},
        {"model": ["tiny"]},
    ],
    ids=lambda field: json.dumps(field)[:50],
)
def test_a_field_that_cannot_be_is_refused(strict: Served, field: dict[str, object]) -> None:
    refused(strict.post(TEXTS, {"prompt": "a", "ignore_eos": True} | field))


@pytest.mark.parametrize(
    "field",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [1]},
        {"messages": [{}]},
        {"messages": [{"role": "user"}] * 51},
        {"messages": [{"role": "wizard", "content": "a"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5, "arguments": {}}}]}]},
        {"tool_choice": "required"},
        {"tools": [{}]},
        {"tools": [1]},
        {"tools": {"a": 1}},
        {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(200)]},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "function"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": False},
        {"tools": [{"function": {"name": "f", "parameters": json.loads('{"a":' * 60 + "1" + "}" * 60)}}]},
        {"tools": [{"function": {"name": "f", "description": "a" * 300_000}}]},
        {"messages": [{"role": 5, "content": "a"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": "a", "__class__": "b"}]},
        {"messages": [{"role": "user", "content": "word " * 5000}]},
        {"top_logprobs": 5},
        {"logprobs": 1},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"enable_thinking": "no"},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"tools": [1]}},
        {"chat_template_kwargs": []},
        {"chat_template_kwargs": {"a": json.loads("[" * 40 + "]" * 40)}},
        {"chat_template_kwargs": {"a": "b" * 20_000}},
        {"chat_template": "{% for i in range(10**9) %}{% endfor %}"},
    ],
    ids=lambda field: json.dumps(field)[:50],
)
def test_a_conversation_that_cannot_be_is_refused(strict: Served, field: dict[str, object]) -> None:
    refused(strict.post(CHAT, {"messages": HELLO, "max_tokens": 2} | field))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {}),
        ("/v1/embeddings", {"input": []}),
        ("/v1/embeddings", {"input": ["a"] * 9}),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**6}),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}),
        ("/v1/embeddings", {"input": [10**9]}),
        ("/v1/embeddings", {"input": "a", "prompt_name": "none"}),
        ("/v1/embeddings", {"input": "a " * 5000}),
        ("/v1/score", {}),
        ("/v1/score", {"text_1": "a"}),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}),
        ("/v1/score", {"text_1": "a", "queries": "b", "text_2": "c"}),
        ("/v1/score", {"text_1": "a", "text_2": []}),
        ("/v1/rerank", {"query": "a", "documents": []}),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 9}),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}),
        ("/v1/rerank", {"query": {"a": 1}, "documents": ["b"]}),
    ],
)
def test_texts_that_cannot_be_read_are_refused(strict: Served, path: str, body: dict[str, object]) -> None:
    refused(strict.post(path, body))


def test_an_oversized_body_is_refused_before_it_is_read(strict: Served) -> None:
    refused(strict.post(TEXTS, content=b"a" * 500_000, headers=JSON), 413)

    async def pieces() -> Any:
        for _ in range(500):
            yield b"a" * 1000

    refused(strict.post(TEXTS, content=pieces(), headers=JSON), 413)


def test_special_tokens_in_a_message_are_plain_text(strict: Served) -> None:
    def count(text: str) -> int:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        return int(strict.post(CHAT, body).json()["usage"]["prompt_tokens"])

    assert count("<|im_end|>") > count("a") + 2


def test_random_bodies_never_fail_the_server(strict: Served) -> None:
    rng = random.Random(5)
    values: list[object] = [
        None,
        True,
        -1,
        0,
        1,
        2**70,
        1.5,
        "",
        "a",
        "\x00",
        "😀" * 50,
        [],
        [[]],
        {},
        {"a": []},
        [1],
    ]
    fields = [
        "prompt",
        "messages",
        "model",
        "max_tokens",
        "temperature",
        "n",
        "stop",
        "seed",
        "logprobs",
        "echo",
    ]
    fields += ["stream", "stream_options", "top_p", "tools", "user", "input", "query", "documents", "text_1"]
    paths = [CHAT, TEXTS, "/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/responses"]
    for _ in range(400):
        body: dict[str, object] = {"prompt": "a", "messages": HELLO, "max_tokens": 2}
        body = {k: v for k, v in body.items() if rng.random() < 0.6}
        body |= {rng.choice(fields): rng.choice(values) for _ in range(rng.randrange(4))}
        answer = strict.post(rng.choice(paths), body)
        assert answer.status_code in (200, 400, 404), (body, answer.text)


def test_a_full_queue_says_when_to_come_again(strict: Served) -> None:
    body = {"prompt": "ab", "max_tokens": 200, "ignore_eos": True, "n": 4}

    async def many() -> list[httpx.Response]:
        return await asyncio.gather(*(strict.client.post(TEXTS, json=body) for _ in range(12)))

    answers = strict.run(many())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            refused(answer, 429)


def test_a_request_that_takes_too_long_is_ended(model: Path) -> None:
    with serving(model, limits=Limits(request_seconds=0.05)) as hasty:
        body = {"prompt": "ab", "max_tokens": 900, "ignore_eos": True}
        refused(hasty.post(TEXTS, body), 408)
        text = hasty.post(TEXTS, body | {"stream": True}).text
        assert '"timeout"' in text and text.endswith("data: [DONE]\n\n")
        assert hasty.idle()


def test_others_are_not_held_up_by_what_is_refused(strict: Served) -> None:
    """A hostile request costs little of the loop's time."""
    deep = b'{"prompt": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"
    wide = json.dumps({"prompt": [1] * 60_000}).encode()
    for content in (deep, wide):
        began = time.perf_counter()
        strict.post(TEXTS, content=content, headers=JSON)
        assert time.perf_counter() - began < 1
