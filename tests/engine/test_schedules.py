"""Over random schedules the engine gives every request what the plain loop gives it, token for token.

Each schedule draws a model, a cache, a step, arrivals, lengths, settings, prefixes in common, aborts and
guesses. Freed pages hold NaN throughout, so that whoever reads one gives another text.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from oneroof.engine.admission import admit
from oneroof.engine.engine import Engine
from oneroof.engine.options import EngineOptions
from oneroof.engine.plain import PlainLoop
from oneroof.engine.request import Completion, Output, Piece, Reading, Request, SamplingParams, Vector
from oneroof.engine.sequence import Sequence
from oneroof.load import Loaded, load

MODELS: dict[str, dict[str, object]] = {  # full attention, windows, stretched rope, experts, shared experts
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": {},
    "qwen1": {"use_dynamic_ntk": True, "seq_length": 32},
    "qwen3_moe": {},
    "ernie4_5_moe": {},
}
SCHEDULES = int(os.environ.get("ONEROOF_SCHEDULES", "200"))
SHARDS = 8
CLOSE = 1e-4  # of the reference's two best logits: either may be taken


@pytest.fixture(scope="module")
def model(checkpoint: Callable[..., Path]) -> Callable[[str], Loaded]:
    @cache
    def get(family: str) -> Loaded:
        return load(checkpoint(family, **MODELS[family]), device="cpu", dtype="float32")

    return get


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_schedules_equal_the_plain_loop(model: Callable[[str], Loaded], shard: int) -> None:
    seen = dict.fromkeys(("preempted", "hits", "aborted", "forked", "chunked", "guessed"), 0)
    for seed in range(shard, SCHEDULES, SHARDS):
        _schedule(model, seed, seen)
    assert all(seen.values()), f"some case never came: {seen}"


def _schedule(model: Callable[[str], Loaded], seed: int, seen: dict[str, int]) -> None:
    draw = random.Random(seed)
    loaded = model(draw.choice(list(MODELS)))
    requests = _requests(draw, loaded)
    expected = _expected(loaded, requests)
    engine = _engine(draw, loaded, requests, expected)
    aborted = {r.index for r in requests if draw.random() < 0.12}
    found, events = _run(draw, engine, requests, aborted)
    for request in requests:
        assert request.index in found or request.index in aborted, f"seed {seed}: {request.index} was lost"
    for index, output in found.items():
        _compare(loaded, expected[index], output, f"seed {seed} request {index}")
        pieces = [p for p in events if p.index == index]
        for number, completion in enumerate(output.completions):
            mine = [p for p in pieces if p.number == number]
            assert "".join(p.text for p in mine) == completion.text
            assert tuple(t for p in mine for t in p.token_ids) == completion.token_ids
    pages = engine.scheduler.allocator
    pages.check()
    assert pages.available == pages.pages, f"seed {seed}: pages are still held"
    stats = engine.stats()
    assert stats.finished + stats.aborted == len(requests) and stats.failed == 0
    seen["guessed"] += any(len(event.token_ids) > 1 for event in events)
    seen["preempted"] += stats.preemptions > 0
    seen["hits"] += stats.cached_tokens > 0
    seen["aborted"] += stats.aborted > 0
    seen["forked"] += any(r.params.n > 1 for r in requests)
    seen["chunked"] += max(len(r.token_ids) for r in requests) > engine.options.max_batch_tokens


def _requests(draw: random.Random, loaded: Loaded) -> list[Request]:
    beginnings = [[draw.randrange(300) for _ in range(draw.randint(5, 40))] for _ in range(2)]
    requests = []
    for index in range(draw.randint(2, 9)):
        ids = list(draw.choice(beginnings)) if draw.random() < 0.6 else []
        ids += [draw.randrange(300) for _ in range(draw.randint(0 if ids else 1, 25))]
        params = SamplingParams(
            max_tokens=draw.randint(1, 14),
            temperature=draw.choice([0.0, 0.0, 0.7, 1.3]),
            top_p=draw.choice([1.0, 0.9]),
            top_k=draw.choice([0, 20]),
            repetition_penalty=draw.choice([1.0, 1.0, 1.0, 1.2]),
            frequency_penalty=draw.choice([0.0, 0.0, 0.0, 0.5]),
            n=draw.choice([1, 1, 1, 2, 3]),
            logprobs=draw.choice([None, None, 2]),
            prompt_logprobs=draw.choice([None, None, None, 1]),
            stop_token_ids=[draw.randrange(300) for _ in range(draw.choice([0, 0, 40]))],
        )
        requests.append(
            admit(
                index,
                None,
                ids,
                params,
                config=loaded.config,
                context=loaded.config.max_positions,
                ends=frozenset(),
                seed=draw.randrange(10**9),
                namespace=draw.choice(["", "", "another"]),
            )
        )
    return requests


def _expected(loaded: Loaded, requests: list[Request]) -> dict[int, Output]:
    pieces = PlainLoop(loaded, max_batch=64, max_batch_tokens=10**6).run(requests)
    return {piece.index: piece.output for piece in pieces if piece.output is not None}


def _engine(
    draw: random.Random,
    loaded: Loaded,
    requests: list[Request],
    expected: dict[int, Output],
) -> Engine:
    size = draw.choice([1, 2, 4, 16, 128])
    longest = max(len(r.token_ids) + r.limit for r in requests)
    least = -(-longest // size)  # pages that the longest needs by itself
    pages = draw.choice([least, least + 2, 2 * least + 1, 8 * least])
    config = loaded.config
    each = 2 * config.depth * config.kv_heads * config.head_dim * 4 * size
    options = EngineOptions(
        kv_memory=(pages + 1) * each / 1e9 * 1.0001,
        page_size=size,
        max_batch=draw.choice([1, 2, 3, 8, 64]),
        max_batch_tokens=draw.choice([1, 3, 7, 16, 64, 4096]),
        prefix_cache=draw.random() < 0.8,
        in_flight=draw.choice([1, 1, 2, 3]),
    )
    guesser = random.Random(draw.random())

    def guess(sequence: Sequence) -> tuple[int, ...]:
        """The right tokens mostly, then some wrong ones; none for a sequence that runs further ahead."""
        made = len(sequence.tokens) - sequence.prompt
        true = expected[sequence.key].completions[sequence.number].token_ids[made:]
        right = true[: guesser.randint(0, 3)]
        return (*right, *(guesser.randrange(300) for _ in range(guesser.randint(0, 2))))

    return Engine(loaded, options, poison=True, drafter=guess if draw.random() < 0.3 else None)


def _run(
    draw: random.Random, engine: Engine, requests: list[Request], aborted: set[int]
) -> tuple[dict[int, Output], list[Piece]]:
    found: dict[int, Output] = {}
    events: list[Piece] = []
    late = list(requests)
    steps = 0
    while late or engine.busy:
        while late and (not engine.busy or draw.random() < 0.4):
            request = late.pop(0)
            engine.add(request.index, request)
        for index in list(aborted):
            if index not in {r.index for r in late} and draw.random() < 0.2:
                held = engine.scheduler.allocator.available
                engine.abort(index)
                assert engine.scheduler.allocator.available >= held
        for key, event in engine.step():
            assert isinstance(event, Piece) and key == event.index
            events.append(event)
            if event.output is not None:
                found[key] = event.output
        steps += 1
        assert steps < 20_000, "it does not come to an end"
    return found, events


def _compare(loaded: Loaded, expected: Output, found: Output, where: str) -> None:
    for number, (wanted, got) in enumerate(zip(expected.completions, found.completions, strict=True)):
        if wanted.token_ids != got.token_ids:
            _near_tie(loaded, expected, wanted, got, f"{where} completion {number}")
            continue
        assert (wanted.text, wanted.finish_reason, wanted.stop_reason) == (
            got.text,
            got.finish_reason,
            got.stop_reason,
        ), where
        assert (wanted.logprobs is None) == (got.logprobs is None)
        for a, b in zip(wanted.logprobs or (), got.logprobs or (), strict=True):
            assert a.keys() == b.keys() and all(abs(a[t].logprob - b[t].logprob) < 1e-3 for t in a), where
    assert (expected.prompt_logprobs is None) == (found.prompt_logprobs is None)
    for c, d in zip(expected.prompt_logprobs or (), found.prompt_logprobs or (), strict=True):
        assert (c is None) == (d is None), where
        if c is not None and d is not None:
            assert all(abs(c[t].logprob - d[t].logprob) < 1e-3 for t in c.keys() & d.keys()), where


def _near_tie(loaded: Loaded, output: Output, wanted: Completion, got: Completion, where: str) -> None:
    """A difference is allowed where the reference's two best logits are as good as equal, in greedy text."""
    place = next(i for i, (a, b) in enumerate(zip(wanted.token_ids, got.token_ids, strict=False)) if a != b)
    ids = [*output.prompt_token_ids, *wanted.token_ids[:place]]
    best = loaded.logits([ids])[0][-1].topk(2).values
    assert float(best[0] - best[1]) < CLOSE, f"{where}: {wanted.token_ids} became {got.token_ids}"


def test_readings_among_texts_equal_readings_alone(model: Callable[[str], Loaded]) -> None:
    draw = random.Random(3)
    loaded = model("qwen3")
    texts = _requests(draw, loaded)
    head = [draw.randrange(300) for _ in range(30)]
    readings = [
        Reading(100 + i, (*head, *(draw.randrange(300) for _ in range(i + 1))), words=(3, 4) if i % 2 else ())
        for i in range(8)
    ]
    engine = Engine(loaded, EngineOptions(page_size=4, max_batch=4, max_batch_tokens=11), poison=True)
    for one in (*readings[:4], *texts, *readings[4:]):
        engine.add(one.index, one)
    found: dict[int, Vector] = {}
    while engine.busy:
        found |= {key: event for key, event in engine.step() if isinstance(event, Vector)}
    assert engine.stats().cached_tokens > 0
    for reading in readings:
        logits = loaded.logits([list(reading.token_ids)])[0][-1]
        values = torch.tensor(found[reading.index].values)
        if reading.words:
            torch.testing.assert_close(values, logits[list(reading.words)], rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(loaded.model.logits(values[None])[0], logits, rtol=1e-4, atol=1e-4)
