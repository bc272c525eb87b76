"""A conversation with a model: what was said so far, kept within the context. It reads and prints nothing.

This file imports torch; the command `chat` imports it when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from oneroof.engine.llm import LLM
from oneroof.engine.request import Output, SamplingParams
from oneroof.engine.seeds import nth_seed
from oneroof.errors import UserError
from oneroof.text.chat import ChatTemplate
from oneroof.text.conversation import Message


class Talk:
    """What a user and a model have said."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        *,
        system: str | None,
        switches: Mapping[str, object],
        tell: Callable[[str], None],
    ) -> None:
        """`tell` is handed what the user should know, a line each. Raises UserError where nobody can talk."""
        self._llm = llm
        self._params = params
        self._switches = switches
        self._context = llm.context
        self._tell = tell
        self._turns: list[Message] = []
        self._asked = 0
        llm.front.text()
        self.system: str | None = None
        self.instruct(system)

    def instruct(self, system: str | None) -> None:
        """Set the system message; None is none. Raises UserError, and sets nothing, where it cannot be."""
        before, self.system = self.system, system
        try:
            messages, _ = self._fitted([{"role": "user", "content": "."}])
            self._llm.stream([messages], self._params, switches=self._switches)  # checked, and not begun
        except UserError:
            self.system = before
            raise

    def reset(self) -> None:
        """Forget all that was said, but not the system message."""
        self._turns = []

    def ask(self, text: str, *, stopped: Callable[[], bool]) -> Iterator[str]:
        """The answer to `text` as it is written, until it ends or `stopped` says so.

        What was written of it is part of the conversation from then on. Raises UserError where `text` cannot
        be answered; the conversation is then what it was before.
        """
        messages, size = self._fitted([*self._turns, {"role": "user", "content": text}])
        most = min(self._params.max_tokens or self._context, self._context - size)
        params = replace(self._params, max_tokens=most, seed=nth_seed(self._params.seed or 0, self._asked))
        self._asked += 1
        said, output = list[str](), None
        for piece in self._llm.stream([messages], params, switches=self._switches):
            said.append(piece.text)
            output = piece.output
            yield piece.text
            if stopped():
                break
        self._keep(messages, "".join(said), output)
        if output is not None:
            self._tell_end(output, most)

    def _fitted(self, turns: list[Message]) -> tuple[list[Message], int]:
        """The system message and as many of the latest turns as leave room for an answer; their tokens."""
        template, window = self._template(), self._llm.front.generation.get("max_window_size")
        head: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        room = min(self._params.max_tokens or self._context, self._context // 2)
        limit = self._context - room
        if isinstance(window, int):
            limit = min(limit, window)  # what stands where there is no template would drop turns in silence
        messages = template.fit([*head, *turns], limit, switches=self._switches)
        size = len(template.tokens(messages, switches=self._switches))
        if size >= self._context:
            raise UserError(
                f"this message {'and the system message take' if head else 'takes'} {size} tokens; at most "
                f"{self._context - 1} are allowed in a context of {self._context}; say it in fewer words"
            )
        gone = len(head) + len(turns) - len(messages)
        if gone:
            self._tell(
                f"the context of {self._context} tokens is full: the oldest {gone} messages are left out"
            )
        return messages, size

    def _template(self) -> ChatTemplate:
        template = self._llm.front.template
        assert template is not None  # there is a tokenizer
        return template

    def _keep(self, messages: list[Message], said: str, output: Output | None) -> None:
        if output is not None and output.finish_reason == "error":
            why = output.completions[0].error or "its logits are not numbers"
            raise UserError(f"the answer failed: {why}; the message is taken back; try --dtype float32")
        turns = [message for message in messages if message.get("role") != "system"]
        if said:
            self._turns = [*turns, {"role": "assistant", "content": said}]
        else:
            self._tell("nothing was written; the message is taken back")
            self._turns = turns[:-1]

    def _tell_end(self, output: Output, most: int) -> None:
        if output.finish_reason != "length":
            return
        if most == self._params.max_tokens:
            self._tell(f"cut after {most} tokens; --max-tokens allows more")
        else:
            self._tell(f"cut: the context of {self._context} tokens is full")
