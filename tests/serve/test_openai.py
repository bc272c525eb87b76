"""Answers have OpenAI's shapes, and say what the engine says without a server."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import Served

from oneroof.engine.llm import LLM
from oneroof.engine.request import SamplingParams, defaults

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, device="cpu", dtype="float32", threads=1) as found:
        yield found


def test_a_chat_says_what_the_offline_engine_says(server: Served, llm: LLM) -> None:
    answer = server.post(CHAT, {"messages": HELLO, "max_tokens": 12, "temperature": 0}).json()
    recommended = defaults(llm.front.generation, max_tokens=12)  # the authors', where a request says nothing
    [offline] = llm.chat(HELLO, replace(recommended, temperature=0.0))
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": offline.text}
    assert choice["finish_reason"] == offline.finish_reason
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["usage"]["prompt_tokens"] == len(offline.prompt_token_ids)
    assert answer["usage"]["completion_tokens"] == len(offline.token_ids)


def test_switches_reach_the_template(server: Served, llm: LLM) -> None:
    for given in ({"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}):
        body = {"messages": HELLO, "max_tokens": 4, "temperature": 0}
        usage = server.post(CHAT, body | given).json()["usage"]
        [offline] = llm.chat(HELLO, SamplingParams(max_tokens=4), switches={"enable_thinking": False})
        assert usage["prompt_tokens"] == len(offline.prompt_token_ids)


def test_parts_of_text_are_one_text(server: Served) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    body: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    two = server.post(CHAT, body | {"messages": [HELLO[0], {"role": "user", "content": parts}]})
    one = server.post(CHAT, body | {"messages": HELLO})
    assert two.json()["choices"] == one.json()["choices"]


def test_seeds_and_penalties_are_those_of_the_engine(server: Served, llm: LLM) -> None:
    given: dict[str, Any] = {"seed": 7, "temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01}
    given |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25, "max_tokens": 20}
    answer = server.post(TEXTS, given | {"prompt": "ab cd", "n": 2, "stop": ["q"]}).json()
    [offline] = llm.generate(["ab cd"], SamplingParams(**given, n=2, stop=["q"]))
    told = [(one["text"], one["finish_reason"]) for one in answer["choices"]]
    assert told == [(one.text, one.finish_reason) for one in offline.completions]


def test_prompts_are_texts_or_tokens(server: Served, llm: LLM) -> None:
    ids = llm.front.text().encode("ab cd")
    body = {"max_tokens": 6, "temperature": 0}
    forms = ("ab cd", ids, ["ab cd", "ab cd"], [ids, ids])
    answers = [server.post(TEXTS, body | {"prompt": prompt}).json()["choices"] for prompt in forms]
    assert {one["text"] for choices in answers for one in choices} == {answers[0][0]["text"]}
    assert [one["index"] for one in answers[3]] == [0, 1]


def test_an_echo_has_the_prompts_log_probabilities(server: Served, llm: LLM) -> None:
    """As lm-eval's local-completions asks for them."""
    body = {"prompt": "ab cd", "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    [choice] = server.post(TEXTS, body).json()["choices"]
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1, prompt_logprobs=1)
    [offline] = llm.generate(["ab cd"], params)
    logprobs, ids = choice["logprobs"], offline.prompt_token_ids
    assert choice["text"] == "ab cd" + offline.text
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert offline.prompt_logprobs is not None
    assert offline.logprobs is not None
    expected = [entry and entry[ids[i]].logprob for i, entry in enumerate(offline.prompt_logprobs)]
    assert logprobs["token_logprobs"] == pytest.approx(
        [*expected, offline.logprobs[0][offline.token_ids[0]].logprob]
    )
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    for share, tops in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert share <= max(tops.values())
    for token, offset in zip(logprobs["tokens"][: len(ids)], logprobs["text_offset"], strict=False):
        assert token.startswith("bytes:") or choice["text"][offset:].startswith(token)


def test_an_echo_alone_makes_no_text(server: Served) -> None:
    body = {"prompt": "ab cd", "max_tokens": 0, "logprobs": 0, "echo": True}
    answer = server.post(TEXTS, body).json()
    [choice] = answer["choices"]
    assert choice["text"] == "ab cd"
    assert choice["logprobs"]["text_offset"][0] == 0
    assert answer["usage"]["completion_tokens"] == 0
    assert server.post(TEXTS, body | {"echo": False}).status_code == 400


def test_log_probabilities_of_a_chat(server: Served) -> None:
    body = {"messages": HELLO, "max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    body["repetition_penalty"] = 1.0
    [choice] = server.post(CHAT, body).json()["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == 5
    for place in content:
        assert len(place["top_logprobs"]) == 3
        assert place["logprob"] == place["top_logprobs"][0]["logprob"]
        assert place["token"] == bytes(place["bytes"]).decode("utf-8", "replace")


def test_prompt_log_probabilities_by_vllms_name(server: Served) -> None:
    [choice] = server.post(TEXTS, {"prompt": "ab", "max_tokens": 1, "prompt_logprobs": 2}).json()["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert all(one["rank"] >= 1 for entry in rest for one in entry.values())


def test_vectors_are_those_of_the_offline_engine(server: Served, llm: LLM) -> None:
    answer = server.post("/v1/embeddings", {"input": ["a cat", "a dog"], "model": "alias"}).json()
    offline = llm.embed(["a cat", "a dog"])
    for one, vector in zip(answer["data"], offline, strict=True):
        assert one["embedding"] == pytest.approx(vector, abs=1e-5)
    body = {"input": "a cat", "encoding_format": "base64", "dimensions": 8}
    [packed] = server.post("/v1/embeddings", body).json()["data"]
    numbers = struct.unpack("<8f", base64.b64decode(packed["embedding"]))
    assert math.hypot(*numbers) == pytest.approx(1, abs=1e-5)
    ids = llm.front.text().encode("a cat")
    assert server.post("/v1/embeddings", {"input": ids}).status_code == 200


def test_documents_come_in_order(server: Served, llm: LLM) -> None:
    texts = ["a cat", "the dog", "rain", "é"]
    offline = llm.score("q", texts)
    for body in ({"text_1": "q", "text_2": texts}, {"queries": ["q"] * 4, "documents": texts}):
        answer = server.post("/v1/score", body).json()
        assert [one["score"] for one in answer["data"]] == pytest.approx(offline, abs=1e-5)
    answer = server.post(
        "/v1/rerank", {"query": "q", "documents": [*texts[:3], {"text": "é"}], "top_n": 3}
    ).json()
    order = sorted(range(4), key=lambda i: -offline[i])[:3]
    assert [one["index"] for one in answer["results"]] == order
    assert answer["results"][0]["document"]["text"] == texts[order[0]]


def test_models_are_listed_and_others_are_not_found(server: Served) -> None:
    listed = server.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["tiny", "alias"]
    assert server.get("/v1/models/alias").json()["id"] == "alias"
    assert server.get("/v1/models/owner/name").status_code == 404
    for path, body in (
        (TEXTS, {"prompt": "a"}),
        (CHAT, {"messages": HELLO}),
        ("/v1/embeddings", {"input": "a"}),
    ):
        answer = server.post(path, body | {"model": "gpt-4"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "functions", [{"name": "f"}]),
        (TEXTS, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (CHAT, "response_format", {"type": "json_object"}),
        (CHAT, "response_format", {"type": "json_schema", "json_schema": {}}),
        (CHAT, "guided_json", {}),
        (CHAT, "structured_outputs", {"regex": "a"}),
        (CHAT, "chat_template", "{{ 1 }}"),
        (CHAT, "reasoning_effort", "low"),
        (CHAT, "thinking_budget", 5),
        (CHAT, "logit_bias", {"1": 5}),
        (CHAT, "modalities", ["audio"]),
        (TEXTS, "best_of", 4),
        (TEXTS, "suffix", "x"),
        (TEXTS, "guided_regex", "a*"),
        (TEXTS, "prompt_embeds", "AAAA"),
        (TEXTS, "min_tokens", 3),
        (TEXTS, "no_such_field", 1),
    ],
)
def test_what_is_not_served_is_refused_by_name(server: Served, path: str, field: str, value: object) -> None:
    body = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
    answer = server.post(path, body | {field: value})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == field
    assert field in error["message"]


def test_what_asks_for_nothing_is_accepted(server: Served) -> None:
    nothing: dict[str, object] = {"user": "me", "metadata": {"a": "b"}, "tools": [], "tool_choice": "auto"}
    nothing |= {
        "response_format": {"type": "text"},
        "logit_bias": {},
        "store": False,
        "stop": None,
        "n": None,
    }
    nothing |= {"functions": None, "parallel_tool_calls": True, "service_tier": "auto", "max_tokens": 2}
    assert server.post(CHAT, {"messages": HELLO} | nothing).status_code == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/generate", "/infer", "/generate_stream"])
def test_other_dialects_are_refused_plainly(server: Served, path: str) -> None:
    answer = server.post(path, {"inputs": "a"})
    assert answer.status_code == 400
    assert "not served in this version" in answer.json()["error"]["message"]


def test_special_tokens_of_a_completion_are_parsed_unless_asked_not_to(server: Served, llm: LLM) -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n"
    for parse in (True, False):
        body = {"prompt": text, "max_tokens": 1, "parse_special": parse}
        found = server.post(TEXTS, body).json()["usage"]["prompt_tokens"]
        assert found == len(llm.front.text().encode(text, special=parse))
