"""A request's tools and its tool_choice become schemas and a number of calls, or one clear refusal."""

from __future__ import annotations

import pytest

from oneroof.errors import UserError
from oneroof.text.tool_choice import ToolChoice, schemas_of, tool_choice

A = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOLS = [
    {"type": "function", "function": {"name": "a", "parameters": A}},
    {"type": "function", "name": "b", "parameters": None},
    {"name": "c", "input_schema": A},
]
ALL: dict[str, object] = {"a": A, "b": {}, "c": A}
NAMED = {"type": "function", "function": {"name": "a"}}


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, True, (ALL, 0, None)),
        ("auto", False, (ALL, 0, 1)),
        ("none", True, ({}, 0, 0)),
        ("required", True, (ALL, 1, None)),
        ("required", False, (ALL, 1, 1)),
        (NAMED, True, ({"a": A}, 1, 1)),
        ({"type": "function", "name": "c"}, True, ({"c": A}, 1, 1)),
        ({"type": "tool", "name": "b"}, True, ({"b": {}}, 1, 1)),
        ({"type": "any"}, True, (ALL, 1, None)),
        ({"type": "none"}, True, ({}, 0, 0)),
    ],
)
def test_a_choice_says_which_tools_and_how_often(
    choice: object, parallel: bool, expected: tuple[dict[str, dict[str, object]], int, int | None]
) -> None:
    chosen = tool_choice(choice, TOOLS, parallel=parallel)
    assert chosen == ToolChoice(*expected)
    assert chosen.forced == (expected[1] > 0)


def test_without_tools_nothing_is_called() -> None:
    assert tool_choice("auto", None) == tool_choice(None, []) == ToolChoice({}, 0, 0)


@pytest.mark.parametrize(
    ("choice", "tools", "match"),
    [
        ("required", [], "requires a call"),
        ({"type": "function", "function": {"name": "z"}}, TOOLS, "'z'"),
        ("always", TOOLS, "tool_choice is"),
        (5, TOOLS, "tool_choice is"),
        ({"type": "function", "function": 5}, TOOLS, "tool_choice is"),
        (None, [{}], r"tools\[0\] has no name"),
        (None, [{"function": []}], r"tools\[0\] has no name"),
        (None, [*TOOLS, {"name": "a"}], "another tool"),
        (None, [{"name": "d", "parameters": "x"}], "no object"),
    ],
)
def test_what_is_no_choice_is_refused(choice: object, tools: list[dict[str, object]], match: str) -> None:
    with pytest.raises(UserError, match=match):
        tool_choice(choice, tools)


def test_schemas_keep_the_order_of_the_tools() -> None:
    assert list(schemas_of(TOOLS)) == ["a", "b", "c"]
