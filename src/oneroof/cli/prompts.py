"""Where `generate` takes its prompts from: the command line, standard input, a text file, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from oneroof.engine.request import SamplingParams
from oneroof.errors import UserError

Turns = list[Mapping[str, object]]
_SAMPLING = tuple(field.name for field in fields(SamplingParams))


@dataclass(frozen=True)
class Asked:
    """One prompt as it was given: a text or the turns of a conversation, with sampling fields of its own."""

    prompt: str | Turns
    sampling: Mapping[str, object]
    where: str  # "prompts.jsonl line 3", for messages

    def params(self, shared: SamplingParams) -> SamplingParams:
        """`shared` with this prompt's own fields over it; UserError where one cannot be."""
        try:
            return replace(shared, **self.sampling)  # type: ignore[arg-type]  # it checks the types itself
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None


def read_prompts(texts: Sequence[str], file: Path | None) -> list[Asked]:
    """All prompts: `texts` first (`-` is standard input), then those of `file`.

    Raises UserError for a file that cannot be read, for a prompt that is empty or not UTF-8, and where there
    is none.
    """
    asked = [
        Asked(_standard_input() if text == "-" else text, {}, f"prompt {i}") for i, text in enumerate(texts)
    ]
    if file is not None:
        asked += _read_file(file)
    for one in asked:
        if not one.prompt:
            raise UserError(
                f"{one.where} is empty; a text of at least one character is allowed; write something"
            )
        if isinstance(one.prompt, str) and not _is_unicode(one.prompt):
            raise UserError(f"{one.where} is not UTF-8; only text in UTF-8 is allowed; convert it")
    if not asked:
        raise UserError(
            'there is no prompt; --prompt and --prompts-file are allowed; try --prompt "Once upon a time"'
        )
    return asked


def _standard_input() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8; only text in UTF-8 is allowed; convert it") from None


def _read_file(file: Path) -> list[Asked]:
    try:
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}); a file of prompts is allowed; check the path"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; only text in UTF-8 is allowed; convert it") from None
    numbered = [(f"{file} line {number}", line) for number, line in enumerate(lines, start=1)]
    if file.suffix in (".jsonl", ".ndjson"):
        return [_of_json(where, line) for where, line in numbered]
    return [Asked(line, {}, where) for where, line in numbered]


def _of_json(where: str, line: str) -> Asked:
    try:
        fields_given = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{where} is no JSON ({error}); one object a line is allowed; mend the line"
        ) from None
    if not isinstance(fields_given, dict) or ("prompt" in fields_given) == ("messages" in fields_given):
        raise UserError(
            f'{where} has to be an object with either prompt or messages; try {{"prompt": "Once"}}'
        )
    unknown = sorted(set(fields_given) - {"prompt", "messages", *_SAMPLING})
    if unknown:
        allowed = ", ".join(("prompt", "messages", *_SAMPLING))
        raise UserError(f"{where} has {unknown[0]!r}; {allowed} are allowed; leave it out")
    sampling = {name: value for name, value in fields_given.items() if name in _SAMPLING}
    if "prompt" in fields_given:
        if not isinstance(fields_given["prompt"], str):
            raise UserError(f"{where} has a prompt that is no text; a string is allowed; put it in quotes")
        return Asked(fields_given["prompt"], sampling, where)
    turns = fields_given["messages"]
    if not isinstance(turns, list) or not all(
        isinstance(t, dict) and isinstance(t.get("role"), str) for t in turns
    ):
        example = '[{"role": "user", "content": "Hi"}]'
        raise UserError(
            f"{where} has messages of another form; objects with role and content are allowed; try {example}"
        )
    return Asked(turns, sampling, where)


def _is_unicode(text: str) -> bool:
    """False where bytes that are no UTF-8 came in from the command line."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
