"""Random replies: what a stream adds up to is what the whole gives, and what was rendered is what is read."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneroof.text.parse import ReplyParser, parsed
from oneroof.text.parse_events import Content, Event, Reasoning, Reply, gathered
from oneroof.text.parse_formats import FORMATS

TOOLS = {
    "f": {"properties": {"s": {"type": "string"}, "n": {"type": ["string", "null"]}}},
    "g": {"properties": {"i": {"type": "integer"}, "o": {"type": "object"}, "l": {"items": {}}}},
}
MARKS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>"),
    *("<function=f>", "<function=g>", "<function=", "</function>"),
    *("<parameter=s>", "<parameter=i>", "<parameter=", "</parameter>"),
)
SHREDS = (
    *MARKS,
    *(
        "<",
        ">",
        "\n",
        " ",
        "\t\n",
        "\n" * 3,
        "</tool",
        "12",
        "null",
        "é",
        "😀",
        "\ufffd",
        "a",
        "{",
        "}",
        '"',
        "\\",
        ",",
    ),
    *('{"name": "f", "arguments": {', '{"name": "g", "arguments": ', '"arguments": {}', '"s": "'),
    *('{"name": "f", "arguments": {"s": "x"}}', '{"name": "no", "arguments": {}}'),
    "<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n</function>\n</tool_call>",
)


def parser(word: str, *, thinking: bool, whole: bool = False) -> ReplyParser:
    return ReplyParser(FORMATS[word], TOOLS, thinking=thinking, whole_calls=whole, name_call=str)


def streamed(pieces: list[str], stream: ReplyParser) -> Reply:
    events: list[Event] = [event for piece in pieces for event in stream.push(piece)]
    return gathered([*events, *stream.finish()])


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize("word", FORMATS)
@pytest.mark.parametrize("whole", [False, True])
@settings(max_examples=60)
@given(
    shreds=st.lists(st.sampled_from(SHREDS), max_size=25),
    thinking=st.booleans(),
    cuts=st.lists(st.integers(0, 999), max_size=12),
)
def test_a_stream_of_shreds_is_the_whole_and_loses_nothing(
    word: str, whole: bool, shreds: list[str], thinking: bool, cuts: list[int]
) -> None:
    text = "".join(shreds)
    reply = parsed(text, parser(word, thinking=thinking, whole=whole))
    assert streamed(list(text), parser(word, thinking=thinking, whole=whole)) == reply
    assert streamed(pieces_of(text, cuts), parser(word, thinking=thinking, whole=whole)) == reply
    for call in reply.calls:
        assert call.name in TOOLS
        assert call.whole or not whole
        assert not call.whole or isinstance(json.loads(call.arguments), dict)
    if not reply.calls and not FORMATS[word].thinking:
        assert reply.content == text
    stream = parser(word, thinking=thinking, whole=whole)
    rest = iter(text)  # what is said is what came, in its order
    events = [*stream.push(text), *stream.finish()]
    assert all(c in rest for e in events if isinstance(e, Reasoning | Content) for c in e.text)


SOUND = (
    '<think>\nhm\n</think>\n\nSo.\n<tool_call>\n{"name": "f", "arguments": {"s": "x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {"i": 1, "l": [{}]}}\n</tool_call>',
    "<tool_call>\n<function=g>\n<parameter=i>\n12\n</parameter>\n<parameter=l>\n[1]\n</parameter>\n</function>\n"
    "</tool_call>\n<tool_call>\n<function=f>\n<parameter=s>\n<b>\n</parameter>\n</function>\n</tool_call>\n",
    'hm\n</think>\n\n\n<response>\nYes </response>\n</response>\n<tool_call>\n{"name": "f"}\n</tool_call>\n',
)
wounds = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(("", *SHREDS))), max_size=3
)


@pytest.mark.parametrize("word", ["qwen3", "qwen3_coder_thinking", "ernie_thinking"])
@pytest.mark.parametrize("whole", [False, True])
@settings(max_examples=60)
@given(
    text=st.sampled_from(SOUND),
    wounds=wounds,
    thinking=st.booleans(),
    cuts=st.lists(st.integers(0, 999), max_size=12),
)
def test_a_stream_of_damaged_calls_is_the_whole(
    word: str, whole: bool, text: str, wounds: list[tuple[int, int, str]], thinking: bool, cuts: list[int]
) -> None:
    for place, lost, shred in wounds:
        place %= len(text) + 1
        text = text[:place] + shred + text[place + lost :]
    reply = parsed(text, parser(word, thinking=thinking, whole=whole))
    assert streamed(list(text), parser(word, thinking=thinking, whole=whole)) == reply
    assert streamed(pieces_of(text, cuts), parser(word, thinking=thinking, whole=whole)) == reply
    assert all(isinstance(json.loads(call.arguments), dict) for call in reply.calls if call.whole)


@pytest.mark.parametrize("word", FORMATS)
@settings(max_examples=15)
@given(shreds=st.lists(st.sampled_from(SHREDS), max_size=12), thinking=st.booleans())
def test_a_reply_cut_in_two_at_every_place_is_the_whole(word: str, shreds: list[str], thinking: bool) -> None:
    text = "".join(shreds)
    reply = parsed(text, parser(word, thinking=thinking))
    for cut in range(len(text) + 1):
        assert streamed([text[:cut], text[cut:]], parser(word, thinking=thinking)) == reply


words = st.text(
    st.sampled_from("ab <>/=\"'\\{}[],:\n\t\réß你😀\u200b\x7f0") | st.characters(codec="utf-8"), max_size=20
)
tagless = st.lists(words | st.sampled_from(MARKS), max_size=4).map("".join)
plain = tagless.filter(lambda text: not any(mark in text for mark in MARKS))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
keys = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
names = st.from_regex(r"[a-zA-Z0-9_.-]{1,64}", fullmatch=True)
json_calls = st.lists(st.tuples(names, st.dictionaries(words, values, max_size=4)), max_size=4)


def answered(reasoning: str | None, content: str, calls: list[str]) -> str:
    """A reply as the templates show one: thinking, content, then calls, a line break between them."""
    thought = "" if reasoning is None else f"<think>\n{reasoning}\n</think>\n\n"
    return thought + "\n".join([content] * bool(content) + calls)


def trimmed(text: str) -> str:
    """Line breaks at the ends are the templates'; a text of white space alone is none beside a call."""
    return text.strip("\n") if text.strip() else ""


@settings(max_examples=150)
@given(
    reasoning=st.none() | plain,
    content=plain,
    calls=json_calls,
    cuts=st.lists(st.integers(0, 9999), max_size=20),
)
def test_what_is_rendered_with_json_calls_is_read_again(
    reasoning: str | None, content: str, calls: list[tuple[str, dict[str, object]]], cuts: list[int]
) -> None:
    reasoning, content = reasoning and trimmed(reasoning), trimmed(content)
    rendered = [
        "<tool_call>\n"
        + json.dumps({"name": name, "arguments": given}, ensure_ascii=False)
        + "\n</tool_call>"
        for name, given in calls
    ]
    text = answered(reasoning, content, rendered)
    stream = ReplyParser(FORMATS["qwen3"], {name: {} for name, _ in calls}, name_call=str)
    reply = streamed(pieces_of(text, cuts), stream)
    assert reply.reasoning == (reasoning or "")
    assert reply.content == content
    assert [(c.name, json.loads(c.arguments), c.whole) for c in reply.calls] == [
        (n, a, True) for n, a in calls
    ]


KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def schema_of(value: object) -> dict[str, object]:
    return {"type": KINDS.get(type(value), "null")}


def bare(value: object, python: bool) -> str:
    if isinstance(value, str):
        return value
    return str(value) if python else json.dumps(value, ensure_ascii=False)


def ambiguous(text: str) -> bool:
    """Text that ends a value inside it, which the format has no way to tell."""
    bare = "".join(text.split())
    ends = [f"</parameter>{tag}" for tag in ("<parameter=", "</function>", "</tool_call>")]
    return any(end in bare for end in (*ends, "</function></tool_call>"))


@pytest.mark.parametrize("python", [False, True])
@settings(max_examples=150)
@given(
    content=plain,
    calls=st.lists(
        st.tuples(names, st.dictionaries(keys, values | tagless, max_size=4)),
        max_size=3,
        unique_by=lambda c: c[0],
    ),
    cuts=st.lists(st.integers(0, 9999), max_size=20),
)
def test_what_is_rendered_with_calls_in_tags_is_read_again(
    python: bool, content: str, calls: list[tuple[str, dict[str, object]]], cuts: list[int]
) -> None:
    content = trimmed(content)
    rendered, tools = [], {}
    for name, given_ in calls:
        written = {key: bare(value, python) for key, value in given_.items()}
        if any(ambiguous(text) for text in written.values()):
            return
        inner = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in written.items())
        rendered.append(f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>")
        tools[name] = {
            "type": "object",
            "properties": {key: schema_of(value) for key, value in given_.items()},
        }
    text = answered(None, content, rendered)
    reply = streamed(pieces_of(text, cuts), ReplyParser(FORMATS["qwen3_coder"], tools, name_call=str))
    assert reply.content == content
    assert [(c.name, json.loads(c.arguments), c.whole) for c in reply.calls] == [
        (n, a, True) for n, a in calls
    ]
