"""Bare text becomes the JSON that its schema asks for, and stays a string where it is nothing of the kind."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroof.text.parse_json import DEEPEST, JsonScan, as_json
from oneroof.text.parse_values import kinds_of, written


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("integer", " 42 ", 42),
        ("integer", "-7", -7),
        ("integer", "5.0", 5),
        ("integer", "007", "007"),
        ("integer", "5.5", "5.5"),
        ("integer", "9" * 5000, None),
        ("number", "10000", 10000),
        ("number", "-2.5e3", -2500.0),
        ("number", "1e999", "1e999"),
        ("number", "NaN", "NaN"),
        ("number", "1_000", "1_000"),
        ("boolean", "True", True),
        ("boolean", "false", False),
        ("boolean", "1", "1"),
        ("null", "null", None),
        ("null", "None", None),
        ("string", "null", "null"),
        ("string", "12", "12"),
        ("array", "[1, {'a': None, \"b\": 'it\\'s'}]", [1, {"a": None, "b": "it's"}]),
        ("array", "['\\x41\\u4f60\\U0001f600\\n', True, -1e-07]", ["A你😀\n", True, -1e-07]),
        ("array", "[1,", "[1,"),
        ("array", "(1, 2)", "(1, 2)"),
        ("array", '{"a": 1}', '{"a": 1}'),
        ("object", '{"a": [true, null]}', {"a": [True, None]}),
        ("object", "{1: 2}", "{1: 2}"),
        ("object", "{'a': __import__('os')}", "{'a': __import__('os')}"),
        ("object", '{"a": NaN}', '{"a": NaN}'),
    ],
)
def test_a_text_is_what_its_type_says(kind: str, text: str, value: object) -> None:
    made = written(text, frozenset({kind}))
    if text.startswith("999"):
        assert made == text  # as it stands: not every reader takes so many digits
    else:
        assert json.loads(made) == value and type(json.loads(made)) is type(value)


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["number", "null"]}, {"number", "null"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"allOf": [{"type": "array"}]}, {"const": 1.5}]}, {"array", "number"}),
        ({"enum": ["a", 1, None, True]}, {"string", "integer", "null", "boolean"}),
        ({"properties": {}}, {"object"}),
        ({"items": {}}, {"array"}),
        ({"$ref": "#/$defs/a~1b"}, {"boolean"}),
        ({"$ref": "#/$defs/loop"}, {"string"}),
        ({"$ref": "https://example.org/x"}, {"string"}),
        ({"type": "date"}, {"string"}),
        ({}, {"string"}),
        (None, {"string"}),
        (True, {"string"}),
        ({"anyOf": [{"anyOf": [{}] * 10_000}] * 10_000}, {"string"}),
    ],
)
def test_the_types_that_a_schema_allows(schema: object, kinds: set[str]) -> None:
    root = {"$defs": {"a/b": {"type": "boolean"}, "loop": {"$ref": "#/$defs/loop"}}}
    assert kinds_of(schema, root) == kinds


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_read_as_the_library_reads_it(value: object) -> None:
    for indent in (None, 1):
        text = json.dumps(value, indent=indent)
        assert as_json(f" {text}\n") == text


@given(st.text(st.sampled_from('{}[]",:\\u0015.eE+-truefalsn '), max_size=12))
def test_what_is_no_json_is_none(text: str) -> None:
    try:
        json.loads(text, parse_constant=lambda word: pytest.fail(word))
    except ValueError:
        assert as_json(text) is None
    else:
        assert as_json(text) == text.strip()


def test_a_scan_stops_at_the_end_of_its_value() -> None:
    for text, end in (('{"a": 1}}', 8), ("12,", 2), ('"a"b', 3), ("true]", 4)):
        scan = JsonScan()
        assert scan.feed(text, 0, len(text)) == end
        assert scan.done and "".join(scan.pieces) == text[:end]


def test_nesting_is_bounded() -> None:
    assert as_json("[" * DEEPEST + "]" * DEEPEST) is not None
    assert as_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)) is None


@pytest.mark.parametrize(
    "text", ["['" + "\\" * 500_000, "[" + "'a'" * 200_000, "[" + "1" * 500_000, "{" * 500_000, "['" * 200_000]
)
def test_long_text_that_is_nothing_takes_seconds(text: str) -> None:
    began = time.process_time()
    assert json.loads(written(text, frozenset({"array", "object", "number"}))) == text
    assert time.process_time() - began < 5
