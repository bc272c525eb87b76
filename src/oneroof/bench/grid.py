"""What is measured: pairs of tokens in and out, by batch sizes, as they are written on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from oneroof.errors import UserError


@dataclass(frozen=True)
class Case:
    """The shape of every text of a batch: tokens of its prompt, and tokens to write."""

    prompt: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.prompt}+{self.tokens}"

    @property
    def positions(self) -> int:
        """Places that one text takes."""
        return self.prompt + self.tokens


def read_cases(words: str) -> tuple[Case, ...]:
    """Cases from ``[[128,32],[512,64]]``; one pair may stand alone. UserError for anything else."""
    found = _read(words)
    pairs = [found] if _whole(found) else found
    cases = [Case(*pair) for pair in pairs if _whole(pair) and len(pair) == 2]
    if not cases or len(cases) < len(pairs):
        raise UserError(
            f"--cases {words!r} was given; pairs of tokens in and tokens out, each 1 or more, are allowed; "
            "try [[128,32],[512,64]]"
        )
    return tuple(cases)


def read_lengths(words: str, tokens: int) -> tuple[Case, ...]:
    """A case of `tokens` to write for each length of a prompt in ``128,512``; UserError for anything else."""
    found = _read(words)
    if not _whole(found):
        raise UserError(
            f"--prompts {words!r} was given; whole numbers of 1 or more are allowed, by commas; try 128,512"
        )
    return tuple(Case(prompt, tokens) for prompt in dict.fromkeys(found))


def read_batches(words: str, cases: Sequence[Case]) -> tuple[tuple[int, tuple[Case, ...]], ...]:
    """Each batch size with the cases that it is measured with, in the order given.

    `words`: ``8``, ``1,4`` and ``[1,4]`` are for all cases; ``[[1,4],[8]]`` has a list for each case.
    UserError for anything else.
    """
    found = _read(words)
    given = [found] * len(cases) if _whole(found) else found
    lists = [one for one in given if _whole(one)]
    if not lists or len(lists) < len(given):
        raise UserError(
            f"--batch-sizes {words!r} was given; whole numbers of 1 or more are allowed, or a list of them "
            "for each case; try 1,4,8"
        )
    if len(lists) != len(cases):
        raise UserError(
            f"--batch-sizes {words!r} has {len(lists)} lists for {len(cases)} cases; one each is allowed; "
            "try 1,4,8 for all"
        )
    batches = dict.fromkeys(batch for one in lists for batch in one)
    return tuple(
        (batch, tuple(case for case, one in zip(cases, lists, strict=True) if batch in one))
        for batch in batches
    )


def read_range(words: str) -> tuple[int, int]:
    """The least and the largest batch of a search, from ``LOW,HIGH``; UserError for anything else."""
    found = _read(words)
    if not _whole(found) or len(found) != 2 or found[0] > found[1]:
        raise UserError(
            f"--batch-range {words!r} was given; two whole numbers, the smaller first, are allowed; try 1,64"
        )
    return found[0], found[1]


def _read(words: str) -> list[object]:
    """`words` as a list, its outermost brackets written or not; empty where it is none."""
    for text in (words, f"[{words}]"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # the second, of brackets in brackets without end
            continue
        if isinstance(found, list):
            return found
    return []


def _whole(values: object) -> TypeGuard[list[int]]:
    """A list of whole numbers from 1 on, at least one."""
    return isinstance(values, list) and bool(values) and all(type(v) is int and v > 0 for v in values)
