"""The plain loop writes what the model says without a cache, whoever else runs; what fails fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from oneroof.batch import pack
from oneroof.engine.admission import admit
from oneroof.engine.engine import Engine
from oneroof.engine.options import EngineOptions
from oneroof.engine.plain import PlainLoop
from oneroof.engine.request import Output, Piece, Request, SamplingParams
from oneroof.errors import UserError
from oneroof.load import Loaded, load

GREEDY = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=9, temperature=0.9, top_p=0.95, top_k=50, ignore_eos=True)
PROMPTS = [[5, 6, 7], [100] * 30, [9], [1, 2, 3, 4, 5, 6, 7, 8], [200, 9, 30], [17, 18]]


@pytest.fixture(scope="session")
def model(checkpoint: Callable[..., Path]) -> Callable[..., Loaded]:
    @cache
    def get(family: str, **options: object) -> Loaded:
        return load(checkpoint(family, **options), device="cpu", dtype="float32")

    return get


def requests(loaded: Loaded, params: SamplingParams | list[SamplingParams], seed: int = 0) -> list[Request]:
    each = params if isinstance(params, list) else [params] * len(PROMPTS)
    context = loaded.config.max_positions
    return [
        admit(
            i, None, ids, each[i], config=loaded.config, context=context, ends=frozenset({322}), seed=seed + i
        )
        for i, ids in enumerate(PROMPTS)
    ]


def outputs(pieces: Iterator[Piece]) -> dict[int, Output]:
    return {piece.index: piece.output for piece in pieces if piece.output is not None}


def written_alone(loaded: Loaded, prompt: list[int], count: int) -> tuple[int, ...]:
    """Greedy text by whole forwards, without cache or neighbours."""
    alpha = loaded.model.ntk_alpha(len(prompt))
    made: list[int] = []
    for _ in range(count):
        hidden = loaded.model(pack([[*prompt, *made]], alphas=[alpha]))
        made.append(int(loaded.model.logits(hidden[-1:]).argmax()))
    return tuple(made)


@pytest.mark.parametrize(
    "family", ["qwen1", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "ernie4_5", "ernie4_5_moe"]
)
def test_greedy_text_is_that_of_whole_forwards(model: Callable[..., Loaded], family: str) -> None:
    loaded = model(family)
    found = outputs(PlainLoop(loaded, max_batch=4, max_batch_tokens=16).run(requests(loaded, GREEDY)))
    for i, prompt in enumerate(PROMPTS):
        assert found[i].token_ids == written_alone(loaded, prompt, 9), i


def test_windows_hold_across_steps(model: Callable[..., Loaded]) -> None:
    loaded = model("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert any(loaded.config.windows)
    found = outputs(PlainLoop(loaded, max_batch=3).run(requests(loaded, GREEDY)))
    for i, prompt in enumerate(PROMPTS):
        assert found[i].token_ids == written_alone(loaded, prompt, 9), i


@pytest.mark.parametrize("max_batch", [1, 2, 5, 100])
@pytest.mark.parametrize("max_batch_tokens", [1, 12, 10_000])
def test_what_a_request_gets_does_not_depend_on_the_crowd(
    model: Callable[..., Loaded], max_batch: int, max_batch_tokens: int
) -> None:
    loaded = model("qwen3")
    each = [
        DRAWN,
        SamplingParams(max_tokens=3, temperature=0.0),
        SamplingParams(max_tokens=12, temperature=1.2, repetition_penalty=1.3, frequency_penalty=0.4),
        SamplingParams(max_tokens=1, temperature=1.0, min_p=0.05),
        SamplingParams(max_tokens=7, temperature=1.0, presence_penalty=1.0, n=2),
        SamplingParams(max_tokens=20, temperature=1.0, seed=5),
    ]
    wanted = requests(loaded, each)
    loop = PlainLoop(loaded, max_batch=max_batch, max_batch_tokens=max_batch_tokens)
    found = outputs(loop.run(wanted))
    for request in wanted:
        alone = outputs(PlainLoop(loaded).run([request]))[request.index]
        assert found[request.index] == alone, request.index


def test_a_seed_decides_and_another_differs(model: Callable[..., Loaded]) -> None:
    loaded = model("qwen3")
    first, again, other = (
        outputs(PlainLoop(loaded).run(requests(loaded, DRAWN, seed))) for seed in (1, 1, 50)
    )
    assert first == again
    assert any(first[i] != other[i] for i in first)


def test_completions_of_a_request_differ_and_the_first_is_that_of_one(model: Callable[..., Loaded]) -> None:
    loaded = model("qwen3")
    three = SamplingParams(max_tokens=9, temperature=1.5, n=3, ignore_eos=True)
    one = SamplingParams(max_tokens=9, temperature=1.5, ignore_eos=True)
    pieces = list(PlainLoop(loaded, max_batch=2).run(requests(loaded, three)))
    many, single = outputs(iter(pieces)), outputs(PlainLoop(loaded).run(requests(loaded, one)))
    for i, output in many.items():
        assert len({c.token_ids for c in output.completions}) == 3
        assert output.token_ids == single[i].token_ids
        for number, completion in enumerate(output.completions):
            mine = [p for p in pieces if (p.index, p.number) == (i, number)]
            assert "".join(p.text for p in mine) == completion.text
            assert tuple(t for p in mine for t in p.token_ids) == completion.token_ids
            assert [p.finish_reason for p in mine] == [None] * (len(mine) - 1) + ["length"]


def test_the_context_ends_a_text(model: Callable[..., Loaded]) -> None:
    loaded = model("qwen3")
    params = SamplingParams(max_tokens=None, temperature=0.0, ignore_eos=True)
    request = admit(0, None, [1] * 100, params, config=loaded.config, context=128, ends=frozenset(), seed=0)
    output = outputs(PlainLoop(loaded).run([request]))[0]
    assert (len(output.token_ids), output.finish_reason) == (28, "length")


def test_logprobs_are_those_of_the_unmodified_model(model: Callable[..., Loaded]) -> None:
    loaded = model("qwen3")
    wanted = [
        SamplingParams(
            max_tokens=4, temperature=0.5, top_k=3, repetition_penalty=2.0, logprobs=i % 3, prompt_logprobs=2
        )
        if i % 2
        else GREEDY
        for i in range(len(PROMPTS))
    ]
    found = outputs(PlainLoop(loaded, max_batch=4).run(requests(loaded, wanted)))
    assert found[0].logprobs is None
    assert found[0].prompt_logprobs is None
    for i in (1, 3, 5):
        output = found[i]
        sequence = [*PROMPTS[i], *output.token_ids]
        expected = loaded.logits([sequence])[0].log_softmax(-1)
        assert output.logprobs is not None
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        for place, entry in enumerate([*output.prompt_logprobs, *output.logprobs]):
            if entry is None:
                continue
            token = sequence[place]
            assert next(iter(entry)) == token
            for other, share in entry.items():
                assert share.logprob == pytest.approx(float(expected[place - 1, other]), abs=1e-4)


def test_one_whose_logits_are_no_numbers_fails_alone(checkpoint: Callable[..., Path]) -> None:
    loaded = load(checkpoint("qwen2", tied=False), device="cpu", dtype="float32")
    sound = outputs(PlainLoop(loaded).run(requests(loaded, GREEDY)))
    loaded.model.embedding.weight.data[100] = torch.nan  # the second prompt is made of this token
    found = outputs(PlainLoop(loaded, max_batch=2).run(requests(loaded, GREEDY)))
    assert found[1].finish_reason == "error"
    assert found[1].token_ids == ()
    for i in set(sound) - {1}:
        if 100 not in sound[i].token_ids:
            assert found[i] == sound[i]


def test_memory_for_the_cache_is_kept_to(model: Callable[..., Loaded]) -> None:
    loaded = model("qwen3")
    with pytest.raises(
        UserError, match=r"kv_memory is 1e-06 GB; 7.78e-05 GB are needed for a sequence of 38 tokens"
    ):
        list(PlainLoop(loaded, kv_memory=1e-6).run(requests(loaded, GREEDY)))
    enough = PlainLoop(loaded, kv_memory=1e-4).run(requests(loaded, GREEDY))
    assert outputs(enough) == outputs(PlainLoop(loaded).run(requests(loaded, GREEDY)))


def test_nothing_asked_nothing_given_and_speed_is_counted(model: Callable[..., Loaded]) -> None:
    loop = PlainLoop(model("qwen3"))
    assert list(loop.run([])) == []
    list(loop.run(requests(loop.loaded, GREEDY)))
    assert loop.speed.prompt_tokens == sum(map(len, PROMPTS))
    assert loop.speed.tokens == len(PROMPTS) * 8
    assert min(loop.speed.seconds, loop.speed.prompt_seconds) > 0


def test_an_8_bit_cache_gives_what_it_gives_in_pages(model: Callable[..., Loaded]) -> None:
    """Rows that move into the places of others take their scales along."""
    loaded = model("qwen3")
    each = [replace(DRAWN, max_tokens=3 + 2 * i) for i in range(len(PROMPTS))]
    wanted = requests(loaded, each)
    found = outputs(PlainLoop(loaded, max_batch=4, kv="kv8").run(wanted))
    engine = Engine(loaded, EngineOptions(kv="kv8", page_size=4, max_batch_tokens=16), poison=True)
    for request in wanted:
        engine.add(request.index, request)
    paged: dict[int, Output] = {}
    while engine.busy:
        paged |= outputs(event for _, event in engine.step() if isinstance(event, Piece))
    texts = {i: output.token_ids for i, output in found.items()}
    assert texts == {i: output.token_ids for i, output in paged.items()}
    plain = outputs(PlainLoop(loaded).run(requests(loaded, replace(DRAWN, logprobs=0, max_tokens=1))))
    small = outputs(
        PlainLoop(loaded, kv="kv8").run(requests(loaded, replace(DRAWN, logprobs=0, max_tokens=1)))
    )
    assert [o.logprobs for o in plain.values()] != [o.logprobs for o in small.values()]  # it is another cache
