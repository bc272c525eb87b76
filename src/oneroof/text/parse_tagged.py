"""A call in tags: ``<function=name>``, then ``<parameter=key>``, a line, the value, a line, ``</parameter>``.

A value that may be nothing but a string comes out piece by piece, escaped; others are held until they end.
A closing tag ends a value only where another tag of the call follows: a text about tags stays whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from oneroof.text.parse_calls import CallReader
from oneroof.text.parse_formats import CALLED, FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END
from oneroof.text.parse_values import kinds_of, written

SPACE = 64  # characters of white space between two tags at most
NAME = 256  # characters of a name at most

_NAME = re.compile(r"[^<>\n]*")
_SPACE = re.compile(r"\s*")
_AFTER = {  # what ends a value, and what has to follow it there
    PARAMETER_END: (PARAMETER, FUNCTION_END, CALLED),
    FUNCTION_END: (CALLED,),  # the value's own end was forgotten
}
_VALUE_END = re.compile("|".join(re.escape(tag) for tag in _AFTER))
_STRING = frozenset({"string"})
_NULLABLE = frozenset({"string", "null"})
_NULL = 6  # a text of this length is no word for null


class TaggedCall(CallReader):
    """Reads one call in tags."""

    def __init__(self, schemas: Mapping[str, Mapping[str, object]], *, inside: bool) -> None:
        """`schemas`: name of a tool -> schema of its arguments; `inside`: ``<function=`` has been read."""
        super().__init__()
        self._schemas = schemas
        self._state = "function name" if inside else "open"
        self._space = 0
        self._word = ""
        self._kinds = _STRING
        self._value: list[str] | None = None  # of a value that is held back
        self._held = 0
        self._fresh = False  # the value's first character is still to come
        self._first = True  # no argument has been shown
        self._shown = False  # something was, in this step

    def feed(self, text: str, at: int) -> int:
        """Reads on from `at`; returns where it stopped: what follows there is waited with."""
        while not self.done and not self.fault:
            before = at
            if self._state == "value":
                at, moved = self._in_value(text, at)
            elif self._state.endswith("name"):
                at, moved = self._in_name(text, at)
            else:
                at, moved = self._between(text, at)
            self._note(text[before:at])
            if not moved:
                break
        return at

    def finish(self, rest: str) -> str:
        """A string that is cut off gets what was waited with."""
        if self._state != "value" or self._value is not None:
            return rest
        body, closed, _ = rest.partition(PARAMETER_END)
        if self._fresh:
            body = body.removeprefix("\n")
        self._show(_escaped(body.removesuffix("\n") if closed else body) + ('"' if closed else ""))
        return ""

    def _between(self, text: str, at: int) -> tuple[int, bool]:
        """Reads white space and the next tag; the flag says whether it is worth going on."""
        space = _SPACE.match(text, at, min(len(text), at + SPACE + 1 - self._space))
        end = space.end() if space else at
        self._space += end - at
        if self._space > SPACE:
            self.fault = True
            return end - 1, False
        if end == len(text):
            return end, False
        tags = (FUNCTION,) if self._state == "open" else (PARAMETER, FUNCTION_END, CALLED)
        for tag in tags:
            if text.startswith(tag, end):
                self._space = 0
                return self._tag(tag, end), True
        self.fault = not _begins(text, end, tags)
        return end, False

    def _tag(self, tag: str, at: int) -> int:
        if tag == FUNCTION:
            self._state, self._word = "function name", ""
            return at + len(tag)
        if not self.begun:
            self.begun = True
            self._show("{")
            self.unshown += [tag] if tag == PARAMETER else []
        if tag == PARAMETER:
            self._state, self._word = "parameter name", ""
            return at + len(tag)
        self._show("}")
        self.done = True
        return at if tag == CALLED else at + len(tag)

    def _in_name(self, text: str, at: int) -> tuple[int, bool]:
        run = _NAME.match(text, at, min(len(text), at + NAME - len(self._word)))
        end = run.end() if run else at
        self._word += text[at:end]
        if end == len(text):
            return end, False
        if text[end] != ">" or not self._word.strip():
            self.fault = True
            return end, False
        word = self._word.strip()
        if self._state == "function name":
            self.name, self._state = word, "body"
        else:
            self._value_begins(word)
        return end + 1, True

    def _value_begins(self, key: str) -> None:
        schema = self._schemas.get(self.name, {})
        properties = schema.get("properties")
        own = properties.get(key) if isinstance(properties, Mapping) else None
        self._kinds = kinds_of(own, schema)
        self._state, self._word, self._fresh, self._held = "value", key, True, 0
        self._value = None if self._kinds == _STRING else []
        if self._value is None:
            self._show(self._head() + '"')

    def _head(self) -> str:
        comma = "" if self._first else ", "
        self._first = False
        return f"{comma}{json.dumps(self._word, ensure_ascii=False)}: "

    def _in_value(self, text: str, at: int) -> tuple[int, bool]:
        if self._fresh:
            if at == len(text):
                return at, False
            self._fresh = False
            if text[at] == "\n":
                return at + 1, True
        found, search = -1, at
        while mark := _VALUE_END.search(text, search):
            found, search = mark.span()
            follows = _followed(text, search, _AFTER[mark[0]])
            if follows:
                self._take(text[at : found - (found > at and text[found - 1] == "\n")])
                self._value_ends()
                return (search if mark[0] == PARAMETER_END else found), True
            if follows is None:
                break
        end = found if mark else _held_from(text, search)
        end -= end > at and text[end - 1] == "\n"
        self._take(text[at:end])
        return end, False

    def _take(self, text: str) -> None:
        """A piece of the value itself."""
        if not text:
            return
        if self._value is None:
            self._show(_escaped(text))
            return
        self._value.append(text)
        self._held += len(text)
        if self._kinds == _NULLABLE and self._held >= _NULL:
            self._show(f'{self._head()}"{_escaped("".join(self._value))}')
            self._value = None

    def _value_ends(self) -> None:
        if self._value is None:
            self._show('"')
        else:
            self._show(self._head() + written("".join(self._value), self._kinds))
        self._state, self._value = "body", None

    def _show(self, text: str) -> None:
        if text:
            self.pieces.append(text)
        self.unshown.clear()
        self._shown = True

    def _note(self, source: str) -> None:
        """`source` has been read; where something was shown, it is in that."""
        if self._shown:
            self._shown = False
        elif source:
            self.unshown.append(source)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _begins(text: str, at: int, tags: tuple[str, ...]) -> bool:
    """Whether what stands at `at` may yet become one of `tags`."""
    return len(text) - at < NAME and any(tag.startswith(text[at:]) for tag in tags)


def _followed(text: str, at: int, tags: tuple[str, ...]) -> bool | None:
    """Whether white space and one of `tags` stand at `at`; None where more text has to tell."""
    space = _SPACE.match(text, at, min(len(text), at + SPACE))
    end = space.end() if space else at
    if any(text.startswith(tag, end) for tag in tags):
        return True
    return None if end == len(text) or _begins(text, end, tags) else False


def _held_from(text: str, at: int) -> int:
    """Where the end of `text` begins that may become a closing tag; its length where there is none."""
    place = text.rfind("<", max(at, len(text) - len(PARAMETER_END) + 1))
    return place if place >= 0 and _begins(text, place, tuple(_AFTER)) else len(text)
