"""Every bound of the server and its default, in one table; each is a flag of `oneroof serve`."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, fields

from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may ask of the server."""

    body: int = 2_000_000
    """Bytes of a request's body."""

    head: int = 32_768
    """Bytes of a request's line and headers."""

    tools: int = 128
    """Tools of one request."""

    tools_length: int = 262_144
    """Bytes of all tools of one request."""

    switches: int = 16_384
    """Bytes of chat_template_kwargs."""

    depth: int = 32
    """How deep tools and chat_template_kwargs may be nested."""

    head_seconds: float = 10.0
    """Seconds that a request's head may take to arrive."""

    body_seconds: float = 30.0
    """Seconds that a request's body may take to arrive."""

    idle_seconds: int = 30
    """Seconds that a connection may stay open between two requests."""

    request_seconds: float = 600.0
    """Seconds from a request to the end of its answer."""

    drain_seconds: int = 120
    """Seconds that answers under way may take once the server is told to end."""

    connections: int = 1024
    """Open connections."""

    queue: int = 256
    """Texts that wait for their turn, besides those that are written."""

    queue_tokens: int = 2_000_000
    """Tokens of all prompts that wait or are worked on."""

    max_tokens: int = 131_072
    """Tokens of one answer."""

    characters: int = 32
    """Characters of a prompt for each token of the model's context; more are not read."""

    prompts: int = 128
    """Prompts of one request."""

    n: int = 64
    """Answers to one prompt."""

    inputs: int = 2048
    """Texts of one request for embeddings or scores."""

    messages: int = 4096
    """Messages of one conversation."""

    logprobs: int = 20
    """Likeliest tokens that are told for each token."""

    logprob_entries: int = 400_000
    """Log-probabilities of one request: its tokens times those told for each."""

    stop: int = 16
    """Stop strings of one request."""

    stop_length: int = 256
    """Characters of a stop string."""

    stop_token_ids: int = 256
    """Stop tokens of one request."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise UserError(
                    f"--limits.{field.name.replace('_', '-')} {value} was given; more than 0 is allowed; "
                    "leave it out for the usual"
                )

    def check(self, name: str, value: float | None, asked: str = "") -> None:
        """UserError where `value` goes beyond the limit `name`; `asked` is what the request calls it."""
        most = getattr(self, name)
        if value is not None and value > most:
            raise UserError(f"{asked or name} is {value}; at most {most} is allowed here; ask for less")

    def count(self, name: str, values: Sized | None, asked: str = "") -> None:
        """UserError where there are more `values` than the limit `name` allows."""
        most = getattr(self, name)
        if values is not None and len(values) > most:
            raise UserError(f"{asked or name} has {len(values)} entries; at most {most} are allowed; cut it")
