"""What the next batch is made of: who reads how many tokens, into which pages.

First come, first served, without starvation. Every running sequence gets a row of each step, or of one in
turn where there are stages; what is left of the step goes to prompts, half of it at a time, so that a long
prompt does not hold up short ones behind it.
When pages run out, the youngest sequence gives its own back and is computed anew later. No tensors: the
scheduler knows numbers alone, and never what a token says. Several steps may be in flight; each is collected
once, in the order in which they were made.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

from oneroof.engine.allocator import Allocator
from oneroof.engine.sequence import Sequence, State

POISON = -1  # as the source of a chore: the page is to be made unreadable


@dataclass(frozen=True)
class Part:
    """Rows ``start .. start + count - 1`` of `sequence`, read by one step."""

    sequence: Sequence
    start: int
    count: int
    epoch: int
    heirs: tuple[Sequence, ...]  # who choose a token from the last row; none while the prompt is not read
    drafts: tuple[int, ...] = ()  # the tokens of the last rows, which are guesses; each chooses a token too

    @property
    def end(self) -> int:
        """The position after the last row."""
        return self.start + self.count


@dataclass(frozen=True)
class Step:
    """One batch: its parts, and the page copies (source, target) that go before it, in order."""

    parts: list[Part] = field(default_factory=list)
    chores: list[tuple[int, int]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Tokens of the batch."""
        return sum(part.count for part in self.parts)


class Scheduler:
    """Sequences that wait and sequences that run, over the pages of one allocator."""

    def __init__(
        self,
        pages: int,
        *,
        page_size: int,
        max_batch: int,
        max_batch_tokens: int,
        poison: bool = False,
        stages: int = 1,
    ) -> None:
        """`poison`: each page that becomes nobody's is made unreadable by a chore. `stages`: the running
        sequences are shared out over so many steps, which are in flight together.
        """
        self._stages = stages
        self.allocator = Allocator(pages, self._poison if poison else None)
        self.page_size = page_size
        self.max_batch_tokens = max_batch_tokens
        self._queue: deque[Sequence] = deque()  # by order; those that are done leave when they come first
        self._live = 0  # of the queue
        self.running: list[Sequence] = []  # the oldest first
        self.preemptions = 0
        self._least_share = min(16, max_batch_tokens // 4)  # rows that are worth a prompt's pages
        self._lanes = list(range(min(max_batch, max_batch_tokens) - 1, -1, -1))
        self._chores: list[tuple[int, int]] = []

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many computed tokens can be held, with the whole cache to itself."""
        return -(-tokens // self.page_size) <= self.allocator.pages

    def add(self, sequence: Sequence) -> None:
        """`sequence` waits; its siblings come to life when its prompt has been read."""
        self._enqueue(sequence)

    @property
    def waiting(self) -> list[Sequence]:
        """Those that hold no pages and are to have some, the first to come first."""
        return [s for s in self._queue if s.state is State.WAITING]

    @property
    def queued(self) -> int:
        """How many wait."""
        return self._live

    def finish(self, sequence: Sequence, *, spoiled: bool = False) -> None:
        """It is over, at any moment; its pages are free at once. `spoiled`: nobody may find them again."""
        if sequence.state is State.RUNNING:
            if spoiled:
                for page in sequence.pages:  # also those it found: what is wrong may have come from there
                    self.allocator.forget(page)
            self._leave(sequence)
        elif sequence.queued:
            self._live -= 1
        sequence.queued = False
        sequence.state = State.DONE

    def redo(self, sequence: Sequence) -> bool:
        """What it brought last came from numbers that are none.

        Where it began with pages of others, the fault may be theirs: nobody finds those again, it is computed
        anew without them, and this is True.
        """
        if sequence.state is not State.RUNNING or not sequence.borrowed:
            return False
        for page in sequence.pages:
            self.allocator.forget(page)
        self._preempt(sequence)
        if sequence.tokens[-1] < 0:  # what stands for the token that could not be chosen
            sequence.tokens.pop()
        sequence.reads_cache, sequence.void = False, sequence.epoch
        return True

    def schedule(self) -> Step | None:
        """The next batch; None where nobody can go on before a batch in flight is collected."""
        begun = self.preemptions
        rows: dict[Sequence, int] = {}
        most = -(-len(self.running) // self._stages)
        for sequence in list(self.running):  # the oldest first: those it preempts are behind it
            if len(rows) == most:
                break
            if sequence.ready and self._hold(sequence, 1, preempt=True):
                rows[sequence] = 1
        wished = sum(map(self._wish, rows))
        readers = sum(s.need > 1 for s in rows)
        while self.preemptions == begun and len(rows) < self.max_batch_tokens:
            if wished >= self.max_batch_tokens and self.max_batch_tokens >> readers < self._least_share:
                break  # it would have pages and next to no rows; later, its beginning may be known
            joined = self._admit()
            if joined is None:
                break
            rows[joined] = 1
            wished, readers = wished + joined.need, readers + (joined.need > 1)
        self._share_out(rows)
        step = Step(chores=self._chores)
        self._chores = []
        for sequence in sorted(rows, key=lambda s: s.order):
            step.parts.append(self._part(sequence, rows[sequence]))
        return step if step.parts or step.chores else None

    def collect(self, part: Part, chosen: Listed[Listed[int]]) -> None:
        """A part of the oldest step in flight is done: `chosen` are the tokens of each of its heirs.

        Where guesses were checked, an heir has one token for each that was right and one more.
        """
        sequence = part.sequence
        for heir, tokens in zip(part.heirs, chosen, strict=True):
            if heir.state is not State.DONE:
                heir.pending -= 1
                if part.epoch >= heir.void or heir is not sequence:
                    heir.tokens.extend(tokens)
        if part.drafts:
            sequence.checking = False
        if sequence.state is State.RUNNING and sequence.epoch == part.epoch:
            wrong = len(part.drafts) + 1 - len(chosen[0]) if part.drafts else 0
            sequence.computed -= wrong
            self._offer(sequence, part.end - wrong)

    def _admit(self) -> Sequence | None:
        """Let the first of those who wait join, if there is a lane and there are pages for all it has."""
        while self._queue and self._queue[0].state is State.DONE:
            self._queue.popleft()
        if not self._queue or not self._lanes:
            return None
        sequence = self._queue[0]
        if sequence.pending or sequence.checking:  # what it chose last is not known yet
            return None
        spare = 0  # a page for each who will want one next
        if self.running:
            growing = sum(len(s.pages) * self.page_size < s.prompt + s.limit - 1 for s in self.running)
            spare = growing + min(len(sequence.siblings), len(self._lanes) - 1)
        borrowed = self._lookup(sequence)
        if self._awaited(sequence, len(borrowed)):
            return None
        self.allocator.share(borrowed)
        if self._missing(sequence, borrowed) > self.allocator.available - spare and borrowed:
            self.allocator.release([borrowed.pop()])  # a page that is not copied is not needed twice
        if self._missing(sequence, borrowed) > self.allocator.available - spare:
            self.allocator.release(borrowed)
            return None
        self._queue.popleft()
        sequence.queued = False
        self._live -= 1
        sequence.pages.extend(borrowed)
        sequence.borrowed = sequence.labelled = len(borrowed)
        sequence.computed = min(len(borrowed) * self.page_size, sequence.total - 1)
        if sequence.epoch == 0:
            sequence.cached = min(sequence.computed, sequence.prompt)
        self._join(sequence)
        held = self._hold(sequence, sequence.need, preempt=False)
        assert held == sequence.need, "pages were counted and are not there"
        return sequence

    def _missing(self, sequence: Sequence, borrowed: Listed[int]) -> int:
        """Pages that it takes beside `borrowed`; the last of those is copied if its last token is there."""
        copied = len(borrowed) * self.page_size >= sequence.total
        return -(-sequence.total // self.page_size) - len(borrowed) + copied

    def _lookup(self, sequence: Sequence) -> list[int]:
        """The pages that hold the beginning of `sequence` already."""
        found: list[int] = []
        if sequence.chain is not None and sequence.reads_cache:
            for digest in sequence.chain.digests(sequence.tokens, len(sequence.tokens) // self.page_size):
                page = self.allocator.find(digest)
                if page is None:
                    break
                found.append(page)
        return found

    def _awaited(self, sequence: Sequence, page: int) -> bool:
        """Whether somebody is reading just now what `sequence` would put into its page number `page`."""
        if sequence.chain is None or not sequence.reads_cache:
            return False
        digest = sequence.chain.digest(page)
        return digest is not None and any(
            s.labelled <= page and s.chain is not None and s.chain.digest(page) == digest
            for s in self.running
        )

    def _share_out(self, rows: dict[Sequence, int]) -> None:
        """Give what is left of the step to those who have more to read, as far as there are pages."""
        left = self.max_batch_tokens - len(rows)
        readers = sorted((s for s in rows if self._wish(s) > 1), key=lambda s: (s.need == 1, s.order))
        shares = {}
        for place, sequence in enumerate(readers, start=1):
            most = left if place == len(readers) else -(-left // 2)
            shares[sequence] = min(self._wish(sequence) - 1, most)
            left -= shares[sequence]
        for sequence in readers:
            more = min(self._wish(sequence) - 1 - shares[sequence], left)
            left -= more
            rows[sequence] = self._hold(sequence, 1 + shares[sequence] + more, preempt=False)

    def _wish(self, sequence: Sequence) -> int:
        """Rows it would read now: all it needs, and its drafts where it has caught up."""
        need = sequence.need
        if need > 1 or sequence.pending or not sequence.drafts:
            return need
        return 1 + min(len(sequence.drafts), sequence.limit - (sequence.total - sequence.prompt) - 1)

    def _hold(self, sequence: Sequence, rows: int, *, preempt: bool) -> int:
        """How many of its next `rows` have pages of its own to be written to, now; 0 if it lost its own."""
        pages, first = sequence.pages, sequence.computed // self.page_size
        shared = first < len(pages) and not self.allocator.writable(pages[first])
        while shared and preempt and not self.allocator.available and self.running[-1] is not sequence:
            self._preempt(self.running[-1])  # perhaps the one it shares with: then no copy is needed
            shared = not self.allocator.writable(pages[first])
        if shared:
            page = self._take(sequence, preempt)
            if page is None:
                return 0
            self._chores.append((pages[first], page))
            self.allocator.release([pages[first]])
            pages[first] = page
            sequence.labelled = min(sequence.labelled, first)
        while len(pages) * self.page_size < sequence.computed + rows:
            page = self._take(sequence, preempt)
            if page is None:
                break
            pages.append(page)
        return max(0, min(rows, len(pages) * self.page_size - sequence.computed))

    def _take(self, sequence: Sequence, preempt: bool) -> int | None:
        page = self.allocator.take()
        while page is None and preempt:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return None
            page = self.allocator.take()
        return page

    def _preempt(self, sequence: Sequence) -> None:
        """It gives all back, and waits, before all who came later, to be computed anew."""
        self._leave(sequence)
        sequence.state = State.WAITING
        sequence.computed = sequence.borrowed = sequence.labelled = 0
        sequence.epoch += 1
        self._enqueue(sequence)
        self.preemptions += 1

    def _part(self, sequence: Sequence, count: int) -> Part:
        """`count` of its rows go into the step, and from here on count as computed."""
        start, need = sequence.computed, sequence.need
        drafts = sequence.drafts[: max(0, count - need)]
        sequence.computed += count
        heirs: tuple[Sequence, ...] = ()
        if count >= need:
            heirs = (sequence, *self._fork(sequence))
            sequence.checking = bool(drafts)
            for heir in heirs:
                heir.pending += 1
        return Part(sequence, start, count, sequence.epoch, heirs, drafts)

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """The prompt is read: as many siblings as have a lane share its pages; the others wait."""
        siblings = [s for s in sequence.siblings if s.state is State.WAITING]
        sequence.siblings = []
        for sibling in siblings:
            sibling.chain = None if sequence.chain is None else sequence.chain.fork()
        born = siblings[: len(self._lanes)]
        for sibling in born:
            self.allocator.share(sequence.pages)
            sibling.pages.extend(sequence.pages)
            sibling.computed, sibling.cached = sequence.computed, sequence.cached
            sibling.borrowed = sibling.labelled = sequence.computed // self.page_size
            self._join(sibling)
        for late in siblings[len(born) :]:
            self._enqueue(late)
        return born

    def _offer(self, sequence: Sequence, known: int) -> None:
        """Label the pages that are full and whose tokens are known, for others to find."""
        if sequence.chain is None:
            return
        full = min(known // self.page_size, len(sequence.pages))
        if full > sequence.labelled:
            digests = sequence.chain.digests(sequence.tokens, full)
            for page in range(sequence.labelled, full):
                self.allocator.label(sequence.pages[page], digests[page])
            sequence.labelled = full

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.queued = True
        self._live += 1
        if not self._queue or self._queue[-1].order < sequence.order:
            self._queue.append(sequence)
        else:
            insort(self._queue, sequence, key=lambda s: s.order)

    def _join(self, sequence: Sequence) -> None:
        sequence.state, sequence.lane = State.RUNNING, self._lanes.pop()
        insort(self.running, sequence, key=lambda s: s.order)

    def _leave(self, sequence: Sequence) -> None:
        self.allocator.release(sequence.pages)
        del sequence.pages[:]
        self.running.remove(sequence)
        self._lanes.append(sequence.lane)
        sequence.lane = -1

    def _poison(self, page: int) -> None:
        self._chores.append((POISON, page))
