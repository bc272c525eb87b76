"""Keeps special tokens that a user wrote from becoming special, whatever a chat template does with the text.

Before rendering, every such spelling in the input is replaced by one rare Chinese character that the input
and the template do not use; afterwards it is put back, also where JSON or Python has escaped it, and read as
plain text. Templates look at `<think>` or `<tool_response>` in messages: those are not special in the
checkpoints, and stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from oneroof.errors import UserError
from oneroof.text.conversation import Segment

# Extension B of the Chinese characters: letters, which `repr` prints as they are, and without case. Then the
# two ways in which JSON and Python spell them in ASCII; backslashes are doubled in a string within a string.
_RARE = range(0x20000, 0x2A6D7)
_SPELT = re.compile(
    r"(?P<letter>[\U00020000-\U0002a6d6])|(?<!\\)(?P<slashes>\\++)"
    r"(?:u(?P<high>d8[4-6][0-9a-f])\\++u(?P<low>d[c-f][0-9a-f]{2})|U(?P<code>0002[0-9a-f]{4}))"
)


class Shield:
    """Of one set of special tokens."""

    def __init__(self, special: Collection[str]) -> None:
        longest_first = sorted(filter(None, special), key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._beginnings = {text[:end] for text in longest_first for end in range(1, len(text))}
        self._reach = max(map(len, self._beginnings), default=0)

    def cover(self, value: object, source: str) -> Covered:
        """`value`, which is JSON, without special tokens in it, for a template of this `source`."""
        strings = list(_strings(value))
        if not any(self._spelt.search(text) or self._tail(text) for text in strings):
            return Covered(value, {}, self._spelt)
        used = {_letter(match) for text in (source, *strings) for match in _SPELT.finditer(text)}
        free = (character for code in _RARE if (character := chr(code)) not in used)
        stand_ins: dict[str, str] = {}

        def stand_in(text: str) -> str:
            if text not in stand_ins:
                stand_ins[text] = next(free, "")
            if not stand_ins[text]:
                raise UserError("the conversation uses every rare Chinese character there is; leave some out")
            return stand_ins[text]

        def covered(text: str) -> str:
            text = self._spelt.sub(lambda match: stand_in(match[0]), text)
            tail = self._tail(text)
            return text[: len(text) - tail] + stand_in(text[len(text) - tail :]) if tail else text

        changed = _changed(value, covered)
        return Covered(changed, {letter: text for text, letter in stand_ins.items()}, self._spelt)

    def _tail(self, text: str) -> int:
        """Characters at the end that begin a special token: the next string might complete it."""
        for length in range(min(self._reach, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


@dataclass(frozen=True)
class Covered:
    """Input for a template, and the way back."""

    value: object
    stand_ins: dict[str, str]  # rare character -> what it stands for
    spelt: re.Pattern[str]  # special tokens

    def segments(self, rendered: str) -> list[Segment]:
        """The rendered text, everything put back; only what the template wrote itself is special in it."""
        if not self.stand_ins:
            return [Segment(rendered, special=True)]
        parts = []
        start = 0
        for match in self.spelt.finditer(rendered):
            parts += [Segment(self._restored(rendered[start : match.start()]), special=False)]
            parts += [Segment(match[0], special=True)]
            start = match.end()
        parts += [Segment(self._restored(rendered[start:]), special=False)]
        return [part for part in parts if part.text]

    def _restored(self, text: str) -> str:
        return _SPELT.sub(self._meant, text)

    def _meant(self, match: re.Match[str]) -> str:
        """What was covered, spelt as its stand-in is."""
        text = self.stand_ins.get(_letter(match))
        if text is None or match["letter"]:
            return match[0] if text is None else text
        before = len(match["slashes"])
        own = before & -before  # 1, 2, 4: one more doubling each; those before stand for slashes of the text
        escaped = json.dumps(text) if match["high"] else ascii(text)
        return "\\" * (before - own) + escaped[1:-1].replace("\\", "\\" * own)


def _letter(match: re.Match[str]) -> str:
    """The character that a match of `_SPELT` spells."""
    if match["letter"]:
        return match["letter"]
    if match["high"]:
        return chr(0x10000 + ((int(match["high"], 16) & 0x3FF) << 10) + (int(match["low"], 16) & 0x3FF))
    return chr(int(match["code"], 16))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _strings(list(pair))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _changed(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_changed(key, change): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return value
