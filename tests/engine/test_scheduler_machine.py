"""Whatever callers do, and whenever: no page is lost or shared wrongly, nobody starves, every text is right.

A state machine drives the real scheduler, allocator and prefix cache over pretended pages, small enough that
they run out all the time. `ONEROOF_EXAMPLES` asks for so many random runs instead of the fixed ones.
"""

from __future__ import annotations

import os
from collections import Counter
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from simulation import Simulation, Wish

BEGINNINGS = ((1, 2, 1, 1, 2, 2, 1, 2, 2, 1), (1, 2, 1, 1, 2, 1, 1, 1), (2,) * 9)
EXAMPLES = os.environ.get("ONEROOF_EXAMPLES")
SEEN: Counter[str] = Counter()


class SchedulerMachine(RuleBasedStateMachine):
    """Callers come and go; steps are launched, fail, and are collected, in any order that may be."""

    @initialize(
        pages=st.integers(1, 10),
        page_size=st.sampled_from([1, 2, 2, 3, 4]),
        max_batch=st.integers(1, 4),
        max_batch_tokens=st.sampled_from([1, 2, 3, 5, 8, 30]),
        depth=st.integers(1, 3),
        poison=st.booleans(),
        guesses=st.none() | st.integers(0, 1000),
    )
    def begin(
        self,
        pages: int,
        page_size: int,
        max_batch: int,
        max_batch_tokens: int,
        depth: int,
        poison: bool,
        guesses: int | None,
    ) -> None:
        self.simulation = Simulation(
            pages,
            page_size=page_size,
            max_batch=max_batch,
            max_batch_tokens=max_batch_tokens,
            depth=depth,
            poison=poison,
            guesses=None if guesses is None else Random(guesses),
        )

    @rule(
        beginning=st.integers(0, 7),
        shared=st.integers(0, 14),
        own=st.lists(st.integers(1, 3), max_size=3),
        limit=st.integers(1, 8),
        count=st.sampled_from([1, 1, 2, 3, 4]),
        namespace=st.sampled_from(["", "", "another"]),
        seed=st.sampled_from([0, 0, 1, 2]),
        reads_cache=st.sampled_from([True, True, True, False]),
        cached=st.sampled_from([True, True, True, True, False]),
        runs_ahead=st.sampled_from([True, True, True, False]),
    )
    def add(
        self,
        beginning: int,
        shared: int,
        own: list[int],
        limit: int,
        count: int,
        namespace: str,
        seed: int,
        reads_cache: bool,
        cached: bool,
        runs_ahead: bool,
    ) -> None:
        """A prompt may begin as another does, and go on where a finished text ended."""
        simulation = self.simulation
        known = list(simulation.texts.items())[-5:]
        talks = [simulation.jobs[key][0].wish.prompt + text for (key, _), text in known]
        all_beginnings = [*BEGINNINGS, *talks]
        prompt = (*all_beginnings[beginning % len(all_beginnings)][:shared], *own) or (1,)
        room = simulation.allocator.pages * simulation.scheduler.page_size
        prompt = prompt[:room]
        limit = min(limit, room - len(prompt) + 1)
        simulation.add(Wish(prompt, limit, count, namespace, seed, reads_cache, cached, runs_ahead))

    @rule()
    def launch(self) -> None:
        self.simulation.launch()

    @rule(spoils=st.sampled_from([None, None, None, 0, 1]))
    def collect(self, spoils: int | None) -> None:
        self.simulation.collect(spoils=spoils)

    @rule(steps=st.integers(1, 12))
    def run(self, steps: int) -> None:
        """As the engine: launch what may be launched, collect one."""
        for _ in range(steps):
            while self.simulation.launch():
                self.simulation.check()
            self.simulation.collect()
            self.simulation.check()

    @precondition(lambda self: self.simulation.lives)
    @rule(which=st.integers(0, 20), spoiled=st.sampled_from([False, False, True]))
    def abort(self, which: int, spoiled: bool) -> None:
        keys = sorted({sequence.key for sequence in self.simulation.lives})
        self.simulation.abort(keys[which % len(keys)], spoiled=spoiled)

    @precondition(lambda self: self.simulation.lives)
    @rule()
    def fail(self) -> None:
        self.simulation.launch(fails=True)

    @invariant()
    def all_is_in_order(self) -> None:
        self.simulation.check()

    def teardown(self) -> None:
        """All come to an end, and what is left in the cache serves whoever asks the same again."""
        if not hasattr(self, "simulation"):
            return
        simulation = self.simulation
        simulation.drain()
        for lives in list(simulation.jobs.values())[-3:]:
            simulation.add(lives[0].wish)
        simulation.drain()
        SEEN.update({event: count > 0 for event, count in simulation.seen.items()})


def test_no_page_is_lost_or_shared_wrongly_and_every_text_is_right() -> None:
    SEEN.clear()
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=int(EXAMPLES or 1000),
            stateful_step_count=30,
            derandomize=EXAMPLES is None,
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    wanted = ("preempted", "copied", "forked", "hits", "guessed", "failed", "spoiled", "poisoned")
    assert min(SEEN[event] for event in wanted) >= 10, f"a case hardly ever came: {SEEN}"
