"""The scheduler's world without a model: what each slot of the cache contains is a prefix, and is checked.

A step is launched as on a device: its chores in order, then all its writes, then all its reads. Tokens are
chosen by a pure function of what was read, so that every text is known beforehand. Whoever reads a slot that
does not hold its own prefix (shared wrongly, not copied, freed too early, never written) fails at once.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from oneroof.engine.allocator import NULL
from oneroof.engine.prefix import Chain, salt
from oneroof.engine.scheduler import POISON, Part, Scheduler, Step
from oneroof.engine.sequence import Sequence, State

END = 0  # the token that ends a text
LETTERS = 4  # tokens 1..4; few, so that texts meet often
UNREADABLE = ("poison", ())
Content = tuple[str, tuple[int, ...]]  # whose it is, and all tokens up to this position


@dataclass(frozen=True)
class Wish:
    """What a caller asks for: `seed` 0 is greedy, so that completions of one prompt are all the same."""

    prompt: tuple[int, ...]
    limit: int
    count: int = 1
    namespace: str = ""
    seed: int = 0
    reads_cache: bool = True
    cached: bool = True  # its pages are kept for others
    runs_ahead: bool = True


def following(namespace: str, seed: int, number: int, tokens: tuple[int, ...]) -> int:
    """The model: the token after `tokens`."""
    chosen = zlib.crc32(repr((namespace, seed and (seed, number), tokens)).encode())
    return END if chosen % 13 == 0 else 1 + chosen % LETTERS


def text_of(wish: Wish, number: int) -> tuple[int, ...]:
    """What completion `number` has to become, made one token after another by itself."""
    made: tuple[int, ...] = ()
    while len(made) < wish.limit and made[-1:] != (END,):
        made += (following(wish.namespace, wish.seed, number, wish.prompt + made),)
    return made


@dataclass
class Life:
    """One completion: what it has on the device, ahead of the host, and what it has to become."""

    wish: Wish
    number: int
    sequence: Sequence
    expected: tuple[int, ...]
    tokens: list[int]  # on the device: those in flight included

    def content(self, position: int, tokens: tuple[int, ...]) -> Content:
        """What the slot of `position` has to contain."""
        return self.wish.namespace, tokens[: position + 1]


@dataclass
class Flight:
    """A launched step and what it chose."""

    step: Step
    chosen: list[list[list[int]]] = field(default_factory=list)  # by part, by heir


class Simulation:
    """A real `Scheduler` over pretended pages, driven as the engine drives it."""

    def __init__(
        self,
        pages: int,
        *,
        page_size: int = 2,
        max_batch: int = 3,
        max_batch_tokens: int = 8,
        depth: int = 1,
        poison: bool = False,
        guesses: Random | None = None,
    ) -> None:
        """`depth` steps in flight at most. `guesses`: draws drafts for texts that have begun."""
        self.scheduler = Scheduler(
            pages,
            page_size=page_size,
            max_batch=max_batch,
            max_batch_tokens=max_batch_tokens,
            poison=poison,
        )
        self.limits = max_batch, max_batch_tokens, depth
        self.slots: dict[tuple[int, int], Content] = {}  # (page, offset)
        self.latest: dict[int, int] = {}  # lane -> the token that was chosen in it last
        self.flights: deque[Flight] = deque()
        self.lives: dict[Sequence, Life] = {}  # those under way
        self.jobs: dict[int, list[Life]] = {}  # all that ever were, by key
        self.texts: dict[tuple[int, int], tuple[int, ...]] = {}  # those that are finished
        self.seen: Counter[str] = Counter()
        self.rows = 0  # read in all
        self._guesses = guesses
        self._order = 0

    @property
    def allocator(self):  # type: ignore[no-untyped-def]
        """The pages."""
        return self.scheduler.allocator

    def fits(self, wish: Wish) -> bool:
        """As the engine asks before it takes a request in."""
        return self.scheduler.fits(len(wish.prompt) + wish.limit - 1)

    def add(self, wish: Wish) -> int:
        """Its key."""
        assert self.fits(wish)
        key, size = len(self.jobs), self.scheduler.page_size
        beginning = salt(adapter=None, namespace=wish.namespace, kv="float", alpha=1.0)
        lives = []
        for number in range(wish.count):
            self._order += 1
            sequence = Sequence(
                key,
                number,
                wish.prompt,
                wish.limit,
                self._order,
                chain=Chain(beginning, size) if wish.cached else None,
                reads_cache=wish.reads_cache or number > 0,
                runs_ahead=wish.runs_ahead,
            )
            lives.append(Life(wish, number, sequence, text_of(wish, number), list(wish.prompt)))
        lives[0].sequence.siblings = [life.sequence for life in lives[1:]]
        self.jobs[key] = lives
        self.lives |= {life.sequence: life for life in lives}
        self.scheduler.add(lives[0].sequence)
        return key

    def abort(self, key: int, *, spoiled: bool = False) -> None:
        """As the engine drops a request: all its completions, whether they have begun or not."""
        for life in self.jobs[key]:
            self._end(life.sequence, spoiled)

    def launch(self, *, fails: bool = False) -> bool:
        """Schedule a step and begin it, if there is one and not too many are in flight.

        `fails`: the machine refuses the step; its requests end.
        """
        if len(self.flights) >= self.limits[2]:
            return False
        oldest = next((s for s in self.scheduler.running[:1] if s.ready), None)
        preempted, waiting = self.scheduler.preemptions, list(self.scheduler.waiting)
        step = self.scheduler.schedule()
        preempted = self.scheduler.preemptions - preempted
        self.seen["preempted"] += preempted
        if step is None:
            assert oldest is None, f"{oldest!r} could go on and did not"
            return False
        assert oldest is None or oldest in [p.sequence for p in step.parts], f"{oldest!r} was passed over"
        joined = [p.sequence for p in step.parts if p.sequence in waiting]
        assert not (preempted and joined), f"{joined} joined while others lost their pages"
        self._check_step(step)
        if fails:
            self.seen["failed"] += 1
            for key in {part.sequence.key for part in step.parts}:
                self.abort(key, spoiled=True)
            return True
        for source, target in step.chores:
            self._chore(source, target)
        for part in step.parts:
            self._check_known(part)
            self._write(part)
        flight = Flight(step)
        for part in step.parts:
            self._read(part)
        for part in step.parts:
            flight.chosen.append(self._choose(part))
        self.rows += step.rows
        self.flights.append(flight)
        return True

    def collect(self, *, spoils: int | None = None) -> bool:
        """The oldest step in flight becomes known, if there is one. Its heir number `spoils` has failed."""
        if not self.flights:
            return False
        flight, heirs = self.flights.popleft(), 0
        for part, chosen in zip(flight.step.parts, flight.chosen, strict=True):
            self.scheduler.collect(part, chosen)
            for heir in part.heirs:
                if heir in self.lives:
                    if heirs == spoils:
                        self._end(heir, spoiled=True)
                    else:
                        self._settle(heir)
                heirs += 1
        return True

    def drain(self) -> int:
        """Run until all are finished; how many steps it took. Fails where one starves."""
        left = sum(len(life.wish.prompt) + life.wish.limit for life in self.lives.values())
        most = 4 * left + 20
        steps = 0
        while self.lives or self.flights:
            while self.launch():
                self.check()
            assert self.collect(), f"nobody can go on: {list(self.lives)}"
            self.check()
            steps += 1
            assert steps <= most, f"{list(self.lives)} starve"
        assert not self.scheduler.waiting and not self.scheduler.running
        assert self.allocator.available == self.allocator.pages, "pages are held by nobody"
        return steps

    def check(self) -> None:
        """What holds at every moment."""
        scheduler, allocator = self.scheduler, self.allocator
        allocator.check()
        held = Counter(page for s in scheduler.running for page in s.pages)
        for page in range(1, allocator.pages + 1):
            assert allocator.holders(page) == held[page], f"page {page} counts its holders wrongly"
        assert allocator.free + allocator.idle + len(held) == allocator.pages
        for s in scheduler.running:
            assert len(set(s.pages)) == len(s.pages) and NULL not in s.pages
            assert s.state is State.RUNNING and s in self.lives
            assert s.computed <= len(s.pages) * scheduler.page_size
        assert all(not s.pages and s.state is State.WAITING and s in self.lives for s in scheduler.waiting)
        for s, life in self.lives.items():
            known = len(s.tokens)
            assert list(s.tokens) == life.tokens[:known], "the host has other tokens than the device"
            assert s.checking or known + s.pending == len(life.tokens)
        lanes = [s.lane for s in scheduler.running]
        assert len(set(lanes)) == len(lanes) <= self.limits[0]
        assert all(0 <= lane < self.limits[0] for lane in lanes)
        for queue in (list(scheduler.waiting), scheduler.running):
            assert [s.order for s in queue] == sorted(s.order for s in queue), "somebody was overtaken"
        self._check_labels()

    def _check_labels(self) -> None:
        """Whoever finds a page by its digest finds what the digest stands for."""
        size = self.scheduler.page_size
        for digest, page in self.allocator._places.items():
            namespace, tokens = self.slots[page, size - 1]
            assert namespace != "poison", f"page {page} can be found and was poisoned"
            assert len(tokens) % size == 0
            for offset in range(size):
                expected = namespace, tokens[: len(tokens) - size + offset + 1]
                assert self.slots[page, offset] == expected, f"page {page} is half another's"
            beginning = salt(adapter=None, namespace=namespace, kv="float", alpha=1.0)
            digests = Chain(beginning, size).digests(array("q", tokens), len(tokens) // size)
            assert digests[-1] == digest, f"page {page} is found by what it does not contain"

    def _check_step(self, step: Step) -> None:
        max_batch, max_batch_tokens, _ = self.limits
        assert step.rows <= max_batch_tokens and len(self.scheduler.running) <= max_batch
        assert len({part.sequence for part in step.parts}) == len(step.parts)
        assert all(part.count > 0 for part in step.parts)
        size = self.scheduler.page_size
        written = [(p.sequence.pages[r // size], r % size) for p in step.parts for r in range(p.start, p.end)]
        assert len(set(written)) == len(written), "two rows are written to one slot"
        for part in step.parts:
            for page in part.sequence.pages[part.start // size : -(-part.end // size)]:
                owners = 1 + (len(part.heirs) - 1 if part.heirs else 0)
                # those who were born with this step hold what it writes, too
                assert self.allocator.holders(page) <= owners, f"page {page} is written and shared"
                assert page not in self.allocator._labels, f"page {page} is written and can be found"

    def _check_known(self, part: Part) -> None:
        """A token that is not on the host yet can be read as the newest of a lane, by a row alone."""
        sequence, life = part.sequence, self.lives[part.sequence]
        assert len(part.drafts) < part.count and (not part.drafts or sequence.checking)
        if part.end - len(part.drafts) > len(sequence.tokens):
            assert part.count == 1 and life.wish.runs_ahead, f"{sequence!r} reads what is not known"
            assert self.latest[sequence.lane] == life.tokens[part.start], f"{sequence!r} lost its lane"
        if life.number == 0 and not (life.wish.cached and life.wish.reads_cache):
            assert sequence.cached == 0, f"{sequence!r} took what it was not to take"

    def _chore(self, source: int, target: int) -> None:
        size = self.scheduler.page_size
        self.seen["poisoned" if source == POISON else "copied"] += 1
        for offset in range(size):
            if source == POISON:
                self.slots[target, offset] = UNREADABLE
            elif (source, offset) in self.slots:
                self.slots[target, offset] = self.slots[source, offset]
            else:
                self.slots.pop((target, offset), None)

    def _write(self, part: Part) -> None:
        life, size = self.lives[part.sequence], self.scheduler.page_size
        tokens = self._tokens(part)
        for position in range(part.start, part.end):
            page = life.sequence.pages[position // size]
            self.slots[page, position % size] = life.content(position, tokens)

    def _read(self, part: Part) -> None:
        life, size = self.lives[part.sequence], self.scheduler.page_size
        tokens = self._tokens(part)
        for position in range(part.end):
            page = life.sequence.pages[position // size]
            found = self.slots.get((page, position % size))
            expected = life.content(position, tokens)
            assert found == expected, f"{life.sequence!r} reads {found}, not {expected}, in page {page}"

    def _tokens(self, part: Part) -> tuple[int, ...]:
        """What the rows of `part` read, with all before them; the last ones may be guesses."""
        life = self.lives[part.sequence]
        known = tuple(life.tokens[: part.end - len(part.drafts)])
        assert len(known) == part.end - len(part.drafts), f"{part.sequence!r} reads what was never chosen"
        return known + part.drafts

    def _choose(self, part: Part) -> list[list[int]]:
        tokens = self._tokens(part)
        if part.heirs:  # only a sequence that has read all it has chooses
            assert part.end - len(part.drafts) == len(self.lives[part.sequence].tokens)
        chosen = []
        for heir in part.heirs:
            life = self.lives[heir]
            made: list[int] = []
            for end in range(part.end - len(part.drafts), part.end + 1):
                made.append(following(life.wish.namespace, life.wish.seed, life.number, tokens[:end]))
                if end < part.end and tokens[end] != made[-1]:
                    break
            self.seen["guessed"] += len(made) > 1
            chosen.append(made)
        for heir, made in zip(part.heirs, chosen, strict=True):
            life = self.lives[heir]
            life.tokens += made
            self.latest[heir.lane] = made[-1]
            assert len(life.tokens) - len(life.wish.prompt) <= life.wish.limit, f"{heir!r} writes too much"
        self.seen["forked"] += len(part.heirs) > 1
        return chosen

    def _end(self, sequence: Sequence, spoiled: bool) -> None:
        """`sequence` is over before its time; nobody may find what a spoiled one has."""
        held = list(sequence.pages)
        self.scheduler.finish(sequence, spoiled=spoiled)
        if spoiled and sequence in self.lives:
            self.seen["spoiled"] += 1
            found = [p for p in held if p in self.allocator._labels]
            assert not found, f"{sequence!r} is spoiled, and its pages {found} can be found"
        self.lives.pop(sequence, None)

    def _settle(self, heir: Sequence) -> None:
        """As the engine: the first end token or the limit finishes it, else it may get guesses."""
        life = self.lives[heir]
        made = tuple(heir.tokens[heir.prompt :])
        if END in made:
            made = made[: made.index(END) + 1]
        if END in made or len(made) == life.wish.limit:
            assert made == life.expected, f"{heir!r} wrote {made}, not {life.expected}"
            self.texts[heir.key, heir.number] = made
            self.seen["hits"] += heir.cached > 0 and heir.number == 0
            self.scheduler.finish(heir)
            del self.lives[heir]
        elif self._guesses is not None and life.wish.runs_ahead:
            heir.drafts = tuple(self._guess(life, len(made)))

    def _guess(self, life: Life, made: int) -> Iterator[int]:
        assert self._guesses is not None
        right = self._guesses.randint(0, 3)
        yield from life.expected[made : made + right]
        yield from (self._guesses.randint(0, LETTERS) for _ in range(self._guesses.randint(0, 2)))
