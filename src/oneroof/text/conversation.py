"""A conversation as plain data, checked, and the stretches of text that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oneroof.errors import UserError

Message = Mapping[str, object]  # `role`, `content` and more, as OpenAI's chat API has them


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered conversation."""

    text: str
    special: bool  # special tokens spelt in it count as such


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages and what goes with them, all of it JSON: strings, numbers, booleans, None, lists and dicts."""

    messages: list[dict[str, object]]
    tools: list[object] | None
    switches: dict[str, object]  # template variables such as `enable_thinking`
    generate: bool  # end where the assistant's reply begins


def conversation(
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, object]] | None,
    switches: Mapping[str, object],
    generate: bool,
) -> Conversation:
    """The conversation, copied. Keys of a message whose value is None are left out, as transformers does.

    Raises `UserError` where there is no message, a message has no role, or anything is not JSON.
    """
    if isinstance(messages, (str, Mapping)) or not messages:
        raise UserError(
            "a conversation is a list of at least one message; got none; give {role, content} objects"
        )
    checked = [_message(message, i) for i, message in enumerate(messages)]
    return Conversation(
        messages=checked,
        tools=None if tools is None else [_plain(tool, f"tools[{i}]") for i, tool in enumerate(tools)],
        switches={str(name): _plain(value, str(name)) for name, value in switches.items()},
        generate=generate,
    )


def _message(message: Message, index: int) -> dict[str, object]:
    place = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"{place} is no object with a `role`; give {{role, content}} objects")
    plain = {str(k): _plain(v, f"{place}.{k}") for k, v in message.items() if v is not None}
    # Older names of the reasoning part; templates read the first.
    reasoning = next(
        (plain[key] for key in ("reasoning_content", "thinking", "reasoning") if key in plain), None
    )
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: object, place: str, depth: int = 0) -> object:
    """A copy in which strings and numbers have lost their subclasses: a template sees no foreign methods."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    if depth > 100:
        raise UserError(f"{place} is nested more than 100 deep; flatten it")
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{place}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise UserError(f"{place} is a {type(value).__name__}, not JSON; give text, numbers, lists or objects")
