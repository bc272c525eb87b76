"""A call written as one JSON object: ``{"name": .., "arguments": {..}}``, the keys in any order.

The arguments come out as the model writes them, piece by piece, once the name is known. Other keys are read
and left out.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod

from oneroof.text.parse_json import JsonScan, as_json

HELD = 1 << 16  # characters of a call that are held back at most before its head is known

_SPACE = re.compile(r"[ \t\n\r]*")


class CallReader(ABC):
    """What is being read as a call.

    From `begun` on, its name and that it has arguments are sure. `pieces` grows by the text of the arguments,
    a JSON object. `unshown` is what has been read since, and is not in them. `done` and `fault` end it.
    """

    def __init__(self) -> None:
        """A reader that has read nothing."""
        self.name = ""
        self.begun = False
        self.pieces: list[str] = []
        self.unshown: list[str] = []
        self.done = False
        self.fault = False

    @abstractmethod
    def feed(self, text: str, at: int) -> int:
        """Reads on from `at`; returns where it stopped: at the call's end, a fault, or where it waits."""

    def finish(self, rest: str) -> str:
        """The text has ended, `rest` being what was waited with; returns what of it is no argument."""
        return rest


class JsonCall(CallReader):
    """Reads one call that is a JSON object."""

    def __init__(self) -> None:
        super().__init__()
        self._state = "open"
        self._taken = 0  # characters read
        self._scan: JsonScan | None = None
        self._key = ""
        self._named = False
        self._arguments: list[str] | None = None  # where they have been seen

    def feed(self, text: str, at: int) -> int:
        """Reads on from `at`; returns where it stopped."""
        while at < len(text) and not self.done and not self.fault:
            end = len(text) if self.begun else min(len(text), at + HELD - self._taken)
            if end <= at:
                self.fault = True
                break
            before, note = at, self.begun and (self._state != "arguments" or self._scan is None)
            at = self._scanned(text, at, end) if self._scan else self._structure(text, at, end)
            self._taken += at - before
            if note:
                self.unshown.append(text[before:at])
        return at

    def _structure(self, text: str, at: int, end: int) -> int:
        """Reads white space, or one character that stands between strings and values."""
        if (space := _SPACE.match(text, at, end)) and space.end() > at:
            return space.end()
        character, state = text[at], self._state
        if state == "open" and character == "{":
            self._state = "first key"
        elif state in ("first key", "key") and character == '"':
            self._state, self._scan = "in key", JsonScan()
            return at
        elif state == "colon" and character == ":":
            self._state = "value"
        elif state == "value":
            self._value_begins(character)
            return at
        elif state == "after" and character == ",":
            self._state = "key"
        elif state in ("after", "first key") and character == "}" and self._named:
            if self._arguments is None:
                self._arguments = ["{}"]
                self._begin()
            self.done = self.begun
            self.fault = not self.begun
        else:
            self.fault = True
        return at + (not self.fault)

    def _value_begins(self, character: str) -> None:
        self._scan = JsonScan()
        if self._key == "name":
            self._state = "name"
            self.fault = character != '"' or self._named
        elif self._key in ("arguments", "parameters"):
            self._state = "arguments" if character == "{" else "quoted"
            self.fault = character not in '{"n' or self._arguments is not None
            if not self.fault and character == "{":
                self._arguments = self._scan.pieces
                self._begin()
        else:
            self._state = "other"

    def _scanned(self, text: str, at: int, end: int) -> int:
        """Reads a string or a value on."""
        scan = self._scan
        assert scan is not None
        stop = scan.feed(text, at, end)
        if self._state in ("name", "in key") and (cut := text.find("<", at, stop)) >= 0:
            self.fault = True  # no name has one: it may be where a call begins
            return cut
        self.fault = scan.fault
        if scan.done:
            self._scan = None
            self._value_ends("".join(scan.pieces) if self._state != "arguments" else "")
        return stop

    def _value_ends(self, value: str) -> None:
        state, self._state = self._state, "after"
        if state == "in key":
            self._key, self._state = json.loads(value), "colon"
        elif state == "name":
            self.name, self._named = json.loads(value), True
            self.fault = not self.name
            self._begin()
        elif state == "quoted":  # null, or the object as a string
            inner = "{}" if value == "null" else as_json(json.loads(value))
            self.fault = inner is None or not inner.startswith("{")
            if not self.fault and inner is not None:
                self._arguments = [inner]
                self._begin()

    def _begin(self) -> None:
        """Both the name and arguments are there: what comes of the arguments is shown from now on."""
        if self._named and self._arguments is not None and not self.begun:
            self.begun = True
            self.pieces = self._arguments  # the list that the scan goes on to fill
