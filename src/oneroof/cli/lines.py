"""Input files of the commands: one text a line, or in a `.jsonl` file one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneroof.errors import UserError

_OBJECTS = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Line:
    """A line of a file and its place there, as a message names it."""

    text: str
    where: str  # "prompts.jsonl line 3"

    def texts(self, name: str, *others: str) -> dict[str, str]:
        """Of the line as a JSON object: the text `name`, and those of `others` that are there."""
        found = self.object((name, *others))
        if name not in found:
            raise UserError(f'{self.where} has no {name}; it is needed; try {{"{name}": "..."}}')
        for given, value in found.items():
            if not isinstance(value, str):
                raise UserError(
                    f"{self.where} has a {given} that is no text; a string is allowed; put it in quotes"
                )
        return {given: str(value) for given, value in found.items()}

    def object(self, allowed: Collection[str]) -> Mapping[str, object]:
        """The line as a JSON object with no other names than these; UserError where it is none."""
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError) as error:  # the second, of brackets without end
            raise UserError(
                f"{self.where} is no JSON ({error}); one object a line is allowed; mend the line"
            ) from None
        names, verb = ", ".join(allowed), "are" if len(allowed) > 1 else "is"
        if not isinstance(found, dict):
            raise UserError(f"{self.where} is no JSON object; one with {names} is allowed; mend the line")
        unknown = sorted(set(found) - set(allowed))
        if unknown:
            raise UserError(f"{self.where} has {unknown[0]!r}; {names} {verb} allowed; leave it out")
        return found


def read_lines(file: Path) -> list[Line]:
    """The lines of a text file in UTF-8; UserError where it cannot be read."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}); a text file is allowed; check the path"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; only text in UTF-8 is allowed; convert it") from None
    if not content:
        raise UserError(f"{file} is empty; a line for each text is allowed; write one")
    lines = content.rstrip("\n").split("\n")
    return [Line(text, f"{file} line {number}") for number, text in enumerate(lines, start=1)]


def given_texts(texts: Sequence[str], name: str) -> list[Line]:
    """Texts of the command line, `-` read from standard input; `name` is what a message calls them."""
    return [
        Line(standard_input() if text == "-" else text, f"{name} {index}") for index, text in enumerate(texts)
    ]


def holds_objects(file: Path) -> bool:
    """Whether its lines are JSON objects, by the ending of its name."""
    return file.suffix in _OBJECTS


def standard_input() -> str:
    """All of it, without the last line's end; UserError where it is not UTF-8."""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8; only text in UTF-8 is allowed; convert it") from None


def check_text(text: str, where: str) -> None:
    """UserError for a text that is empty or not UTF-8."""
    if not text:
        raise UserError(f"{where} is empty; a text of at least one character is allowed; write something")
    check_unicode(text, where)


def check_unicode(text: str, where: str) -> None:
    """UserError for half a character: what a byte that is no UTF-8 becomes on the command line."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{where} is not UTF-8; only text in UTF-8 is allowed; convert it")
