"""Bodies of OpenAI's requests as they are served, with vLLM's further fields, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from oneroof.engine.request import SamplingParams, defaults
from oneroof.errors import UserError
from oneroof.serve.fields import Body, Part
from oneroof.serve.limits import Limits
from oneroof.text.tool_choice import tool_choice

Ids = Annotated[
    list[int], Field(fail_fast=True)
]  # a long list of something else costs no more than its first entry
Texts = Annotated[list[str], Field(fail_fast=True)]
Many = Annotated[list[Ids], Field(fail_fast=True)]


class StreamOptions(Part):
    """What a stream tells besides."""

    include_usage: bool | None = None
    """Numbers of tokens, in a chunk before the end."""
    continuous_usage_stats: bool | None = None
    """... and in every chunk."""
    include_obfuscation: bool | None = None
    """No effect: nothing is padded."""


class Sampling(Body):
    """How texts are written; what is not given is what the model's authors recommend."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | Texts | None = None
    stop_token_ids: Ids | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    def options(self) -> StreamOptions:
        """The stream's options; UserError where there are some and no stream."""
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options is given and stream is not true; set stream, or leave it out")
        return self.stream_options or StreamOptions()


class TextPart(Part):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class Function(Part):
    """What an assistant called: `arguments` is JSON, as text."""

    name: str
    arguments: str


class ToolCall(Part):
    """A call that an assistant has made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function
    index: int | None = None

    def plain(self) -> dict[str, object]:
        """As the template reads it: arguments that are an object are one."""
        arguments: object = self.function.arguments
        with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
            found = msgspec.json.decode(self.function.arguments)
            arguments = found if isinstance(found, dict) else arguments
        called = {"name": self.function.name, "arguments": arguments}
        made: dict[str, object] = {"type": "function", "function": called}
        return made if self.id is None else made | {"id": self.id}


class Message(Part):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    function_call: None = None
    audio: None = None

    def plain(self) -> dict[str, object]:
        """As the template reads it."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        made: dict[str, object] = {"role": "system" if self.role == "developer" else self.role}
        made["content"] = content or ""
        more = {"name": self.name, "reasoning_content": self.reasoning_content}
        more["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            made["tool_calls"] = [call.plain() for call in self.tool_calls]
        return made | {name: value for name, value in more.items() if value is not None}


class Chat(Sampling):
    """A request for the next turn of a conversation."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def offered(self, limits: Limits) -> Mapping[str, Mapping[str, object]]:
        """The schemas of the tools that may be called. UserError where those cannot be served."""
        limits.count("tools", self.tools)
        limits.check("tools_length", len(msgspec.json.encode(self.tools)), "the length of tools")
        if not _shallow(self.tools, limits.depth):
            raise UserError(f"tools is nested more than {limits.depth} deep; flatten it")
        choice = tool_choice(self.tool_choice, self.tools)
        if choice.forced:
            raise UserError("tool_choice is one that forces a call; auto and none are served; use auto")
        if choice.schemas and self.parallel_tool_calls is False:
            raise UserError("parallel_tool_calls is false; true is served; leave it out")
        return choice.schemas

    def switches(self, limits: Limits) -> Mapping[str, object]:
        """What is handed to the chat template. UserError beyond `limits`."""
        given = dict(self.chat_template_kwargs or {})
        limits.check("switches", len(msgspec.json.encode(given)), "the length of chat_template_kwargs")
        if not _shallow(given, limits.depth):
            raise UserError(f"chat_template_kwargs is nested more than {limits.depth} deep; flatten it")
        if self.enable_thinking is not None:
            given["enable_thinking"] = self.enable_thinking
        return given

    def likeliest(self) -> int | None:
        """So many tokens are told at each place; None: no log-probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
            raise UserError("top_logprobs is given and logprobs is not true; set logprobs, or leave it out")
        return (self.top_logprobs or 0) if self.logprobs else None

    def most(self) -> int | None:
        """Tokens of an answer, by either name."""
        either, other = self.max_completion_tokens, self.max_tokens
        if either is not None and other is not None and either != other:
            raise UserError(
                f"max_tokens is {other} and max_completion_tokens {either}; one is allowed; leave one out"
            )
        return other if either is None else either


class Completion(Sampling):
    """A request for texts that continue prompts."""

    prompt: str | Ids | Texts | Many
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0)] | None = None
    parse_special: bool = True
    """Special tokens spelt in a prompt become their ids."""

    def prompts(self) -> list[str | Ids]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise UserError("prompt is empty; a text or a list of token ids is allowed; write something")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class Embedding(Body):
    """A request for vectors."""

    model: str | None = None
    input: str | Ids | Texts | Many
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    instruction: str | None = None
    """What the texts are queries for, in words."""
    prompt_name: str | None = None
    """One of the model's own prompts to put before each text."""

    def inputs(self) -> list[str | Ids]:
        """Each text by itself."""
        if isinstance(self.input, str):
            return [self.input]
        if not self.input:
            raise UserError("input is empty; a text or a list of texts is allowed; write something")
        if isinstance(self.input[0], int):
            return [self.input]
        return list(self.input)


class Score(Body):
    """A request for how well texts answer others: one to many, or pair by pair."""

    model: str | None = None
    text_1: str | Texts | None = None
    text_2: str | Texts | None = None
    queries: str | Texts | None = None
    documents: str | Texts | None = None
    instruction: str | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """(query, document) each."""
        queries = _either(self.queries, self.text_1, "queries", "text_1")
        documents = _either(self.documents, self.text_2, "documents", "text_2")
        if len(queries) == 1:
            queries = [*queries] * len(documents)
        if len(queries) != len(documents):
            raise UserError(
                f"there are {len(queries)} queries for {len(documents)} documents; one or as many are allowed"
            )
        return list(zip(queries, documents, strict=True))


class Document(Part):
    """A text that may answer the query."""

    text: str


class Rerank(Body):
    """A request to order documents by how well they answer a query."""

    model: str | None = None
    query: str
    documents: Annotated[list[str | Document], Field(min_length=1, fail_fast=True)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True
    instruction: str | None = None

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


def params_of(
    body: Sampling,
    generation: Mapping[str, object],
    limits: Limits,
    *,
    most: int | None,
    likeliest: int | None,
) -> SamplingParams:
    """What `body` asks for over what `generation_config.json` recommends. UserError beyond `limits`.

    `most`: tokens of an answer, None for as many as there is room; `likeliest`: as `SamplingParams.logprobs`.
    """
    stops = [body.stop] if isinstance(body.stop, str) else body.stop
    limits.check("n", body.n)
    limits.check("max_tokens", most)
    limits.check("logprobs", likeliest)
    limits.check("logprobs", body.prompt_logprobs, "prompt_logprobs")
    limits.count("stop", stops)
    limits.count("stop_token_ids", body.stop_token_ids)
    for stop in stops or ():
        limits.check("stop_length", len(stop), "the length of a stop string")
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": body.seed,
        "stop": stops,
        "stop_token_ids": body.stop_token_ids,
        "ignore_eos": body.ignore_eos,
        "n": body.n,
        "logprobs": likeliest,
        "prompt_logprobs": body.prompt_logprobs,
    }
    recommended = defaults(generation, max_tokens=most)
    return replace(recommended, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _either(
    first: str | list[str] | None, second: str | list[str] | None, name: str, other: str
) -> Sequence[str]:
    if (first is None) == (second is None):
        raise UserError(f"{name} or {other} is needed, and one of them alone; give one")
    found = first if second is None else second
    listed = [found] if isinstance(found, str) else found
    if not listed:
        raise UserError(f"{name if second is None else other} is empty; a text or a list of texts is allowed")
    return listed


def _shallow(value: object, depth: int) -> bool:
    """Whether `value` is nested at most `depth` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_shallow(one, depth - 1) for one in inner)
