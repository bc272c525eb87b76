"""The engine by itself: what is wrong with a request ends it alone, nothing leaks, nothing waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oneroof.engine import runner
from oneroof.engine.admission import admit
from oneroof.engine.answer import Answer
from oneroof.engine.engine import Engine
from oneroof.engine.options import EngineOptions
from oneroof.engine.request import Output, Piece, Reading, Request, SamplingParams, Vector
from oneroof.engine.sampler import Settings
from oneroof.engine.sequence import Sequence
from oneroof.errors import UserError
from oneroof.load import Loaded, load

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
SMALL = EngineOptions(page_size=4, max_batch=4, max_batch_tokens=16, max_model_len=64)


@pytest.fixture(scope="module")
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    return load(checkpoint("qwen3"), device="cpu", dtype="float32")


def request(
    loaded: Loaded, index: int, ids: list[int], params: SamplingParams = GREEDY, namespace: str = ""
) -> Request:
    context = loaded.config.max_positions
    return admit(
        index,
        None,
        ids,
        params,
        config=loaded.config,
        context=context,
        ends=frozenset(),
        seed=index,
        namespace=namespace,
    )


def finish(engine: Engine) -> dict[int, Output]:
    found: dict[int, Output] = {}
    while engine.busy:
        found |= {k: e.output for k, e in engine.step() if isinstance(e, Piece) and e.output is not None}
    engine.scheduler.allocator.check()
    assert engine.scheduler.allocator.available == engine.scheduler.allocator.pages
    return found


def served(loaded: Loaded, requests: list[Request], options: EngineOptions = SMALL) -> dict[int, Output]:
    engine = Engine(loaded, options, poison=True)
    for one in requests:
        engine.add(one.index, one)
    return finish(engine)


def pages_for(loaded: Loaded, pages: int, size: int) -> float:
    """GB for so many pages."""
    config = loaded.config
    return (pages + 1) * 2 * config.depth * config.kv_heads * config.head_dim * 4 * size / 1e9 * 1.0001


def test_a_second_turn_reads_only_what_is_new(loaded: Loaded) -> None:
    engine = Engine(loaded, SMALL, poison=True)
    first = list(range(1, 22))
    engine.add(0, request(loaded, 0, first))
    answer = finish(engine)[0]
    turn = [*first, *answer.token_ids, 30, 31, 32]
    engine.add(1, request(loaded, 1, turn))
    again = finish(engine)[1]
    assert answer.cached_tokens == 0
    assert again.cached_tokens == (21 + 8 - 1) // 4 * 4  # the last token of a text is never read
    assert engine.stats().cached_tokens == again.cached_tokens
    assert again == served(loaded, [request(loaded, 1, turn)])[1]


def test_a_prompt_that_was_read_whole_reads_its_last_token_alone(loaded: Loaded) -> None:
    engine = Engine(loaded, SMALL, poison=True)
    ids = list(range(1, 17))
    for index in range(2):
        engine.add(index, request(loaded, index, ids))
        output = finish(engine)[index]
    assert output.cached_tokens == 15
    assert output.token_ids == served(loaded, [request(loaded, 0, ids)])[0].token_ids


def test_namespaces_share_nothing(loaded: Loaded) -> None:
    engine = Engine(loaded, SMALL)
    ids = list(range(1, 17))
    for index, namespace in enumerate(("", "one", "another", "one")):
        engine.add(index, request(loaded, index, ids, namespace=namespace))
        assert finish(engine)[index].cached_tokens == (15 if index == 3 else 0)


def test_prompt_logprobs_are_of_what_was_read_anew(loaded: Loaded) -> None:
    engine = Engine(loaded, SMALL)
    ids = list(range(1, 17))
    engine.add(0, request(loaded, 0, ids))
    finish(engine)
    engine.add(1, request(loaded, 1, ids, replace(GREEDY, prompt_logprobs=1)))
    output = finish(engine)[1]
    assert output.cached_tokens == 0
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == 16
    assert output.prompt_logprobs[0] is None and None not in output.prompt_logprobs[1:]


def test_completions_share_the_prompt_by_copy_on_write(loaded: Loaded) -> None:
    options = replace(SMALL, kv_memory=pages_for(loaded, 16, 4), prefix_cache=False)
    engine = Engine(loaded, options, poison=True)
    four = SamplingParams(max_tokens=6, temperature=1.5, n=4, ignore_eos=True)
    engine.add(0, request(loaded, 0, list(range(30)), four))  # 8 pages; alone, four would take 36
    used = 0
    found: list[Piece] = []
    while engine.busy:
        found += [e for _, e in engine.step() if isinstance(e, Piece)]
        used = max(used, 16 - engine.scheduler.allocator.free)
    assert used == 7 + 4 * 2 and engine.stats().preemptions == 0
    output = found[-1].output
    assert output is not None and len({c.token_ids for c in output.completions}) == 4


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(loaded: Loaded) -> None:
    memory = pages_for(loaded, 5, 4)
    engine = Engine(loaded, EngineOptions(page_size=4, kv_memory=memory))
    assert engine.context == 20
    with pytest.raises(UserError, match=r"15 tokens and may write 8; the cache holds 20 \(5 pages of 4\)"):
        engine.add(0, request(loaded, 0, list(range(15))))
    with pytest.raises(UserError, match="prompt 3 has 21 tokens"):
        engine.add(3, Reading(3, tuple(range(21))))
    assert not engine.busy
    engine.add(1, request(loaded, 1, list(range(15)), replace(GREEDY, max_tokens=None)))
    assert len(finish(engine)[1].token_ids) == 5  # until the context is full, which the cache limits
    engine.add(2, request(loaded, 2, list(range(12))))
    assert len(finish(engine)[2].token_ids) == 8


def test_the_context_binds_whoever_comes_with_a_request_of_his_own(loaded: Loaded) -> None:
    engine = Engine(loaded, SMALL)  # a context of 64, and four times the pages
    for wrong in (request(loaded, 0, [1] * 64), Reading(0, (1,) * 65)):
        with pytest.raises(UserError, match=r"prompt 0 has 6. tokens; at most 6. are allowed"):
            engine.add(0, wrong)
    engine.add(0, request(loaded, 0, [1] * 60, replace(GREEDY, max_tokens=60)))
    assert len(finish(engine)[0].token_ids) == 4


@pytest.mark.parametrize(("prompt", "tokens"), [(33, 14), (8, 8), (16, 1), (15, 2)])
def test_a_cache_that_holds_all_texts_holds_them_at_once(loaded: Loaded, prompt: int, tokens: int) -> None:
    """No page is kept back for who will never want another."""
    options = EngineOptions(max_batch=4, max_model_len=prompt + tokens, prefix_cache=False)
    engine = Engine(loaded, options)
    for index in range(4):
        ids = [index + 1] * prompt
        engine.add(index, request(loaded, index, ids, replace(GREEDY, max_tokens=tokens)))
    assert {key for key, _ in engine.step()} == set(range(4))
    finish(engine)
    assert engine.stats().preemptions == 0


def test_memory_that_does_not_hold_the_context_asked_for_is_refused(loaded: Loaded) -> None:
    with pytest.raises(UserError, match=r"kv_memory is .* GB for the cache; .* GB are needed for 64 tokens"):
        Engine(loaded, replace(SMALL, kv_memory=pages_for(loaded, 15, 4)))
    assert Engine(loaded, replace(SMALL, kv_memory=pages_for(loaded, 16, 4))).context == 64
    weights = sum(t.nbytes for t in loaded.model.tensors().values())
    limit = weights / 1e9 + pages_for(loaded, 16, 4)
    assert Engine(loaded, replace(SMALL, device_memory=limit)).context == 64
    with pytest.raises(UserError, match="device_memory is"):
        Engine(loaded, replace(SMALL, device_memory=weights / 1e9))
    with pytest.raises(UserError, match="may be used"):
        Engine(loaded, replace(SMALL, reserve_memory=10**6))


@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_abort_frees_its_pages_at_once(loaded: Loaded, in_flight: int) -> None:
    engine = Engine(loaded, replace(SMALL, in_flight=in_flight, prefix_cache=False), poison=True)
    several = replace(GREEDY, n=2, temperature=1.0, max_tokens=30)
    for index in range(4):
        engine.add(index, request(loaded, index, list(range(20)), several))
    for _ in range(5):
        engine.step()
    for index in (0, 3):  # one that runs, one that waits
        engine.abort(index)
    held = {s.key for s in (*engine.scheduler.running, *engine.scheduler.waiting)}
    assert not held & {0, 3}
    running = engine.scheduler.running
    assert engine.scheduler.allocator.free == 64 - len({p for s in running for p in s.pages})
    engine.abort(0)  # not under way: passed over
    assert sorted(finish(engine)) == [1, 2]
    assert engine.stats().aborted == 2


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_setting_that_fails_fails_alone(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    made = Settings.of

    def of(params: list[SamplingParams], *rest: object, **facts: object) -> Settings:
        if any(p.seed == 666 for p in params):
            raise RuntimeError("no such distribution")
        return made(params, *rest, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(runner.Settings, "of", staticmethod(of))
    bad = SamplingParams(max_tokens=4, temperature=1.0, seed=666)
    requests = [request(loaded, i, [i + 1, 7, 9], bad if i == 1 else GREEDY) for i in range(4)]
    found = served(loaded, requests, replace(SMALL, in_flight=in_flight))
    assert found[1].finish_reason == "error"
    assert "RuntimeError: no such distribution" in str(found[1].completions[0].error)
    monkeypatch.undo()
    for i in (0, 2, 3):
        assert found[i] == served(loaded, [requests[i]])[i]


def test_a_text_that_fails_fails_alone(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Answer.add

    def failing(self: Answer, token: int, logprob: object = None) -> str:
        if self.request.index == 2 and len(self.token_ids) == 3:
            raise ValueError("a stop that cannot be")
        return add(self, token, logprob)  # type: ignore[arg-type]

    monkeypatch.setattr(Answer, "add", failing)
    found = served(loaded, [request(loaded, i, [i + 1, 7, 9]) for i in range(4)])
    assert [found[i].finish_reason for i in range(4)] == ["length", "length", "error", "length"]
    assert "a stop that cannot be" in str(found[2].completions[0].error)
    assert len(found[2].token_ids) == 3


def test_a_batch_that_fails_ends_its_requests_and_no_others(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(loaded, SMALL, poison=True)
    engine.add(0, request(loaded, 0, list(range(12)), replace(GREEDY, n=2)))
    engine.add(1, Reading(1, (4, 5, 6)))
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "launch", _broken)
        events = engine.step()
    errors = [e.finish_reason if isinstance(e, Piece) else str(e.error) for _, e in events]
    assert errors == ["error", "error", "a step failed: MemoryError: all of it"]
    engine.add(2, request(loaded, 2, [1, 2]))
    assert finish(engine)[2].finish_reason == "length"
    assert engine.stats().failed == 2


def _broken(*_: object) -> None:
    raise MemoryError("all of it")


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_logits_that_are_no_numbers_leave_nothing_behind(
    checkpoint: Callable[..., Path], in_flight: int
) -> None:
    """A prompt with a poisoned token fails. Its like, which shared its pages, does not, and nothing stays."""
    loaded = load(checkpoint("qwen3"), device="cpu", dtype="float32")
    weight = loaded.model.embedding.weight.data
    sound = weight[7].clone()
    weight[7] = torch.nan
    engine = Engine(loaded, replace(SMALL, in_flight=in_flight), poison=True)
    head = list(range(10, 18))
    bad, good = [*head, 7, *range(20, 35)], [*head, 8, *range(20, 35)]
    engine.add(0, request(loaded, 0, bad))
    engine.add(1, request(loaded, 1, good))
    engine.add(2, request(loaded, 2, [*head, 8], replace(GREEDY, n=2)))
    engine.add(3, Reading(3, (*head, 9)))
    last: dict[int, Piece | Vector] = {}
    while engine.busy:
        last |= dict(engine.step())
    failed, reading = last[0], last[3]
    assert isinstance(failed, Piece) and failed.output is not None
    assert failed.output.completions[0].error == "its logits are not numbers"
    assert isinstance(reading, Vector) and reading.error is None
    assert torch.tensor(reading.values).isfinite().all()
    for key, ids in ((1, good), (2, [*head, 8])):
        piece = last[key]
        assert isinstance(piece, Piece) and piece.output is not None
        (alone,) = served(loaded, [request(loaded, 0, ids)]).values()
        assert {c.token_ids for c in piece.output.completions} == {alone.token_ids}
    weight[7] = sound
    engine.add(4, request(loaded, 4, bad))
    assert finish(engine)[4] == replace(served(loaded, [request(loaded, 0, bad)])[0], index=4)
    assert engine.stats().failed == 1


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_reading_that_is_no_numbers_fails_and_leaves_nothing_behind(
    checkpoint: Callable[..., Path], in_flight: int
) -> None:
    loaded = load(checkpoint("qwen3"), device="cpu", dtype="float32")
    weight = loaded.model.embedding.weight.data
    sound = weight[7].clone()
    weight[7] = torch.nan
    engine = Engine(loaded, replace(SMALL, in_flight=in_flight), poison=True)
    ids = (1, 2, 3, 4, 7, 5, 6, 8, 9)
    engine.add(0, Reading(0, ids))
    engine.add(1, request(loaded, 1, [4, 5, 6]))
    events = [event for key, event in _all(engine) if key == 0]
    assert [e.error for e in events if isinstance(e, Vector)] == [
        "the model gave results that are not numbers"
    ]
    assert engine.stats().failed == 1
    weight[7] = sound
    engine.add(2, Reading(2, ids))
    (again,) = [event for _, event in _all(engine) if isinstance(event, Vector)]
    assert again.error is None


def _all(engine: Engine) -> list[tuple[int, Piece | Vector]]:
    events: list[tuple[int, Piece | Vector]] = []
    while engine.busy:
        events += engine.step()
    return events


@pytest.mark.parametrize("wrong", [Reading(0, ()), Reading(0, (1, -1)), Reading(0, (1,), words=(9999,))])
def test_tokens_that_cannot_be_are_refused(loaded: Loaded, wrong: Reading) -> None:
    engine = Engine(loaded, SMALL)
    with pytest.raises(UserError, match="prompt 0"):
        engine.add(0, wrong)
    assert not engine.busy


def test_a_key_used_again_gets_nothing_of_the_one_before(loaded: Loaded) -> None:
    engine = Engine(loaded, replace(SMALL, in_flight=2))
    engine.add(5, Reading(1, (1, 2, 3)))
    engine.add(6, request(loaded, 6, [9, 8, 7]))
    engine.step()
    engine.abort(6)
    engine.add(6, Reading(2, (4, 5, 6)))
    found = {key: event for key, event in _all(engine) if isinstance(event, Vector)}
    (alone,) = [event for _, event in _served_reading(loaded, Reading(2, (4, 5, 6)))]
    assert isinstance(alone, Vector)
    torch.testing.assert_close(torch.tensor(found[6].values), torch.tensor(alone.values))


def _served_reading(loaded: Loaded, reading: Reading) -> list[tuple[int, Piece | Vector]]:
    engine = Engine(loaded, SMALL)
    engine.add(0, reading)
    return _all(engine)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_collection_that_fails_ends_its_requests_and_no_others(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    engine = Engine(loaded, replace(SMALL, in_flight=in_flight), poison=True)
    engine.add(0, request(loaded, 0, list(range(12)), replace(GREEDY, n=2)))
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "collect", _broken)
        events = engine.step()
    assert [e.finish_reason for _, e in events if isinstance(e, Piece)] == ["error", "error"]
    engine.add(1, request(loaded, 1, [1, 2]))
    assert finish(engine)[1].finish_reason == "length"


def test_guesses_that_are_no_tokens_or_fail_harm_nobody(loaded: Loaded) -> None:
    def guess(sequence: Sequence) -> tuple[int, ...]:
        if len(sequence.tokens) % 2:
            raise RuntimeError("no idea")
        return (5, -3, 10**9)

    engine = Engine(loaded, SMALL, drafter=guess)
    engine.add(0, request(loaded, 0, [1, 2, 3]))
    assert finish(engine)[0] == served(loaded, [request(loaded, 0, [1, 2, 3])])[0]


def test_whoever_comes_with_what_is_just_being_read_waits_for_it(loaded: Loaded) -> None:
    """Eight prompts with a head in common arrive together: the head is read once."""
    engine = Engine(loaded, EngineOptions(page_size=4, max_batch=8, max_batch_tokens=64), poison=True)
    head = [i % 300 for i in range(40)]
    for index in range(8):
        engine.add(index, request(loaded, index, [*head, index]))
    found = finish(engine)
    assert engine.stats().cached_tokens == 7 * 40
    for index in range(8):
        assert found[index] == replace(served(loaded, [request(loaded, 0, [*head, index])])[0], index=index)


def test_a_long_prompt_does_not_hold_up_short_ones(loaded: Loaded) -> None:
    """While 100 tokens are read 16 a step, those who came behind it begin to write in the next steps."""
    engine = Engine(loaded, replace(SMALL, max_model_len=128), poison=True)
    engine.add(0, request(loaded, 0, [i % 300 for i in range(100)]))
    for index in range(1, 4):
        engine.add(index, request(loaded, index, [index] * 3))
    first: dict[int, int] = {}
    for step in range(40):
        for key, event in engine.step():
            if isinstance(event, Piece) and event.token_ids:
                first.setdefault(key, step)
    assert all(first[index] <= 2 for index in range(1, 4)) and 100 / 16 < first[0] < 16


def test_the_order_of_arrival_is_kept_when_pages_are_short(loaded: Loaded) -> None:
    options = EngineOptions(
        page_size=4, max_batch=8, kv_memory=pages_for(loaded, 9, 4), max_batch_tokens=64, prefix_cache=False
    )
    engine = Engine(loaded, options, poison=True)
    for index in range(8):
        engine.add(index, request(loaded, index, [index + 1] * 10, replace(GREEDY, max_tokens=20)))
    ended: list[int] = []
    while engine.busy:
        ended += [k for k, e in engine.step() if isinstance(e, Piece) and e.output is not None]
    assert ended == sorted(ended) and len(ended) == 8
    assert engine.stats().preemptions > 0


def test_stats_add_up(loaded: Loaded) -> None:
    engine = Engine(loaded, SMALL)
    for index in range(3):
        engine.add(index, request(loaded, index, list(range(10)), replace(GREEDY, n=2)))
    assert engine.stats().waiting == 3
    finish(engine)
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.finished, stats.tokens) == (0, 0, 3, 3 * 2 * 8)
    assert stats.prompt_tokens == 30 and 0 < stats.seconds_model < stats.seconds
    assert engine.speed.tokens == 3 * 2 * 7 and engine.speed.prompt_tokens + stats.cached_tokens >= 30


@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 0},
        {"max_batch": 0},
        {"max_batch_tokens": -1},
        {"kv_memory": 0},
        {"kv_memory": -1.0},
        {"reserve_memory": float("nan")},
        {"in_flight": 0},
        {"max_model_len": 1},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        EngineOptions(**options)  # type: ignore[arg-type]


def test_a_model_that_sees_in_both_directions_reads_whole_texts(checkpoint: Callable[..., Path]) -> None:
    loaded = load(checkpoint("gte"), device="cpu", dtype="float32")
    engine = Engine(loaded, EngineOptions(max_batch_tokens=8))
    for key, length in enumerate((5, 20, 2, 3, 9)):
        engine.add(key, Reading(key, tuple(range(1, length + 1))))
    engine.abort(3)
    with pytest.raises(UserError, match="writes no text"):
        engine.add(9, request(loaded, 9, [1, 2]))
    found: dict[int, Vector] = {}
    while engine.busy:
        found |= {k: e for k, e in engine.step() if isinstance(e, Vector)}
    assert sorted(found) == [0, 1, 2, 4] and engine.stats().steps >= 3
    assert all(len(v.values) == loaded.config.dim and v.error is None for v in found.values())
