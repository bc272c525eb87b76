"""Arguments that are written as bare text, made JSON by the schema of their tool.

Templates write what is no string as JSON or, with Jinja's `string`, as Python does (`True`, `None`, single
quotes); both are read, the latter by a reader of our own. A text that is nothing its schema allows stays a
string.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

from oneroof.text.parse_json import as_json

KINDS = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_DEEPEST = 16  # references and alternatives inside each other
_MOST = 256  # alternatives looked at
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*+)")
_POINTED = re.compile(r"(-?(?:0|[1-9][0-9]*+))\.0++")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_TOKEN = re.compile(
    r"""(?P<kept>[\s\[\]{},:]++|[-+0-9.eE]++)|(?P<word>True|False|None|true|false|null)"""
    r"""|'(?P<single>(?:[^'\\]|\\.)*+)'|"(?P<double>(?:[^"\\]|\\.)*+)\"""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_WORDS = {"True": "true", "False": "false", "None": "null"}


def kinds_of(schema: object, root: object = None) -> frozenset[str]:
    """The JSON types that `schema` allows, as far as it says; `root` is where its references lead.

    A schema that says nothing, or is none, allows strings: the text is then taken as it stands.
    """
    found: set[str] = set()
    for place in _alternatives(schema, root):
        named = place.get("type")
        listed = named if isinstance(named, list) else [named]
        types = {kind for kind in listed if isinstance(kind, str)} & KINDS
        if not types:
            constants = [place["const"]] if "const" in place else place.get("enum")
            types = {_kind(value) for value in constants} if isinstance(constants, list) else set()
        if not types and "properties" in place:
            types = {"object"}
        if not types and "items" in place:
            types = {"array"}
        found |= types
    return frozenset(found) or frozenset({"string"})


def written(text: str, kinds: frozenset[str]) -> str:
    """`text` as the text of a JSON value of one of `kinds`; a string where it is none of the others."""
    word = text.strip()
    lower = word.lower()
    if "null" in kinds and word in ("null", "None"):
        return "null"
    if "boolean" in kinds and lower in ("true", "false"):
        return lower
    if kinds & {"integer", "number"} and _INTEGER.fullmatch(word):
        return word
    if "number" in kinds and _NUMBER.fullmatch(word) and math.isfinite(float(word)):
        return word
    if "integer" in kinds and (pointed := _POINTED.fullmatch(word)):
        return pointed[1]
    if ("object" in kinds and word.startswith("{")) or ("array" in kinds and word.startswith("[")):
        value = as_json(word) or as_json(_from_python(word))
        if value is not None:
            return value
    return json.dumps(text, ensure_ascii=False)


def _alternatives(schema: object, root: object) -> Iterator[Mapping[str, object]]:
    """`schema` and what stands in its anyOf, oneOf, allOf and behind its references."""
    waiting = [(schema, 0)]
    for _ in range(_MOST):
        if not waiting:
            return
        place, depth = waiting.pop()
        if not isinstance(place, Mapping) or depth > _DEEPEST:
            continue
        yield place
        for key in ("anyOf", "oneOf", "allOf"):
            inner = place.get(key)
            waiting += [(item, depth + 1) for item in inner[:_MOST]] if isinstance(inner, list) else []
        waiting.append((_referred(place.get("$ref"), root), depth + 1))


def _referred(reference: object, root: object) -> object:
    """What ``#/$defs/name`` means in `root`."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    for key in reference[2:].split("/"):
        root = root.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root


def _kind(value: object) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return name
    return "array" if isinstance(value, list) else "object"


def _from_python(text: str) -> str:
    """A list or dict as Python writes it, in JSON's words; the empty text where it is something else."""
    parts: list[str] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return ""
        quoted = token["single"] if token["single"] is not None else token["double"]
        if quoted is not None:
            parts.append(json.dumps(_ESCAPE.sub(_unescaped, quoted), ensure_ascii=False))
        else:
            parts.append(_WORDS.get(token[0], token[0]))
        at = token.end()
    return "".join(parts)


def _unescaped(escape: re.Match[str]) -> str:
    number = escape[1] or escape[2] or escape[3]
    if number is not None:
        return chr(int(number, 16)) if int(number, 16) < 0x110000 else escape[0]
    letter = escape[4]
    return letter if letter in "'\"\\" else _LETTERS.get(letter, escape[0])
