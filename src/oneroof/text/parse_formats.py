"""How a model writes its thoughts, its answer and its calls, told from its chat template.

The template shows the model's own replies of earlier turns, so that the marks it was trained on stand in it.
No name of a model is asked. A word overrides what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from oneroof.errors import UserError

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
ANSWER, ANSWERED = "<response>", "</response>"


@dataclass(frozen=True, kw_only=True)
class ParserFormat:
    """The marks that count in a reply; every other text is content."""

    thinking: bool  # <think> ... </think> before the answer
    answer: bool = False  # <response> ... </response> around it
    calls: Literal["none", "json", "tagged"]  # inside <tool_call> ... </tool_call>

    def frame(self, name: str) -> tuple[str, str]:
        """The text before and after the arguments of a call of `name`, as templates write it.

        Between them stands a JSON object or, where calls are tagged, a `parameter_frame` for each argument.
        """
        if self.calls == "json":
            return f'{CALL}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ', f"}}\n{CALLED}"
        if self.calls == "tagged":
            return f"{CALL}\n{FUNCTION}{name}>\n", f"{FUNCTION_END}\n{CALLED}"
        raise UserError("this model's chat template knows no tool calls; leave the tools out")

    def parameter_frame(self, name: str) -> tuple[str, str]:
        """The text before and after the value of one argument of a tagged call."""
        return f"{PARAMETER}{name}>\n", f"\n{PARAMETER_END}\n"


FORMATS: Mapping[str, ParserFormat] = MappingProxyType(
    {
        "plain": ParserFormat(thinking=False, calls="none"),
        "thinking": ParserFormat(thinking=True, calls="none"),
        "hermes": ParserFormat(thinking=False, calls="json"),
        "qwen3": ParserFormat(thinking=True, calls="json"),
        "qwen3_coder": ParserFormat(thinking=False, calls="tagged"),
        "qwen3_coder_thinking": ParserFormat(thinking=True, calls="tagged"),
        "ernie_thinking": ParserFormat(thinking=True, answer=True, calls="json"),
    }
)


def formats_of(template_source: str, word: str = "auto") -> ParserFormat:
    """The format whose marks stand in a chat template, or the one that `word` names.

    A template without any mark, or no template (the empty text), gives `plain`. Raises `UserError` on an
    unknown word.
    """
    if word != "auto":
        if word not in FORMATS:
            raise UserError(f"there is no reply format {word!r}; give auto or one of {', '.join(FORMATS)}")
        return FORMATS[word]
    tagged, calls = FUNCTION in template_source, CALL in template_source
    return ParserFormat(
        thinking=THOUGHT in template_source or THINK in template_source,
        answer=ANSWER in template_source,
        calls="tagged" if tagged else "json" if calls else "none",
    )


def opens_thinking(prompt: str) -> bool:
    """Whether `prompt`, as it was rendered, ends inside thinking, so that the reply begins there.

    Judged by its very end alone: what users write further up opens nothing. Not by the switch that was given
    to the template, which may have other ways to open or close it. Where a reply that has begun is gone on
    with, push its text into the parser first and throw the events away.
    """
    return prompt[-256:].rstrip().endswith(THINK)
