"""One completion as the scheduler sees it: its tokens, how far they are computed, and the pages they fill.

It knows no text and no tensor. What is *computed* counts work that is in flight; what is *pending* was chosen
by a batch in flight and is not known on the host yet.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Listed
from enum import Enum

from oneroof.engine.prefix import Chain


class State(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # holds no pages
    RUNNING = "running"
    DONE = "done"


class Sequence:
    """Completion `number` of request `key`; `order` is its place in the queue, the lowest first."""

    def __init__(
        self,
        key: int,
        number: int,
        prompt: Listed[int],
        limit: int,
        order: int,
        *,
        chain: Chain | None = None,
        reads_cache: bool = True,
        runs_ahead: bool = True,
        alpha: float = 1.0,
    ) -> None:
        """At most `limit` tokens are made.

        `chain` None: its pages are not kept for others. `reads_cache`: it may begin with others' pages.
        `runs_ahead`: its next token may be launched before the last one is known on the host.
        """
        self.key = key
        self.number = number
        self.prompt = len(prompt)
        self.limit = limit
        self.order = order
        self.chain = chain
        self.reads_cache = reads_cache
        self.runs_ahead = runs_ahead
        self.alpha = alpha  # NTK stretch, fixed for its life
        self.tokens = array("q", prompt)  # the prompt, then what was made and is known
        self.pages = array("q")
        self.computed = 0  # positions whose keys are written once all in flight is done
        self.pending = 0  # tokens chosen in flight
        self.drafts: tuple[int, ...] = ()  # guesses of the next tokens, to be checked by the next step
        self.checking = False  # guesses are in flight: how far it is computed is not known
        self.lane = -1  # its row in the runner's tensors, while it runs
        self.epoch = 0  # how often it lost its pages
        self.cached = 0  # prompt tokens that came from the cache when it first ran
        self.borrowed = 0  # pages at its head that others had filled
        self.void = 0  # what was launched in an epoch before this one was made from bad numbers
        self.labelled = 0  # pages at its head that have been offered to others
        self.siblings: list[Sequence] = []  # completions that begin where its prompt ends
        self.state = State.WAITING
        self.queued = False  # it has a place in the queue

    @property
    def total(self) -> int:
        """Tokens it has, those in flight included."""
        return len(self.tokens) + self.pending

    @property
    def need(self) -> int:
        """Rows that are left to read before the next token can be chosen."""
        return self.total - self.computed

    @property
    def ready(self) -> bool:
        """It runs and can be part of the next batch."""
        return (
            self.state is State.RUNNING
            and not self.checking
            and (self.pending == 0 or self.runs_ahead)
            and self.total - self.prompt < self.limit
        )

    def __repr__(self) -> str:
        return (
            f"<{self.key}.{self.number} {self.state.value} {self.computed}/{len(self.tokens)}+{self.pending}>"
        )
