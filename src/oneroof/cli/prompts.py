"""Where `generate` takes its prompts from: the command line, standard input, a text file, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from oneroof.cli.lines import Line, check_text, check_unicode, given_texts, holds_objects, read_lines
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
    asked = [_of_text(line) for line in given_texts(texts, "prompt")]
    if file is not None:
        of = _of_json if holds_objects(file) else _of_text
        asked += [of(line) for line in read_lines(file)]
    for one in asked:
        if isinstance(one.prompt, str) or not one.prompt:
            check_text(str(one.prompt or ""), one.where)
    if not asked:
        raise UserError(
            'there is no prompt; --prompt and --prompts-file are allowed; try --prompt "Once upon a time"'
        )
    return asked


def _of_text(line: Line) -> Asked:
    return Asked(line.text, {}, line.where)


def _of_json(line: Line) -> Asked:
    where, given = line.where, line.object(("prompt", "messages", *_SAMPLING))
    if ("prompt" in given) == ("messages" in given):
        raise UserError(
            f'{where} has to be an object with either prompt or messages; try {{"prompt": "Once"}}'
        )
    sampling = {name: value for name, value in given.items() if name in _SAMPLING}
    if "prompt" in given:
        if not isinstance(given["prompt"], str):
            raise UserError(f"{where} has a prompt that is no text; a string is allowed; put it in quotes")
        return Asked(given["prompt"], sampling, where)
    turns = given["messages"]
    if not isinstance(turns, list) or not all(
        isinstance(t, dict) and isinstance(t.get("role"), str) for t in turns
    ):
        example = '[{"role": "user", "content": "Hi"}]'
        raise UserError(
            f"{where} has messages of another form; objects with role and content are allowed; try {example}"
        )
    for number, turn in enumerate(turns, start=1):
        _check_turn(turn, f"{where}: message {number}")
    return Asked(turns, sampling, where)


def _check_turn(turn: Mapping[str, object], where: str) -> None:
    """UserError for what no template can render; a list of parts is left to the template."""
    content = turn.get("content")
    silent = content is None and bool(turn.get("tool_calls"))  # an assistant that only calls tools
    if not isinstance(content, str | list) and not silent:
        found = "no content" if content is None else "a content that is no text"
        raise UserError(f"{where} has {found}; a string is allowed; put the text into quotes")
    try:
        check_unicode(json.dumps(turn, ensure_ascii=False), where)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; a string is allowed as its content") from None
