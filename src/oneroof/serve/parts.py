"""From what a model writes to the parts of a message: reasoning, content, calls of tools.

Stream and whole answer come through here alike: a message is what its deltas add up to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from oneroof.load import Front
from oneroof.text.parse import ReplyParser
from oneroof.text.parse_events import CallArguments, CallBegun, Content, Event, Reasoning
from oneroof.text.parse_formats import ParserFormat, formats_of, opens_thinking

Delta = Mapping[str, object]  # as a chunk of a chat's stream has it
Schemas = Mapping[str, Mapping[str, object]]

_END = 64  # tokens of a prompt that tell whether it ends inside thinking


class Parts:
    """Takes one text piece by piece. All deltas together do not depend on how it was cut."""

    def __init__(self, parser: ReplyParser) -> None:
        """`parser` is this text's alone."""
        self._parser = parser
        self._called = False

    def push(self, text: str) -> list[Delta]:
        """What `text` adds."""
        return self._deltas(self._parser.push(text))

    def finish(self) -> list[Delta]:
        """What was held back: the text has ended."""
        return self._deltas(self._parser.finish())

    def reason(self, reason: str) -> str:
        """Why the message ended, for a text that ended for `reason`."""
        return "tool_calls" if self._called and reason == "stop" else reason

    def _deltas(self, events: Iterable[Event]) -> list[Delta]:
        made: list[Delta] = []
        for event in events:
            match event:
                case Reasoning(text):
                    made.append({"reasoning_content": text})
                case Content(text):
                    made.append({"content": text})
                case CallBegun(index, id, name):
                    self._called = True
                    function = {"name": name, "arguments": ""}
                    call = {"index": index, "id": id, "type": "function", "function": function}
                    made.append({"tool_calls": [call]})
                case CallArguments(index, text):
                    made.append({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        return made


def parts_of(front: Front, prompt: Sequence[int], schemas: Schemas, name_call: Callable[[int], str]) -> Parts:
    """A parser for an answer to `prompt`, which may call the tools of `schemas`.

    A call is told when it has come to its end, so that none that a client sees is broken.
    """
    source = "" if front.template is None else front.template.source
    tail = "" if front.tokenizer is None else front.tokenizer.decode(prompt[-_END:], skip_special=False)
    parser = ReplyParser(
        _format(source), schemas, thinking=opens_thinking(tail), whole_calls=True, name_call=name_call
    )
    return Parts(parser)


def knows_tools(front: Front) -> bool:
    """Whether the model's template shows tools, and how calls of them are written."""
    template = front.template
    return template is not None and "tools" in template.variables and _format(template.source).calls != "none"


def message(deltas: Iterable[Delta]) -> dict[str, object]:
    """The whole message that `deltas` add up to. Content is null where there are calls and no text."""
    texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    calls: dict[int, dict[str, object]] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        for name, found in texts.items():
            if isinstance(text := delta.get(name), str):
                found.append(text)
        listed = delta.get("tool_calls")
        for call in listed if isinstance(listed, list) else ():
            arguments.setdefault(call["index"], []).append(call["function"]["arguments"])
            if "id" in call:
                calls[call["index"]] = {name: value for name, value in call.items() if name != "index"}
    made: dict[str, object] = {"role": "assistant", "content": "".join(texts["content"])}
    if reasoning := "".join(texts["reasoning_content"]):
        made["reasoning_content"] = reasoning
    if calls:
        made["content"] = made["content"] or None
        made["tool_calls"] = [
            call | {"function": {"name": _name(call), "arguments": "".join(arguments[index])}}
            for index, call in calls.items()
        ]
    return made


def _name(call: Mapping[str, object]) -> object:
    function = call["function"]
    assert isinstance(function, dict)
    return function["name"]


@cache
def _format(source: str) -> ParserFormat:
    return formats_of(source)
