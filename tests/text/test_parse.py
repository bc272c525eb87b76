"""Replies in the forms that published templates show come apart as they should, cut at any place."""

from __future__ import annotations

import json
import time

import pytest

from oneroof.text.parse import ReplyParser, parsed
from oneroof.text.parse_events import (
    Call,
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Reasoning,
    gathered,
)
from oneroof.text.parse_formats import FORMATS, ParserFormat, formats_of, opens_thinking

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
FREE = {"type": "object", "properties": {"text": {"type": "string"}, "note": {"type": ["string", "null"]}}}
TOOLS = {"get_weather": WEATHER, "write": FREE}
SECONDS = 20.0  # for a megabyte, on a busy machine: what is quadratic takes hours


def parser(word: str, *, thinking: bool = False, whole: bool = False, tools: object = TOOLS) -> ReplyParser:
    assert tools is None or isinstance(tools, dict)
    return ReplyParser(FORMATS[word], tools, thinking=thinking, whole_calls=whole, name_call=str)


def apart(text: str, word: str, **how: object) -> tuple[str, str, list[tuple[str, str, bool]]]:
    """Reasoning, content and calls of `text`, the same wherever it is cut in two, and in characters."""
    whole = parsed(text, parser(word, **how))  # type: ignore[arg-type]
    for cut in range(len(text) + 1):
        half = parser(word, **how)  # type: ignore[arg-type]
        events = [*half.push(text[:cut]), *half.push(text[cut:]), *half.finish()]
        assert gathered(events) == whole, text[:cut]
    single = parser(word, **how)  # type: ignore[arg-type]
    assert gathered([e for c in text for e in single.push(c)] + single.finish()) == whole
    return whole.reasoning, whole.content, [(c.name, c.arguments, c.whole) for c in whole.calls]


ONE = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
PARIS = ("get_weather", '{"city": "Paris"}', True)
OSLO = ("get_weather", '{"city": "Oslo", "days": 2}', True)


def called(arguments: object) -> str:
    inner = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "write", "arguments": {inner}}}\n</tool_call>'


def wrote(arguments: str) -> tuple[str, str, bool]:
    return "write", arguments, True


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (ONE, "", [PARIS]),
        (f"{ONE}\n{TWO}", "", [PARIS, OSLO]),
        (f"{ONE}{TWO}\n", "", [PARIS, OSLO]),
        (f"I look.\n{ONE}\n{TWO}", "I look.", [PARIS, OSLO]),
        (f"I look.\n\n{ONE}\nThen\n{TWO}\nafter", "I look.\nThen\nafter", [PARIS, OSLO]),
        (f"\n{ONE}", "", [PARIS]),
        ("no call, but 1 < 2\n", "no call, but 1 < 2\n", []),
        (ONE.removesuffix("\n</tool_call>"), "", [PARIS]),
        (ONE.removesuffix("ll>"), "", [PARIS]),
        (f"{called({})}\n{called({})}".replace("\n</tool_call>\n<tool_call>", ""), "", [wrote("{}")] * 2),
        ('<tool_call>{"arguments": {"text": 1}, "name": "write"}</tool_call>', "", [wrote('{"text": 1}')]),
        (called('{"text": 1}'), "", [wrote('{"text": 1}')]),
        (called(None), "", [wrote("{}")]),
        ('<tool_call>{"id": [1, {}], "name": "write", "parameters": {}, "x": 1.5}', "", [wrote("{}")]),
        (called({"text": "a</tool_call></think>{"}), "", [wrote('{"text": "a</tool_call></think>{"}')]),
        (called({"text": 'é" 你好 😀\ufffd'}), "", [wrote('{"text": "é\\" 你好 😀\ufffd"}')]),
        (called({}).replace("{}", '{"text": "a\nb\t"}'), "", [wrote('{"text": "a\\nb\\t"}')]),
        (called({}).replace("{}", '{"text": "\\ud83d\\ude00"}'), "", [wrote('{"text": "\\ud83d\\ude00"}')]),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_calls_in_json(text: str, content: str, calls: list[tuple[str, str, bool]], whole: bool) -> None:
    assert apart(text, "hermes", whole=whole) == ("", content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call> is a tag; <tool_call>\nso is </tool_call>",
        "a\n\n\n<tool_cal",
        "<<tool_call><<",
        "<tool_call>\n{}\n</tool_call>",
        '<tool_call>\n{"name": "unknown", "arguments": {"a": "<tool_call>"}}\n</tool_call>\n',
        '<tool_call>\n{"name": "write", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": 5, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "write" "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "write", "arguments": "{no}"}\n</tool_call>',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n[{"name": "write", "arguments": {}}]\n</tool_call>',
        '<tool_call>\n{"name": "wri',
        "<think>\nhm\n</think>",  # this format has no thinking
        "<response>a</response>",
        " \n" * 70,
        " \n" * 31 + "a",
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_no_call_is_content_to_the_letter(text: str, whole: bool) -> None:
    assert apart(text, "hermes", whole=whole) == ("", text, [])


BROKEN = '<tool_call>\n{"name": "write", "arguments": {"text": nope}}\n</tool_call>'
CUT = '<tool_call>\n{"name": "write", "arguments": {"text": "abc'


def test_a_call_that_breaks_after_it_was_told_is_marked_and_its_rest_is_content() -> None:
    assert apart(BROKEN, "hermes") == ("", "ope}}\n</tool_call>", [("write", '{"text": n', False)])
    assert apart(CUT, "hermes") == ("", "", [("write", '{"text": "abc', False)])
    text = '<tool_call>{"name": "write", "arguments": {"text": ""}, "x": <'
    assert apart(text, "hermes") == ("", ', "x": <', [("write", '{"text": ""}', False)])


@pytest.mark.parametrize("text", [BROKEN, CUT, f"a\n{BROKEN}\nb"])
def test_told_whole_a_broken_call_is_content_from_its_first_character(text: str) -> None:
    assert apart(text, "hermes", whole=True) == ("", text, [])


def test_after_a_broken_call_the_next_one_is_read() -> None:
    restarted = f'<tool_call>\n{{"name": "{ONE}'
    assert apart(restarted, "hermes") == ("", '<tool_call>\n{"name": "', [PARIS])
    _, content, calls = apart(f"{BROKEN}\n{ONE}", "hermes")
    assert content.endswith("</tool_call>") and calls[1] == PARIS


def tagged(name: str, *values: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


FORGOTTEN = tagged("write", ("text", "a</function>b")).replace("\n</parameter>", "")
CODE = 'if a < b and c > "d":\n\n    print("</p>\\n<parameter> é 你")\n'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (tagged("get_weather", ("city", "Paris"), ("days", "2")), "", [{"city": "Paris", "days": 2}]),
        (tagged("write", ("text", CODE)), "", [{"text": CODE}]),
        (tagged("write", ("text", "</parameter> <function=write> </function>")), "",
         [{"text": "</parameter> <function=write> </function>"}]),
        (tagged("write", ("text", "")) + "\n" + tagged("write"), "", [{"text": ""}, {}]),
        (f"I look.\n\n{tagged('write', ('text', 'null'), ('note', 'null'))}\nend", "I look.\nend",
         [{"text": "null", "note": None}]),
        (tagged("write", ("note", "nullable, is it not?")), "", [{"note": "nullable, is it not?"}]),
        (tagged("write", ("note", "null")) + tagged("write", ("note", "None")), "", [{"note": None}] * 2),
        (tagged("write", ("other", "[1]")), "", [{"other": "[1]"}]),
        (FORGOTTEN, "", [{"text": "a</function>b"}]),
        (tagged("get_weather", ("days", "many")), "", [{"days": "many"}]),
        (tagged("write", ("text", "x")).removeprefix("<tool_call>\n"), "", [{"text": "x"}]),
        (tagged("write", ("text", "x")).replace("</function>\n", ""), "", [{"text": "x"}]),
        (tagged("write", ("text", "x")).replace("\n", ""), "", [{"text": "x"}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True])
def test_calls_in_tags(text: str, content: str, calls: list[dict[str, object]], whole: bool) -> None:
    _, said, found = apart(text, "qwen3_coder", whole=whole)
    assert said == content
    assert [json.loads(arguments) for _, arguments, _ in found] == calls
    assert all(whole for _, _, whole in found)


@pytest.mark.parametrize(
    "text",
    [
        "write <function=name> like <function=write> that",
        "<tool_call>\n<function=write>\nnothing",
        "<tool_call>\n<function=write\n>",
        "<tool_call>\n<function=" + "x" * 300 + ">",
        "<tool_call>" + " " * 70 + "<function=write></function>"[:10],
        tagged("unknown", ("a", "<tool_call>")),
        '<tool_call>\n{"name": "write", "arguments": {}}\n</tool_call>',
        "<tool_call>\n<function=write>\n<para",
    ],
)
def test_what_is_no_call_in_tags_is_content_to_the_letter(text: str) -> None:
    assert apart(text, "qwen3_coder") == ("", text, [])
    assert apart(text, "qwen3_coder", whole=True) == ("", text, [])


def test_a_call_in_tags_that_is_cut_off_keeps_what_came() -> None:
    text = tagged("write", ("text", "a\nb"))
    told = {cut: apart(text[:cut], "qwen3_coder") for cut in range(len(text))}
    within = text.index("a\n") + 1
    assert told[within] == ("", "", [("write", '{"text": "a', False)])
    assert told[within + 4] == ("", "", [("write", '{"text": "a\\nb\\n<', False)])
    assert told[text.index("</function>")] == ("", "", [("write", '{"text": "a\\nb"', False)])
    held = "<tool_call>\n<function=get_weather>\n<parameter=days>\n1"
    assert apart(held, "qwen3_coder") == ("", "<parameter=days>\n1", [("get_weather", "{", False)])


@pytest.mark.parametrize(
    ("text", "begun", "expected"),
    [
        ("<think>\nhm\n</think>\n\nHi", False, ("hm", "Hi", [])),
        ("hm\n</think>\n\nHi", True, ("hm", "Hi", [])),
        ("\n<think>\nhm\n\nso\n</think>\n\nHi\n", True, ("hm\n\nso", "Hi\n", [])),
        ("<think>\n\n</think>\n\nHi", False, ("", "Hi", [])),
        ("Hi", False, ("", "Hi", [])),
        ("hm", True, ("hm", "", [])),
        ("hm\n\n</thin", True, ("hm\n\n</thin", "", [])),
        ("<think>\nhm", False, ("hm", "", [])),
        ("Hi <think> there </think>", False, ("", "Hi <think> there </think>", [])),
        (f"hm {ONE}\n</think>\n\n{TWO}", True, (f"hm {ONE}", "", [OSLO])),
        (f"</think>\n\n{ONE}", True, ("", "", [PARIS])),
        (f"{ONE}\n<think>again</think>\n{TWO}", False, ("again", "", [PARIS, OSLO])),
        (f"<think>a</think>b\n{ONE}", False, ("a", "b", [PARIS])),
        ("\n\n\n", True, ("", "", [])),
    ],
)
def test_thinking_by_the_template_or_the_model(text: str, begun: bool, expected: object) -> None:
    assert apart(text, "qwen3", thinking=begun) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hm\n</think>\n\n\n<response>\nHi\nyou\n</response>\n", ("hm", "Hi\nyou", [])),
        ("hm\n</think>\nHi", ("hm", "Hi", [])),
        (f"hm\n</think>\n\n\n{ONE}\n{TWO}\n", ("hm", "", [PARIS, OSLO])),
        (f"hm\n</think>\n\n<response>\nI look.\n</response>\n\n{ONE}\n", ("hm", "I look.", [PARIS])),
        (
            "</think><response>\nclose with </response>, so\n</response>",
            ("", "close with </response>, so", []),
        ),
        ("</think>a <response>b</response>", ("", "a <response>b</response>", [])),
        ("</think><response>\nHi</resp", ("", "Hi</resp", [])),
    ],
)
def test_an_answer_in_marks_of_its_own(text: str, expected: object) -> None:
    assert apart(text, "ernie_thinking", thinking=True) == expected


@pytest.mark.parametrize("word", FORMATS)
def test_without_tools_the_marks_of_calls_are_content(word: str) -> None:
    for text in (ONE, tagged("write", ("text", "x"))):
        assert apart(text, word, tools=None) == ("", text, [])
        assert apart(text, "plain") == ("", text, [])


def test_events_come_as_soon_as_they_are_sure() -> None:
    stream = parser("hermes")
    steps: list[tuple[str, list[Event]]] = [
        ("Hi <b", [Content("Hi <b")]),
        (" <to", [Content(" ")]),
        ("p>\n", [Content("<top>")]),
        ("\n<tool_call>\n{", []),
        ('"name": "write", "arg', []),
        ('uments": {"text": "a', [CallBegun(0, "0", "write"), CallArguments(0, '{"text": "a')]),
        ("b<", [CallArguments(0, "b<")]),
        ('"}', [CallArguments(0, '"}')]),
        ("}", [CallEnded(0, True)]),
        ("\n</tool_call>", []),
    ]
    for piece, events in steps:
        assert stream.push(piece) == events
    assert stream.finish() == []
    coder = parser("qwen3_coder")
    told = coder.push("<tool_call>\n<function=write>\n<parameter=text>\nline\n<")
    assert told == [CallBegun(0, "0", "write"), CallArguments(0, '{"text": "line')]
    assert coder.push("b>") == [CallArguments(0, "\\n<b>")]
    assert parser("qwen3", thinking=True).push("so\n") == [Reasoning("so")]
    assert parser("plain").push(" \n") == [Content(" \n")]


def lag(text: str, stream: ReplyParser) -> int:
    """The most characters that were held back after any character of `text`."""
    told, most = 0, 0
    for place, character in enumerate(text, 1):
        told += sum(
            len(event.text) for event in stream.push(character) if isinstance(event, Content | Reasoning)
        )
        most = max(most, place - told)
    return most


def test_no_more_is_held_back_than_a_mark_may_need() -> None:
    prose = "a <b \n\n</tool <tool_cal\n</thin\n\n\n<functio <thi  <response" * 50
    assert lag(prose, parser("qwen3")) <= 2 + len("<tool_call>")
    assert lag(prose, parser("qwen3", thinking=True)) <= 2 + len("</think>")
    assert lag(prose, parser("qwen3_coder", tools=None)) == 0
    assert lag(" " * 500, parser("qwen3")) <= 64


def test_ids_of_calls_are_their_own() -> None:
    one, two = parsed(f"{ONE}\n{TWO}", ReplyParser(FORMATS["hermes"], TOOLS)).calls
    assert one.id.startswith("call_") and one.id != two.id
    assert one == Call(one.id, *PARIS)


MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    "unit", ["<", "<tool_call>", "</", "\n", "<think>", "<function=", "</parameter>\n", "<tool_call>{"]
)
@pytest.mark.parametrize("word", ["qwen3", "qwen3_coder", "ernie_thinking"])
def test_a_megabyte_of_near_marks_takes_seconds_and_stays(unit: str, word: str) -> None:
    text = unit * (MEGABYTE // 8 // len(unit))
    began = time.process_time()
    reply = parsed(text, parser(word))
    assert time.process_time() - began < SECONDS / 8
    assert unit == "<think>" or reply.content == text


def test_a_megabyte_of_open_brackets_takes_seconds_and_stays() -> None:
    for size in (31, MEGABYTE):
        stream, told, began = parser("qwen3_coder_thinking"), [], time.process_time()
        for _ in range(MEGABYTE // size):
            told += stream.push("<" * size)
        told += stream.finish()
        assert time.process_time() - began < SECONDS
        assert gathered(told).content == "<" * (MEGABYTE // size * size)


@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_deep_nesting_is_a_fault_and_costs_no_more(opening: str) -> None:
    head = '<tool_call>\n{"name": "write", "arguments": {"text": '
    began = time.process_time()
    reply = parsed(head + opening * (MEGABYTE // len(opening)), parser("hermes"))
    assert time.process_time() - began < SECONDS
    assert not reply.calls[0].whole and reply.calls[0].arguments.count(opening) < 300
    lists = {"write": {"properties": {"text": {"type": "array"}}}}
    deep = tagged("write", ("text", "[" * 100_000))
    (call,) = parsed(deep, parser("qwen3_coder", tools=lists)).calls
    assert json.loads(call.arguments) == {"text": "[" * 100_000}


def test_a_long_head_is_let_go() -> None:
    text = '<tool_call>\n{"arguments": {"text": "' + "a" * 200_000
    stream = parser("hermes")
    shown = sum(len(e.text) for e in stream.push(text) if isinstance(e, Content))
    assert shown == len(text)


THINKS = "{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}"
CALLS = '<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>'


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("", "plain"),
        ("{{ message.content }}<tool_response>", "plain"),
        (CALLS, "hermes"),
        (THINKS + CALLS, "qwen3"),
        (THINKS, "thinking"),
        ("<tool_call>\\n<function=example_function_name>\\n<parameter=p>", "qwen3_coder"),
        (THINKS + "<tool_call>\\n<function=example_function_name>", "qwen3_coder_thinking"),
        (THINKS + CALLS + "{{ '<response>\\n' + content + '\\n</response>\\n' }}", "ernie_thinking"),
    ],
)
def test_the_format_is_told_by_the_marks_in_the_template(source: str, word: str) -> None:
    assert formats_of(source) == FORMATS[word]
    assert formats_of(source, "hermes") == FORMATS["hermes"]


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Exception, match="qwen3_coder"):
        formats_of("", "pythonic")


def test_thinking_is_open_where_the_prompt_ends_in_it() -> None:
    assert opens_thinking("<|im_start|>assistant\n<think>\n")
    assert not opens_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opens_thinking("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("word", ["hermes", "qwen3_coder"])
def test_the_frame_of_a_format_is_what_its_parser_reads(word: str) -> None:
    style: ParserFormat = FORMATS[word]
    before, after = style.frame("write")
    key, end = style.parameter_frame("text")
    inner = '{"text": "a"}' if word == "hermes" else f"{key}a{end}"
    assert apart(before + inner + after, word)[2] == [("write", '{"text": "a"}', True)]
    with pytest.raises(Exception, match="knows no tool calls"):
        FORMATS["plain"].frame("write")
