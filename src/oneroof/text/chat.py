"""Conversations to tokens, through the checkpoint's own chat template or, where it has none, ChatML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from oneroof.errors import UserError
from oneroof.text.chatml import END, START, chatml
from oneroof.text.conversation import Conversation, Message, Segment, conversation
from oneroof.text.declared import read_declared
from oneroof.text.shield import Shield
from oneroof.text.template import Template, find_templates
from oneroof.text.tokenizer import Tokenizer

Tools = Sequence[Mapping[str, object]] | None
_NONE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """How a checkpoint wants its conversations. Safe to use from several threads at once.

    `messages` are OpenAI's: `role`, `content`, and what else the template reads. `tools` are JSON schemas.
    `switches` are further variables of the template, such as ``{"enable_thinking": False}``. `generate` ends
    the text where the assistant is to speak. Special tokens spelt in any of these are plain text, always.

    Every method raises `UserError` where the template refuses the messages, fails, or goes past its limits.
    """

    form: Callable[[Conversation], list[Segment]]
    tokenizer: Tokenizer
    variables: frozenset[str]  # that the template reads: `tools` is among them where it knows tools
    source: str = ""  # of its templates, for whoever looks for marks in them (`formats_of`); empty for ChatML

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools = None,
        switches: Mapping[str, object] = _NONE,
        generate: bool = True,
    ) -> str:
        """The conversation as text."""
        rendered = self.form(conversation(messages, tools=tools, switches=switches, generate=generate))
        return "".join(segment.text for segment in rendered)

    def tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools = None,
        switches: Mapping[str, object] = _NONE,
        generate: bool = True,
        window: int | None = None,
    ) -> list[int]:
        """The conversation as token ids.

        `window`: the oldest turns are left out until the system message and the turns before the newest take
        fewer tokens than this, the newest not counted: the rule of the `make_context` that came with ChatML.
        """
        if window is not None:
            fits = partial(self._within, window, tools, switches)
            messages = _shortened(messages, fits)
        rendered = self.form(conversation(messages, tools=tools, switches=switches, generate=generate))
        return [id for part in rendered for id in self.tokenizer.encode(part.text, special=part.special)]

    def _within(
        self,
        window: int,
        tools: Tools,
        switches: Mapping[str, object],
        head: list[Message],
        old: list[Message],
        newest: list[Message],
    ) -> bool:
        return len(self.tokens([*head, *old], tools=tools, switches=switches, generate=False)) < window

    def fit(
        self,
        messages: Sequence[Message],
        limit: int,
        *,
        tools: Tools = None,
        switches: Mapping[str, object] = _NONE,
        generate: bool = True,
    ) -> list[Message]:
        """`messages` without their oldest turns, as few as make the whole prompt at most `limit` tokens.

        The system message and the newest turn always stay, also where they alone are longer.
        """

        def fits(head: list[Message], old: list[Message], newest: list[Message]) -> bool:
            kept = [*head, *old, *newest]
            return len(self.tokens(kept, tools=tools, switches=switches, generate=generate)) <= limit

        return _shortened(messages, fits)


def load_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a checkpoint folder; ChatML where it has none but the tokenizer has the two marks.

    Where there is neither, one whose use is a `UserError`. Raises `UserError` on one that does not compile.
    """
    folder = Path(folder)
    declared = read_declared(folder)
    sources = find_templates(folder, declared)
    if sources:
        templates = {
            name: Template(text, f"the chat template {name!r} of {folder}") for name, text in sources.items()
        }
        variables = frozenset(name for template in templates.values() for name in template.variables)
        form = _Rendering(templates, dict(declared.roles), Shield(tokenizer.special), folder)
        return ChatTemplate(form, tokenizer, variables, "\n".join(sources.values()))
    if START in tokenizer.special and END in tokenizer.special:
        return ChatTemplate(chatml, tokenizer, frozenset({"messages", "add_generation_prompt"}))

    def missing(_: Conversation) -> list[Segment]:
        raise UserError(
            f"{folder} has no chat template; give plain prompts, or put a chat_template.jinja there"
        )

    return ChatTemplate(missing, tokenizer, frozenset())


@dataclass(frozen=True)
class _Rendering:
    """A conversation through a Jinja template, special tokens in it kept from becoming special."""

    templates: Mapping[str, Template]
    roles: Mapping[str, str]  # `eos_token` and its like, which templates may name
    shield: Shield
    folder: Path

    def __call__(self, conversation: Conversation) -> list[Segment]:
        template = self._chosen(conversation)
        given = {"messages": conversation.messages, "tools": conversation.tools, **conversation.switches}
        covered = self.shield.cover(given, template.source)
        assert isinstance(covered.value, dict)
        variables = {
            "documents": None,
            **self.roles,
            **covered.value,
            "add_generation_prompt": conversation.generate,
        }
        return covered.segments(template.render(variables))

    def _chosen(self, conversation: Conversation) -> Template:
        taken = {"messages", "tools", "add_generation_prompt"} & conversation.switches.keys()
        if taken:
            raise UserError(f"{min(taken)!r} is no template switch; it has an argument of its own; use that")
        if conversation.tools is not None and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" not in self.templates:
            names = ", ".join(sorted(self.templates))
            raise UserError(f"{self.folder} has chat templates {names} but none called default; rename one")
        return self.templates["default"]


def _shortened(
    messages: Sequence[Message], fits: Callable[[list[Message], list[Message], list[Message]], bool]
) -> list[Message]:
    """The system messages at the head, as many of the latest old turns as fit, and the newest turn."""
    head, turns = _turns(messages)
    *old, newest = turns or [[]]
    fewest, most = 0, len(old)  # kept; growing only makes it longer, so that the border can be searched
    while fewest < most:
        half = (fewest + most + 1) // 2
        kept = [message for turn in old[len(old) - half :] for message in turn]
        fewest, most = (half, most) if fits(head, kept, newest) else (fewest, half - 1)
    return [*head, *(message for turn in old[len(old) - fewest :] for message in turn), *newest]


def _turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """System messages at the head; then turns, each of which begins where a user speaks."""
    start = next((i for i, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    turns: list[list[Message]] = []
    for message in messages[start:]:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:start]), turns
