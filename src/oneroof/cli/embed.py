"""`oneroof embed`: texts in, vectors of length 1 out, as JSON lines."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from oneroof.cli.lines import Line, check_text, check_unicode, given_texts, holds_objects, read_lines
from oneroof.cli.options import ModelOptions
from oneroof.cli.results import Record, groups, print_record, told
from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Embed(ModelOptions):
    """Turn texts into vectors, by the model's own pooling and prompts, as JSON lines."""

    text: tuple[str, ...] = ()
    """A text; - reads it from standard input."""

    texts_file: Path | None = None
    """One text a line; in a .jsonl file objects with `text`."""

    instruction: str | None = None
    """What the texts are queries for, in words; texts that are to be found take none."""

    prompt_name: str | None = None
    """One of the model's own prompts to put before each text, such as query."""

    dimensions: int | None = None
    """Keep the first N numbers, brought to length 1 again; for models that were trained for it."""

    output: Path | None = None
    """Journal of results as JSON lines; an interrupted run, given again, goes on from it."""

    def run(self) -> int:
        """Read texts and journal, load the model if work is left, print a record a text."""
        if self.instruction is not None and self.prompt_name is not None:
            raise UserError("--instruction and --prompt-name were given; one of them is allowed; drop one")
        if self.dimensions is not None and self.dimensions < 1:
            raise UserError(f"--dimensions {self.dimensions} was given; 1 or more is allowed; try 256")
        check_unicode(self.instruction or "", "--instruction")
        texts = self._texts()
        facts = self.facts(("text", "texts_file", "output")) | {"texts": [line.text for line in texts]}
        for one in told(len(texts), partial(self._made, texts), output=self.output, facts=facts):
            print_record(one)
        return 0

    def _texts(self) -> list[Line]:
        lines = given_texts(self.text, "text")
        if self.texts_file is not None:
            lines += [
                Line(line.texts("text")["text"], line.where) if holds_objects(self.texts_file) else line
                for line in read_lines(self.texts_file)
            ]
        if not lines:
            raise UserError('there is no text; --text and --texts-file are allowed; try --text "The sea"')
        for line in lines:
            check_text(line.text, line.where)
        return lines

    def _made(self, texts: Sequence[Line], left: Sequence[int]) -> Iterator[tuple[int, Record]]:
        self.summon()
        from oneroof.cli.model import check_lengths, opened  # torch: not for --help
        from oneroof.engine.intake import Intake

        task, prompt = self.instruction, self.prompt_name
        with opened(self) as llm:
            width = llm.front.config.dim
            if self.dimensions is not None and self.dimensions > width:
                raise UserError(
                    f"--dimensions {self.dimensions} was given; 1 to {width} are allowed; leave it out"
                )
            endless = Intake(llm.front, context=sys.maxsize, writes=llm.writes, seed=None)

            def tokens(text: str) -> int:
                return len(endless.embedding(text, instruction=task, prompt=prompt)[0].token_ids)

            check_lengths(((texts[i].where, texts[i].text, tokens) for i in left), llm.context)
            for group in groups(left, [len(line.text) for line in texts], "embedding"):
                vectors = llm.embed([texts[index].text for index in group], instruction=task, prompt=prompt)
                for index, vector in zip(group, vectors, strict=True):
                    embedding = shortened(vector, self.dimensions)
                    yield index, {"index": index, "text": texts[index].text, "embedding": embedding}


def shortened(vector: Sequence[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` numbers of a vector, of length 1; each in as many digits as float32 has."""
    kept = vector if dimensions is None else vector[:dimensions]
    length = 1.0 if dimensions is None else math.hypot(*kept) or 1.0
    return [float(f"{value / length:.9g}") for value in kept]
