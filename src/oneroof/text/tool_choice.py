"""Which tools a reply may call, and how many times: a request's `tools` and `tool_choice` as data.

A parser takes `schemas`; a grammar that forces calls takes `least`, `most` and the same schemas, and a call's
frame from the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oneroof.errors import UserError


@dataclass(frozen=True)
class ToolChoice:
    """Between `least` and `most` calls (None: any number) of the tools in `schemas`."""

    schemas: Mapping[str, Mapping[str, object]]  # name -> JSON schema of the arguments
    least: int
    most: int | None

    @property
    def forced(self) -> bool:
        """Whether the reply must call, so that plain text is no answer."""
        return self.least > 0


def schemas_of(tools: Sequence[Mapping[str, object]] | None) -> dict[str, Mapping[str, object]]:
    """Name -> schema of the arguments, of tools in OpenAI's form, or flat ones (Responses, Anthropic).

    Raises `UserError` on a tool without a name, or where two have the same.
    """
    schemas: dict[str, Mapping[str, object]] = {}
    for index, tool in enumerate(tools or ()):
        inner = tool.get("function", tool)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(name, str) or not name:
            raise UserError(f"tools[{index}] has no name; give {{type: function, function: {{name, ..}}}}")
        if name in schemas:
            raise UserError(f"tools[{index}] has the name {name!r} of another tool; give each its own name")
        schema = inner.get("parameters", inner.get("input_schema"))
        if schema is not None and not isinstance(schema, Mapping):
            raise UserError(f"tools[{index}].parameters is no object; give a JSON schema or leave it out")
        schemas[name] = schema or {}
    return schemas


def tool_choice(
    choice: object, tools: Sequence[Mapping[str, object]] | None, *, parallel: bool = True
) -> ToolChoice:
    """What `choice` means: none, auto, required, or an object that names a function.

    None is auto. `parallel`: several calls in one reply are allowed. Read are OpenAI's words and objects, and
    Anthropic's ``{type: auto | any | tool | none}``. Raises `UserError` on anything else, an unknown tool, or
    calls that are required without tools.
    """
    schemas = schemas_of(tools)
    most = None if parallel else 1
    word, name = _read(choice)
    if word == "none":
        return ToolChoice({}, 0, 0)
    if word == "named":
        if name not in schemas:
            offered = ", ".join(schemas) or "none"
            raise UserError(f"tool_choice names {name!r}, which is no tool of this request ({offered})")
        return ToolChoice({name: schemas[name]}, 1, 1)
    if word == "required":
        if not schemas:
            raise UserError("tool_choice requires a call but there are no tools; give tools or choose auto")
        return ToolChoice(schemas, 1, most)
    return ToolChoice(schemas, 0, most if schemas else 0)


_WORDS = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


def _read(choice: object) -> tuple[str, str]:
    """One of none, auto, required, named; and the name."""
    if choice is None:
        return "auto", ""
    if isinstance(choice, str) and choice in _WORDS:
        return _WORDS[choice], ""
    if isinstance(choice, Mapping):
        kind, function = choice.get("type"), choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        if kind in ("function", "tool") and isinstance(name, str):
            return "named", name
        if isinstance(kind, str) and kind in _WORDS:
            return _WORDS[kind], ""
    shown = json.dumps(choice, default=str)[:100]
    raise UserError(
        f"tool_choice is {shown}; give none, auto, required, or {{type: function, function: {{name}}}}"
    )
