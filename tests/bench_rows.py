"""Rows made by hand, for the tests of what is told of them."""

from __future__ import annotations

from oneroof.bench.grid import Case
from oneroof.bench.measure import Round, Row


def made(batch: int, case: Case, *steps: float | None, scale: float = 1.0) -> Row:
    """A row of a round for each of `steps`, the seconds of a later token; round i takes 1 + i seconds."""
    rounds = tuple(
        Round(
            total=scale * (1.0 + i),
            prefill=scale * 0.2 * (1 + i),
            step=None if step is None else scale * step,
            outside=None if step is None else 0.07,
        )
        for i, step in enumerate(steps)
    )
    return Row(case=case, batch=batch, rounds=rounds, read=2e8 * scale, bandwidth=2e10)
