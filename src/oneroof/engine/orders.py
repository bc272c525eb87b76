"""What the rank that schedules tells the others: plain data, by msgspec, one message a step.

An order says what is read, and which rows of it logits are made of, in turn: all ranks of the last stage take
part in each. Nothing in it can name code to run.
"""

from __future__ import annotations

import msgspec
import numpy as np

from oneroof.engine.assemble import Sheet

Rows = list[list[int]]  # for each call of the head, rows of the hidden states


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The first order: how many pages the caches have, the null page not among them."""

    pages: int


class StepOrder(msgspec.Struct, frozen=True, tag="step"):
    """A batch over the cache."""

    chores: list[tuple[int, int]]
    sheet: bytes  # int64
    counts: list[int]
    width: int
    alphas: list[float] | None
    rows: Rows

    @staticmethod
    def of(chores: list[tuple[int, int]], sheet: Sheet | None, rows: Rows) -> StepOrder:
        """That of a step whose tokens are all known; without a sheet it only has chores."""
        if sheet is None:
            return StepOrder(chores, b"", [], 0, None, [])
        return StepOrder(chores, sheet.numbers.tobytes(), list(sheet.counts), sheet.width, sheet.alphas, rows)

    def placed(self) -> Sheet | None:
        """The sheet again."""
        if not self.counts:
            return None
        numbers = np.frombuffer(self.sheet, dtype=np.int64).copy()
        return Sheet(numbers, tuple(self.counts), self.width, self.alphas)


class TextsOrder(msgspec.Struct, frozen=True, tag="texts"):
    """Whole texts, without a cache."""

    texts: list[list[int]]
    rows: Rows


class End(msgspec.Struct, frozen=True, tag="end"):
    """No more will come."""


Order = Begin | StepOrder | TextsOrder | End
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)


def pack(order: Order) -> bytes:
    """`order` as it is told."""
    return msgspec.msgpack.encode(order)


def unpack(said: bytes) -> Order:
    """What was told."""
    return _orders.decode(said)
