"""From what a model writes to the parts of a message. Stream and whole answer come through here alike.

The incremental parser of thinking and of tool calls has its place in `parts_of`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Delta:
    """What a piece of text adds to a message."""

    content: str = ""
    reasoning: str = ""


class Parts(Protocol):
    """Takes a text piece by piece. All deltas together do not depend on how it was cut."""

    def push(self, text: str) -> list[Delta]:
        """What `text` adds."""

    def finish(self) -> list[Delta]:
        """What was held back: the text has ended."""


class Plain:
    """All text is the message's content."""

    def push(self, text: str) -> list[Delta]:
        """What `text` adds."""
        return [Delta(content=text)] if text else []

    def finish(self) -> list[Delta]:
        """Nothing is ever held back."""
        return []


def parts_of() -> Parts:
    """A parser for one answer."""
    return Plain()


def delta_json(delta: Delta) -> dict[str, object]:
    """A delta as a chunk of a stream has it."""
    made: dict[str, object] = {}
    if delta.reasoning:
        made["reasoning_content"] = delta.reasoning
    if delta.content:
        made["content"] = delta.content
    return made


def message(deltas: Iterable[Delta]) -> dict[str, object]:
    """The whole message that `deltas` add up to."""
    listed = list(deltas)
    made: dict[str, object] = {"role": "assistant", "content": "".join(d.content for d in listed)}
    if reasoning := "".join(d.reasoning for d in listed):
        made["reasoning_content"] = reasoning
    return made
