"""A reply's reasoning and calls are parts of its message, streamed and whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from served import Served

from oneroof.load import Front, read_front
from oneroof.serve.parts import Delta, Schemas, message, parts_of

CALL = (
    '<tool_call>\n{"name": "look", "arguments": {"place": "日本 </tool_call>", "days": [1, 2]}}\n</tool_call>'
)
TEXT = f"<think>\nSo they want 😀.\n</think>\n\nI look.\n{CALL}\n{CALL}"
SCHEMAS: Schemas = {"look": {"type": "object"}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def front(model: Path) -> Front:
    return read_front(model)


def deltas(front: Front, pieces: list[str], schemas: Schemas = SCHEMAS) -> list[Delta]:
    parts = parts_of(front, [1, 2], schemas, lambda index: f"call_{index}")
    return [delta for piece in pieces for delta in parts.push(piece)] + parts.finish()


def test_reasoning_and_calls_are_parts(front: Front) -> None:
    made = message(deltas(front, [TEXT]))
    assert made["reasoning_content"] == "So they want 😀."
    assert made["content"] == "I look."
    calls = made["tool_calls"]
    assert isinstance(calls, list)
    assert [call["id"] for call in calls] == ["call_0", "call_1"]
    for call in calls:
        assert call["type"] == "function"
        assert call["function"]["name"] == "look"
        assert json.loads(call["function"]["arguments"]) == {"place": "日本 </tool_call>", "days": [1, 2]}


def test_a_message_does_not_depend_on_how_its_text_was_cut(front: Front) -> None:
    whole = message(deltas(front, [TEXT]))
    for at in range(1, len(TEXT)):
        assert message(deltas(front, [TEXT[:at], TEXT[at:]])) == whole
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(
            rng.choice([TEXT, "<think>", "</think>", CALL, CALL[:30], "a", "\n", "é"]) for _ in range(3)
        )
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(6))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert message(deltas(front, pieces)) == message(deltas(front, [text]))


def test_without_tools_a_call_is_content(front: Front) -> None:
    made = message(deltas(front, [CALL], {}))
    assert made == {"role": "assistant", "content": CALL}


def test_why_a_message_ended_tells_of_calls(front: Front) -> None:
    for text, reason, told in (
        (CALL, "stop", "tool_calls"),
        (CALL, "length", "length"),
        ("a", "stop", "stop"),
    ):
        parts = parts_of(front, [1], SCHEMAS, str)
        parts.push(text)
        parts.finish()
        assert parts.reason(reason) == told


def test_thinking_that_the_prompt_opens_is_reasoning(front: Front) -> None:
    prompt = front.text().encode("<|im_start|>assistant\n<think>\n", special=True)
    parts = parts_of(front, prompt, {}, str)
    made = message([*parts.push("so\n</think>\n\nYes"), *parts.finish()])
    assert made == {"role": "assistant", "reasoning_content": "so", "content": "Yes"}


def tokens(server: Served, body: dict[str, Any]) -> int:
    answer = server.post(CHAT, {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]} | body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


def test_tools_are_shown_to_the_model_unless_none_may_be_called(server: Served) -> None:
    plain = tokens(server, {})
    assert tokens(server, {"tools": [TOOL]}) > plain
    assert tokens(server, {"tools": [TOOL], "tool_choice": "none"}) == plain


def test_calls_and_their_results_go_back_to_the_model(server: Served) -> None:
    called = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"place": "a"}'}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    before = tokens(server, {"messages": messages, "tools": [TOOL]})
    messages.append({"role": "assistant", "content": None, "tool_calls": [called]})
    messages.append({"role": "tool", "tool_call_id": "call_0", "content": "rain"})
    assert tokens(server, {"messages": messages, "tools": [TOOL]}) > before
