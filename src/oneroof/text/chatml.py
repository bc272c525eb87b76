"""ChatML for checkpoints that have its two marks but no template, token for token as their own helper has it.

Each role, line break and content is tokenised by itself, so that a break never melts into a content that
begins with one; no special token can come out of a content.
"""

from __future__ import annotations

from oneroof.errors import UserError
from oneroof.text.conversation import Conversation, Segment

START, END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."  # where the conversation brings no system message


def chatml(conversation: Conversation) -> list[Segment]:
    """The blocks of `conversation`, a line break between them. Raises `UserError` on tools or non-text."""
    if conversation.tools:
        raise UserError(
            "this checkpoint has no chat template and plain ChatML knows no tools; leave the tools out"
        )
    messages = conversation.messages
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    segments: list[Segment] = []
    for index, message in enumerate(messages):
        content = message.get("content", "")
        if not isinstance(content, str):
            raise UserError(
                f"content of the {message['role']} message is no text; plain ChatML takes text alone"
            )
        opening = _opening(str(message["role"]), first=index == 0)
        segments += [*opening, Segment(content, special=False), Segment(END, special=True)]
    return [*segments, *_opening("assistant", first=False)] if conversation.generate else segments


def _opening(role: str, *, first: bool) -> list[Segment]:
    between = [] if first else [Segment("\n", special=False)]
    return [
        *between,
        Segment(START, special=True),
        Segment(role, special=False),
        Segment("\n", special=False),
    ]
