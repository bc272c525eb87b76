"""A stream says what a whole answer says."""

from __future__ import annotations

import random
from typing import Any

import pytest
from served import Served

WORDS = ("a", " the", "é", "日本", "😀", "\n", " upon", "<think>", "0", "ß")


def asked(rng: random.Random) -> dict[str, object]:
    """Sampling that makes all sorts of texts, of which some are stopped by strings."""
    body: dict[str, object] = {"seed": rng.randrange(1 << 30), "temperature": rng.choice((0.0, 0.7, 1.5))}
    body["n"] = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.5:
        body["stop"] = rng.sample([chr(rng.randrange(97, 123)) for _ in range(8)] + ["\ufffd", "é", " t"], 2)
    if rng.random() < 0.3:
        body["presence_penalty"], body["repetition_penalty"] = 0.5, 1.1
    if rng.random() < 0.3:
        body["ignore_eos"] = True
    return body


def text(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 6)))


def joined_chat(chunks: list[Any]) -> tuple[list[Any], Any]:
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        usage = chunk["usage"] or usage
        for choice in chunk["choices"]:
            made = choices.setdefault(
                choice["index"],
                {"message": {"role": None, "content": ""}, "logprobs": None, "finish_reason": None},
            )
            delta = choice["delta"]
            made["message"]["role"] = delta.get("role", made["message"]["role"])
            made["message"]["content"] += delta.get("content", "")
            made["finish_reason"] = choice["finish_reason"] or made["finish_reason"]
            made["logprobs"] = choice["logprobs"] or made["logprobs"]
    return [{"index": i, **choices[i]} for i in sorted(choices)], usage


@pytest.mark.parametrize("seed", range(25))
def test_a_chat_streams_what_it_says_at_once(server: Served, seed: int) -> None:
    rng = random.Random(seed)
    body = asked(rng) | {
        "messages": [{"role": "user", "content": text(rng)}],
        "max_tokens": rng.randrange(1, 30),
    }
    if rng.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": rng.randrange(3)}
    whole = server.post("/v1/chat/completions", body).json()
    choices, usage = joined_chat(
        server.chunks("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    )
    assert choices == whole["choices"]
    for numbers in (usage, whole["usage"]):
        numbers.pop("prompt_tokens_details")  # the second is cached
    assert usage == whole["usage"]


@pytest.mark.parametrize("seed", range(25))
def test_texts_stream_what_they_say_at_once(server: Served, seed: int) -> None:
    rng = random.Random(1000 + seed)
    body = asked(rng) | {
        "prompt": [text(rng) for _ in range(rng.randrange(1, 4))],
        "echo": rng.random() < 0.4,
    }
    body["max_tokens"] = rng.randrange(1, 30)
    if rng.random() < 0.3:
        body["logprobs"] = rng.randrange(3)
    whole = server.post("/v1/completions", body).json()
    choices: dict[int, dict[str, Any]] = {}
    for chunk in server.chunks("/v1/completions", body):
        [choice] = chunk["choices"]
        made = choices.setdefault(choice["index"], choice | {"text": ""})
        made["text"] += choice["text"]
        made["finish_reason"] = choice["finish_reason"] or made["finish_reason"]
    assert [choices[i] for i in sorted(choices)] == whole["choices"]


def test_usage_comes_last_or_with_every_chunk(server: Served) -> None:
    body = {"prompt": "ab", "max_tokens": 4, "ignore_eos": True}
    plain = server.chunks("/v1/completions", body)
    assert all("usage" not in chunk for chunk in plain)
    last = server.chunks("/v1/completions", body | {"stream_options": {"include_usage": True}})
    assert [chunk["usage"] is None for chunk in last] == [True] * (len(last) - 1) + [False]
    assert last[-1]["choices"] == []
    assert last[-1]["usage"]["completion_tokens"] == 4
    each = {"include_usage": True, "continuous_usage_stats": True}
    assert all(chunk["usage"] for chunk in server.chunks("/v1/completions", body | {"stream_options": each}))
