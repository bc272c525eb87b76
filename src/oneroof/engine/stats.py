"""What an engine has done and has: plain numbers, for reports and for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Speed:
    """What was read and written so far, and the seconds it took; the caller's own time is not in them."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0  # the first token of each text is made in them
    tokens: int = 0  # all but the first of each text
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts since the engine began, and its state now."""

    waiting: int  # in the queue; completions of one prompt begin with the first of them
    running: int
    pages: int  # of the cache
    pages_free: int  # without content
    pages_cached: int  # held by nobody, kept for prompts that begin in the same way
    steps: int
    prompt_tokens: int  # of all requests that began to run
    cached_tokens: int  # of those, that had been read before
    tokens: int  # made
    preemptions: int
    finished: int  # requests
    aborted: int
    failed: int
    seconds: float  # within steps
    seconds_model: float  # of those, in the model, its logits and the choice of tokens
