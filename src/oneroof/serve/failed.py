"""Texts that failed while they were written, through no fault of the request."""

from __future__ import annotations

from oneroof.engine.request import Completion, Piece
from oneroof.serve.errors import Refusal


def check(completion: Completion) -> None:
    """A 500 for a text that failed."""
    if completion.finish_reason == "error":
        raise _refusal(completion.error)


def check_piece(piece: Piece) -> None:
    """A 500 for the end of one that failed."""
    if piece.finish_reason == "error":
        errors = [] if piece.output is None else [one.error for one in piece.output.completions if one.error]
        raise _refusal(errors[0] if errors else None)


def _refusal(why: str | None) -> Refusal:
    return Refusal(500, f"the text failed: {why or 'its logits are not numbers'}", code="generation_failed")
