"""Who is in the next batch, with how many tokens and in which pages: the rules one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from simulation import END, Simulation, Wish, text_of

from oneroof.engine.scheduler import POISON
from oneroof.engine.sequence import State


def wish(length: int, limit: int, *, first: int = 1, completions: int = 1, **options: object) -> Wish:
    """A prompt of `length` tokens that begins with `first`, whose texts all reach their limit."""
    prompt = (first, *(10 + i for i in range(length - 1)))
    for seed in count(1):
        made = Wish(prompt, limit, completions, seed=seed, **options)  # type: ignore[arg-type]
        if not any(END in text_of(made, number) for number in range(completions)):
            return made
    raise AssertionError


def rows(simulation: Simulation) -> dict[tuple[int, int], tuple[int, int]]:
    """What the newest step reads: of each completion, from where and how many."""
    parts = simulation.flights[-1].step.parts
    return {(p.sequence.key, p.sequence.number): (p.start, p.count) for p in parts}


def step(simulation: Simulation) -> dict[tuple[int, int], tuple[int, int]]:
    """One step from its launch to its end."""
    assert simulation.launch()
    found = rows(simulation)
    simulation.check()
    simulation.collect()
    simulation.check()
    return found


def steps(simulation: Simulation) -> Iterator[dict[tuple[int, int], tuple[int, int]]]:
    while simulation.lives:
        yield step(simulation)


def test_without_requests_there_is_no_step() -> None:
    assert not Simulation(4).launch()


def test_a_prompt_is_read_in_chunks_of_the_step_and_then_a_token_is_read_a_step() -> None:
    simulation = Simulation(8, page_size=2, max_batch_tokens=3)
    simulation.add(wish(7, 3))
    assert list(steps(simulation)) == [{(0, 0): part} for part in ((0, 3), (3, 3), (6, 1), (7, 1), (8, 1))]


def test_a_long_prompt_takes_half_of_a_step_and_what_the_short_ones_leave() -> None:
    simulation = Simulation(40, page_size=2, max_batch_tokens=9)
    simulation.add(wish(20, 2))
    simulation.add(wish(3, 2, first=2))
    assert step(simulation) == {(0, 0): (0, 6), (1, 0): (0, 3)}
    simulation.add(wish(9, 1, first=3))
    assert step(simulation) == {(0, 0): (6, 4), (1, 0): (3, 1), (2, 0): (0, 4)}


def test_every_running_sequence_has_a_row_of_each_step() -> None:
    simulation = Simulation(40, max_batch=3, max_batch_tokens=3)
    for first, length in ((1, 1), (2, 1), (3, 12)):
        simulation.add(wish(length, 6, first=first))
    for i in range(6):
        assert step(simulation) == {(0, 0): (i, 1), (1, 0): (i, 1), (2, 0): (i, 1)}
    assert step(simulation) == {(2, 0): (6, 3)}


def test_no_more_run_than_may_and_than_have_a_row() -> None:
    for max_batch, max_batch_tokens in ((2, 8), (8, 2)):
        simulation = Simulation(40, max_batch=max_batch, max_batch_tokens=max_batch_tokens)
        for first in range(4):
            simulation.add(wish(1, 3, first=first))
        assert set(step(simulation)) == {(0, 0), (1, 0)}
        simulation.drain()


def test_nobody_is_overtaken_by_who_needs_fewer_pages() -> None:
    simulation = Simulation(6, page_size=2, max_batch_tokens=32)
    simulation.add(wish(6, 3))
    simulation.add(wish(8, 1, first=2))
    simulation.add(wish(1, 1, first=3))
    assert [sorted(key for key, _ in found) for found in steps(simulation)] == [[0], [0], [0], [1, 2]]


def test_a_page_is_left_for_each_who_runs() -> None:
    simulation = Simulation(5, page_size=2, max_batch_tokens=32)
    simulation.add(wish(2, 4))
    step(simulation)
    simulation.add(wish(6, 1, first=2))
    assert set(step(simulation)) == {(0, 0)}  # 3 pages were left, and the first will want one of them
    simulation.drain()
    assert simulation.scheduler.preemptions == 0


def test_completions_of_one_prompt_share_its_pages_and_copy_the_one_they_write_on() -> None:
    simulation = Simulation(20, page_size=4, max_batch=3, max_batch_tokens=32)
    simulation.add(wish(10, 3, completions=3))
    assert step(simulation) == {(0, 0): (0, 10)}
    running = simulation.scheduler.running
    assert [list(s.pages) for s in running] == [list(running[0].pages)] * 3
    assert simulation.allocator.available == 17
    assert step(simulation) == {(0, n): (10, 1) for n in range(3)}
    assert simulation.seen["copied"] == 2  # the last of them writes on the page itself
    assert len({s.pages[2] for s in simulation.scheduler.running}) == 3
    assert len({tuple(s.pages[:2]) for s in simulation.scheduler.running}) == 1


def test_a_prompt_that_ends_with_its_page_is_not_copied() -> None:
    simulation = Simulation(20, page_size=4, max_batch=3, max_batch_tokens=32)
    simulation.add(wish(8, 3, completions=3))
    simulation.drain()
    assert simulation.seen["copied"] == 0


def test_completions_without_a_lane_come_later_and_find_the_prompt_in_the_cache() -> None:
    simulation = Simulation(20, page_size=2, max_batch=2, max_batch_tokens=32)
    simulation.add(wish(6, 2, completions=4))
    assert step(simulation) == {(0, 0): (0, 6)}
    simulation.add(wish(1, 1, first=2))
    assert list(steps(simulation)) == [
        {(0, 0): (6, 1), (0, 1): (6, 1)},
        {(0, 2): (5, 1), (0, 3): (5, 1)},
        {(0, 2): (6, 1), (0, 3): (6, 1)},
        {(1, 0): (0, 1)},
    ]


@pytest.mark.parametrize(
    ("length", "start"), [(1, 0), (2, 1), (5, 4), (6, 5), (7, 6), (8, 7), (9, 8), (10, 8), (12, 8)]
)
def test_what_was_read_before_is_not_read_again_but_for_the_last_token(length: int, start: int) -> None:
    simulation = Simulation(20, page_size=2, max_batch_tokens=32)
    simulation.add(wish(9, 1))
    simulation.drain()
    key = simulation.add(wish(length, 2))
    assert step(simulation) == {(key, 0): (start, length - start)}
    assert simulation.jobs[key][0].sequence.cached == start
    simulation.drain()


def test_a_text_that_was_written_is_found_by_who_goes_on_from_it() -> None:
    simulation = Simulation(20, page_size=2, max_batch_tokens=32)
    talk = wish(3, 6)
    simulation.add(talk)
    simulation.drain()
    simulation.add(Wish(talk.prompt + text_of(talk, 0) + (7,), 1))
    assert step(simulation) == {(1, 0): (8, 2)}  # its last token was chosen and never read


def test_who_begins_as_somebody_who_is_being_read_waits_and_finds_it() -> None:
    simulation = Simulation(40, page_size=2, max_batch_tokens=32)
    for namespace in ("", "", "another"):
        simulation.add(wish(12, 2, namespace=namespace))
    assert step(simulation) == {(0, 0): (0, 12)}
    assert step(simulation) == {(0, 0): (12, 1), (1, 0): (11, 1), (2, 0): (0, 12)}
    simulation.drain()


def test_who_waits_for_what_another_reads_goes_on_when_that_one_is_gone() -> None:
    simulation = Simulation(40, page_size=2, max_batch_tokens=4)
    for _ in range(2):
        simulation.add(wish(12, 2))
    assert step(simulation) == {(0, 0): (0, 4)}
    simulation.abort(0)
    assert step(simulation) == {(1, 0): (4, 4)}
    simulation.drain()


def test_nothing_is_shared_with_another_namespace() -> None:
    simulation = Simulation(20, max_batch_tokens=32)
    for namespace, read in (("a", (0, 5)), ("b", (0, 5)), ("a", (4, 1))):
        key = simulation.add(wish(5, 1, namespace=namespace))
        assert step(simulation) == {(key, 0): read}


def test_whoever_must_read_all_does_and_leaves_it_to_others() -> None:
    simulation = Simulation(20, max_batch_tokens=32)
    for reads_cache, read in ((True, (0, 5)), (False, (0, 5)), (True, (4, 1))):
        key = simulation.add(wish(5, 1, reads_cache=reads_cache))
        assert step(simulation) == {(key, 0): read}


def test_without_a_chain_nothing_is_kept() -> None:
    simulation = Simulation(20, max_batch_tokens=32)
    simulation.add(wish(5, 3, cached=False))
    simulation.drain()
    assert (simulation.allocator.free, simulation.allocator.idle) == (20, 0)


def test_a_cache_that_one_sequence_fills_serves_it_again_and_again() -> None:
    simulation = Simulation(2, page_size=2, max_batch_tokens=32)
    for _ in range(3):
        simulation.add(wish(4, 1))
        simulation.drain()
    simulation.add(wish(4, 1, first=2))
    simulation.drain()


def test_what_is_longer_than_the_cache_does_not_fit() -> None:
    scheduler = Simulation(3, page_size=4).scheduler
    assert scheduler.fits(12) and not scheduler.fits(13)
    assert Simulation(0).scheduler.fits(0) and not Simulation(0).scheduler.fits(1)


def test_the_youngest_gives_its_pages_back_and_goes_on_before_who_came_later() -> None:
    simulation = Simulation(6, page_size=2, max_batch=2, max_batch_tokens=32)
    for first in (1, 2, 3):
        simulation.add(wish(3, 6, first=first))
    oldest, youngest, later = (simulation.jobs[key][0].sequence for key in range(3))
    found = [step(simulation) for _ in range(4)]
    assert simulation.scheduler.preemptions == 0
    found.append(step(simulation))
    assert found[-1] == {(0, 0): (6, 1)} and simulation.scheduler.preemptions == 1
    assert (oldest.state, youngest.state) == (State.RUNNING, State.WAITING)
    assert list(simulation.scheduler.waiting) == [youngest, later] and not youngest.pages
    found.extend(steps(simulation))
    assert [(0, 0) in f for f in found] == [True] * 6 + [False] * (len(found) - 6)
    first_of = {key: next(i for i, f in enumerate(found[5:]) if (key, 0) in f) for key in (1, 2)}
    assert first_of[1] <= first_of[2]


def test_what_is_computed_anew_does_not_count_as_found_in_the_cache() -> None:
    simulation = Simulation(6, page_size=2, max_batch=2, max_batch_tokens=32)
    for first in (1, 2):
        simulation.add(wish(3, 6, first=first))
    simulation.drain()
    again = simulation.jobs[1][0].sequence
    assert (again.epoch, again.cached) == (1, 0)


def test_what_was_in_flight_when_pages_were_lost_says_nothing_of_the_new_ones() -> None:
    simulation = Simulation(10, page_size=2, max_batch_tokens=4, depth=3)
    simulation.add(wish(2, 6))
    step(simulation)
    simulation.add(wish(14, 1, first=2))
    for _ in range(3):
        step(simulation)
    assert simulation.launch() and rows(simulation) == {(0, 0): (5, 1), (1, 0): (9, 3)}
    assert simulation.launch() and rows(simulation) == {(0, 0): (6, 1)}
    assert simulation.scheduler.preemptions == 1
    simulation.abort(0)
    simulation.add(wish(4, 1, first=3))
    assert simulation.launch() and rows(simulation) == {(1, 0): (8, 2), (2, 0): (0, 2)}
    simulation.collect()
    simulation.check()  # no page is found for its positions 10 and 11, which are not in it yet
    assert simulation.jobs[1][0].sequence.labelled == 4
    simulation.drain()


def test_the_oldest_never_gives_its_pages_back_while_a_younger_one_has_some() -> None:
    simulation = Simulation(1, page_size=2, max_batch=2)
    simulation.add(wish(1, 2, completions=2))
    assert step(simulation) == {(0, 0): (0, 1)}
    assert step(simulation) == {(0, 0): (1, 1)}  # the other gave its part of the page back: no copy
    assert simulation.scheduler.preemptions == 1 and simulation.seen["copied"] == 0
    simulation.drain()


def test_newcomers_do_not_hold_up_who_runs() -> None:
    alone, crowded = (Simulation(12, max_batch=3, max_batch_tokens=4) for _ in range(2))
    for simulation in (alone, crowded):
        simulation.add(wish(8, 10))
    needed = alone.drain()
    for number in range(2 * needed):
        crowded.add(wish(3, 2, first=2 + number))
        step(crowded)
    assert (0, 0) in crowded.texts
    assert 2 * needed >= crowded.drain()


def test_who_needs_much_of_the_cache_comes_to_its_turn_among_many_who_need_little() -> None:
    simulation = Simulation(6, max_batch=3, max_batch_tokens=4)
    for number in range(3):
        simulation.add(wish(2, 3, first=2 + number))
    large = simulation.add(wish(9, 3))
    for number in range(40):
        simulation.add(wish(2, 3, first=5 + number))
        step(simulation)
        if (large, 0) in simulation.texts:
            break
    assert number < 20
    simulation.drain()


def test_steps_are_launched_ahead_of_those_that_are_known() -> None:
    simulation = Simulation(20, depth=3, max_batch_tokens=32)
    simulation.add(wish(3, 4))
    assert [simulation.launch() for _ in range(4)] == [True, True, True, False]
    assert [f.step.parts[0].start for f in simulation.flights] == [0, 3, 4]
    simulation.drain()
    assert simulation.rows == 3 + 3  # nothing was read that was not wanted


def test_who_must_know_its_last_token_waits_for_it() -> None:
    simulation = Simulation(20, depth=2, max_batch_tokens=32)
    simulation.add(wish(3, 4, runs_ahead=False))
    simulation.add(wish(3, 4, first=2))
    assert simulation.launch() and set(rows(simulation)) == {(0, 0), (1, 0)}
    assert simulation.launch() and set(rows(simulation)) == {(1, 0)}
    simulation.drain()


def test_a_text_that_ended_is_read_no_further_than_what_is_in_flight() -> None:
    prompt = next((p,) for p in count(1) if text_of(Wish((p,), 8), 0)[-1:] == (END,))
    ended = Wish(prompt, 8)
    simulation = Simulation(20, depth=2, max_batch_tokens=32)
    simulation.add(ended)
    simulation.drain()
    assert simulation.rows <= len(text_of(ended, 0)) + 1


def test_right_guesses_save_steps_and_wrong_ones_cost_none() -> None:
    taken = {}
    for name in ("none", "right", "wrong", "half"):
        simulation = Simulation(20, page_size=2, max_batch_tokens=32)
        simulation.add(wish(3, 9))
        [life] = simulation.jobs[0]
        taken[name] = 0
        while simulation.lives:
            made = len(life.sequence.tokens) - 3
            right = life.expected[made : made + 2]
            wrong = tuple(5 + token for token in right)
            guesses = {"none": (), "right": right, "wrong": wrong, "half": right[:1] + wrong[1:]}[name]
            life.sequence.drafts = guesses if made else ()
            step(simulation)
            taken[name] += 1
    assert taken == {"none": 9, "right": 4, "wrong": 9, "half": 5}


def test_guesses_go_no_further_than_the_text_the_step_and_the_pages() -> None:
    for limit, budget, pages, most in ((3, 32, 9, 2), (9, 3, 9, 3), (9, 32, 2, 1)):
        simulation = Simulation(pages, page_size=2, max_batch_tokens=budget)
        made = wish(3, min(limit, 2 * pages - 2))
        simulation.add(made)
        while not simulation.jobs[0][0].sequence.tokens[3:]:
            step(simulation)
        simulation.jobs[0][0].sequence.drafts = (1,) * 8
        assert step(simulation) == {(0, 0): (3, most)}
        simulation.drain()


def test_a_request_may_end_at_any_moment_of_its_life() -> None:
    for moment in range(7):
        simulation = Simulation(9, page_size=2, max_batch=2, max_batch_tokens=3, depth=2)
        simulation.add(wish(2, 2))
        key = simulation.add(wish(5, 4, first=2, completions=3))
        for _ in range(moment):
            if not simulation.launch():
                simulation.collect()
        simulation.abort(key)
        simulation.check()
        assert not any(s.key == key for s in (*simulation.scheduler.running, *simulation.scheduler.waiting))
        simulation.drain()
        assert (0, 0) in simulation.texts and (key, 0) not in simulation.texts


def test_nobody_finds_what_a_spoiled_sequence_had() -> None:
    simulation = Simulation(20, page_size=2, max_batch_tokens=4)
    simulation.add(wish(4, 1))
    simulation.drain()
    key = simulation.add(wish(12, 1))
    assert step(simulation) == {(key, 0): (4, 4)}
    simulation.abort(key, spoiled=True)
    key = simulation.add(wish(12, 1))
    assert step(simulation) == {(key, 0): (0, 4)}  # what it was given may be what was wrong with it
    simulation.abort(key)
    key = simulation.add(wish(12, 1))
    assert step(simulation) == {(key, 0): (4, 4)}


def test_freed_pages_are_made_unreadable_before_the_next_step() -> None:
    simulation = Simulation(6, page_size=2, max_batch_tokens=32, poison=True)
    simulation.add(wish(3, 1))
    step(simulation)
    assert simulation.allocator.idle == 1
    assert simulation.launch()  # nobody runs; there is still something to be done
    assert [source for source, _ in simulation.flights[-1].step.chores] == [POISON]
    assert simulation.flights[-1].step.rows == 0
