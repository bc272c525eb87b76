"""One JSON value, read as its text comes: no character is looked at twice, and nothing is read by recursion.

Strict JSON but for one thing: a control character inside a string, which models write, comes out as its
escape.
"""

from __future__ import annotations

import json
import re

DEEPEST = 256  # objects and lists inside each other; readers of JSON fail at some hundreds

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = frozenset("0123456789abcdefABCDEF")
_WORDS = {"t": "true", "f": "false", "n": "null"}
_DIGITS = dict.fromkeys("0123456789")
_NUMBER: dict[str, dict[str, str]] = {  # state -> character -> state
    "minus": {**dict.fromkeys("123456789", "whole"), "0": "zero"},
    "zero": {".": "point", "e": "e", "E": "e"},
    "whole": {**dict.fromkeys(_DIGITS, "whole"), ".": "point", "e": "e", "E": "e"},
    "point": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {**dict.fromkeys(_DIGITS, "fraction"), "e": "e", "E": "e"},
    "e": {**dict.fromkeys(_DIGITS, "exponent"), "+": "sign", "-": "sign"},
    "sign": dict.fromkeys(_DIGITS, "exponent"),
    "exponent": dict.fromkeys(_DIGITS, "exponent"),
}
_ENDS = frozenset({"zero", "whole", "fraction", "exponent"})  # where a number may end


class JsonScan:
    """Reads one value; `pieces` grows by its text, `done` tells its end, `fault` that it is none.

    A number at the top ends where another character stands, which is not taken.
    """

    def __init__(self) -> None:
        """A scan that has read nothing; white space before the value is not allowed."""
        self.pieces: list[str] = []
        self.done = False
        self.fault = False
        self._open: list[str] = []  # brackets that are open
        self._state = "value"
        self._rest = ""  # of a word such as `true`
        self._key = False  # the string is a key
        self._hex = 0  # digits still to come after \\u
        self._from = 0

    def feed(self, text: str, at: int, end: int) -> int:
        """Reads `text[at:end]` up to the value's end or a fault; returns where it stopped."""
        self._from = at
        while at < end and not self.done and not self.fault:
            at = self._step(text, at, end)
        if at > self._from:
            self.pieces.append(text[self._from : at])
        return at

    def finished(self) -> bool:
        """Whether the value is whole if no text follows."""
        return self.done or (not self.fault and not self._open and self._state in _ENDS)

    def _step(self, text: str, at: int, end: int) -> int:
        state = self._state
        if state == "string":
            return self._string(text, at, end)
        if state in _NUMBER:
            return self._number(text, at, end)
        character = text[at]
        if state == "word":
            return self._word(character, at)
        if state in ("escape", "hex"):
            return self._escape(character, at)
        if self._open and character in " \t\n\r":
            space = _SPACE.match(text, at, end)
            return space.end() if space else at
        return self._structure(character, at)

    def _string(self, text: str, at: int, end: int) -> int:
        run = _PLAIN.match(text, at, end)
        at = run.end() if run else at
        if at == end:
            return at
        character = text[at]
        if character == '"':
            if self._key:
                self._state = "colon"
            else:
                self._value_ends()
        elif character == "\\":
            self._state = "escape"
        else:  # a control character: its escape instead
            self.pieces += [text[self._from : at], json.dumps(character)[1:-1]]
            self._from = at + 1
        return at + 1

    def _escape(self, character: str, at: int) -> int:
        if self._state == "hex":
            self.fault = character not in _HEX
            self._hex -= not self.fault
            self._state = "hex" if self._hex else "string"
        elif character == "u":
            self._state, self._hex = "hex", 4
        else:
            self.fault = character not in '"\\/bfnrt'
            self._state = "string"
        return at + (not self.fault)

    def _number(self, text: str, at: int, end: int) -> int:
        state: str | None = self._state
        while at < end and (state := _NUMBER[self._state].get(text[at])) is not None:
            self._state = state
            at += 1
        if state is None:
            if self._state in _ENDS:
                self._value_ends()
            else:
                self.fault = True
        return at

    def _word(self, character: str, at: int) -> int:
        if character != self._rest[0]:
            self.fault = True
            return at
        self._rest = self._rest[1:]
        if not self._rest:
            self._value_ends()
        return at + 1

    def _structure(self, character: str, at: int) -> int:
        """A character between values."""
        state = self._state
        if state in ("value", "first item") and self._value_begins(character):
            return at + 1
        closes = {"first item": "]", "first key": "}"}.get(state)
        if state == "after":
            closes = "}" if self._open[-1] == "{" else "]"
        if character == closes:
            self._open.pop()
            self._value_ends()
        elif state == "after" and character == ",":
            self._state = "key" if self._open[-1] == "{" else "value"
        elif state in ("key", "first key") and character == '"':
            self._state, self._key = "string", True
        elif state == "colon" and character == ":":
            self._state = "value"
        else:
            self.fault = True
            return at
        return at + 1

    def _value_begins(self, character: str) -> bool:
        if character == '"':
            self._state, self._key = "string", False
        elif character in "{[" and len(self._open) < DEEPEST:
            self._open.append(character)
            self._state = "first key" if character == "{" else "first item"
        elif character in _WORDS:
            self._state, self._rest = "word", _WORDS[character][1:]
        elif character == "-":
            self._state = "minus"
        elif character in _DIGITS:
            self._state = "zero" if character == "0" else "whole"
        else:
            return False
        return True

    def _value_ends(self) -> None:
        self.done = not self._open
        self._state = "after"


def as_json(text: str) -> str | None:
    """`text`, space around it left out, as the text of one JSON value; None where it is none."""
    text = text.strip(" \t\n\r")
    scan = JsonScan()
    stopped = scan.feed(text, 0, len(text))
    return "".join(scan.pieces) if stopped == len(text) and scan.finished() else None
