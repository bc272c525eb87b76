"""`oneroof chat`: a conversation in the terminal, or through a pipe with one line a turn."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from oneroof.cli.lines import check_unicode
from oneroof.cli.options import ModelOptions
from oneroof.cli.sampling import SamplingOptions
from oneroof.cli.switches import read_switches


@dataclass(frozen=True, kw_only=True)
class Chat(SamplingOptions, ModelOptions):
    """Talk with a model. From a pipe, each line is a message; /help in the chat lists its commands."""

    system: str | None = None
    """The system message before the conversation."""

    switch: tuple[str, ...] = ()
    """NAME=VALUE, handed to the chat template, such as enable_thinking=false."""

    max_tokens: int = 1024
    """Tokens of an answer at most. Old turns are left out to keep so much room, or half the context."""

    def run(self) -> int:
        """Answer line after line until the end; 2 if a line of a pipe could not be answered, else 0."""
        self.summon()
        from oneroof.cli.dialogue import Screen, converse  # torch: not for --help
        from oneroof.cli.model import opened
        from oneroof.cli.talk import Talk

        check_unicode(self.system or "", "--system")
        self.params({})  # what can be refused without the model is refused before it is loaded
        switches, screen = read_switches(self.switch), Screen()
        with opened(self) as llm:
            talk = Talk(
                llm,
                self.params(llm.front.generation),
                system=self.system,
                switches=switches,
                tell=screen.tell,
            )
            try:
                return converse(talk, screen, terminal=sys.stdin.isatty())
            finally:
                screen.end()
