"""What a chat template may spend: processor time, the size of any one value, and the sum of all it makes.

A template is a program from a stranger: what it makes is charged here, and asked for first where it could be
large.
"""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, KeysView, ValuesView

_ITEM = 16  # what an element of a list weighs, in characters; its text comes on top
_ENTRY = 32  # ... and an entry of a dict
_LOOK = 64  # small steps between two looks at the clock
_WIDE = re.compile(r"%(\([^)]*\))?[^a-zA-Z%]*(\*|\d{5,})|\{[^{}]*(\{|\d{5,})")  # a width in a format


class OverspentError(Exception):
    """The template went past its budget; the message says which part of it."""


class Budget:
    """The allowance of one rendering, in one thread."""

    def __init__(self, *, size: int, work: int, seconds: float) -> None:
        """`size`: characters of a value; `work`: of all values made; `seconds`: of processor time."""
        self.size = size
        self._work = work
        self._end = time.thread_time() + seconds
        self._seconds = seconds
        self._steps = 0

    def step(self) -> None:
        """A turn of a loop or a call."""
        self._steps += 1
        if self._steps % _LOOK == 0:
            self.look()

    def look(self) -> None:
        """Raises `OverspentError` once the time is up."""
        if time.thread_time() > self._end:
            raise OverspentError(f"it ran for more than {self._seconds:.1f} s")

    def allow(self, amount: int) -> None:
        """Asked before something of `amount` characters is made."""
        if amount > self.size:
            raise OverspentError(f"it would make a value of {amount} characters, and {self.size} are allowed")

    def spend(self, amount: int) -> None:
        """Something of `amount` characters was made."""
        self._work -= amount
        if self._work < 0:
            raise OverspentError("it made too many values, or too large ones")
        if amount > 4096:
            self.look()
        else:
            self.step()

    def spend_on(self, value: object, *, text: bool = False) -> None:
        """`value` was made; or, with `text`, it is about to be turned into text with all that is in it."""
        if isinstance(value, (str, bytes)):
            self.allow(len(value))
            self.spend(len(value))
        else:
            weight = weigh(value, text=text, limit=self.size)
            self.allow(weight)
            self.spend(weight)

    def allow_numbers(self, values: object) -> None:
        """A whole number beyond `size` may be a width, a count or a repetition: none is let through."""
        for value in values if isinstance(values, (list, tuple)) else (values,):
            if isinstance(value, int) and abs(value) > self.size:
                raise OverspentError(f"it uses a number beyond {self.size} as a width or a count")

    def allow_format(self, pattern: str, values: list[object]) -> None:
        """Asked before `%` and `format`: widths are in the pattern, each mark may show the largest value."""
        if _WIDE.search(pattern.replace("{{", "").replace("}}", "")):
            raise OverspentError("it formats with a width that is not a small number")
        largest = max((weigh(value, text=True, limit=self.size) for value in values), default=0)
        self.allow(len(pattern) + (pattern.count("%") + pattern.count("{")) * (largest + 9999))


def weigh(value: object, *, text: bool, limit: int) -> int:
    """About how many characters `value` holds, with all that is in it; without `text`, strings count as none.

    What is shared counts as often as it is met, as when it is printed. Stops a little past `limit`.
    """
    total, waiting = 0, [value]
    while waiting and total <= limit:
        item = waiting.pop()
        if isinstance(item, (str, bytes)):
            total += len(item) if text else 0
        elif isinstance(item, dict):
            total += _ENTRY * len(item)
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
            total += _ITEM * len(item)
            waiting += item
        elif isinstance(item, int):
            total += item.bit_length() // 3
    return total
