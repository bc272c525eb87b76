"""What a parser says while a reply comes in, and the reply that its words add up to.

Pieces of one kind that follow each other are one text; where they are parted means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of an offered tool begins."""

    index: int  # of the calls of this reply, from 0
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments: all pieces of a whole call, joined, are one JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call ends. `whole` is False where it was cut off or is broken: its arguments are then no JSON."""

    index: int
    whole: bool


Event = Reasoning | Content | CallBegun | CallArguments | CallEnded


@dataclass(frozen=True)
class Call:
    """One call of a reply."""

    id: str
    name: str
    arguments: str
    whole: bool


@dataclass(frozen=True)
class Reply:
    """A reply taken apart."""

    reasoning: str
    content: str
    calls: tuple[Call, ...]


def gathered(events: Iterable[Event]) -> Reply:
    """The reply that `events`, from the first push to the finish, tell."""
    reasoning: list[str] = []
    content: list[str] = []
    begun: list[CallBegun] = []
    arguments: dict[int, list[str]] = {}
    whole: set[int] = set()
    for event in events:
        match event:
            case Reasoning(text):
                reasoning.append(text)
            case Content(text):
                content.append(text)
            case CallBegun(index):
                begun.append(event)
                arguments[index] = []
            case CallArguments(index, text):
                arguments[index].append(text)
            case CallEnded(index, True):
                whole.add(index)
    calls = (Call(b.id, b.name, "".join(arguments[b.index]), b.index in whole) for b in begun)
    return Reply("".join(reasoning), "".join(content), tuple(calls))
