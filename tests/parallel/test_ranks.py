"""An engine over ranks, each a process, writes what one rank writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import make
from rank_engines import assembled, intake_of, served

from oneroof.comm.crew import Crew
from oneroof.engine.request import Output, Reading, SamplingParams, Vector

DENSE = ("qwen1", "qwen2", "qwen3", "ernie4_5")
MIXED = ("qwen2_moe", "qwen3_moe", "ernie4_5_moe")
LAYOUTS = [{"tp": 2}, {"tp": 4}, {"pp": 2}, {"tp": 2, "pp": 2}]
PROMPTS = [[5, 9, 11, 40, 3], [7] * 30, [8, 21], [5, 9, 11, 40, 3, 17], [60, 61]]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=2)
DRAWN = SamplingParams(max_tokens=12, temperature=0.9, top_k=20, seed=5, ignore_eos=True)
READ = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=1)

PARAMS = [GREEDY, GREEDY, DRAWN, READ, SamplingParams(max_tokens=6, temperature=0.0, n=2)]


def written(crew: Crew, folder: Path, **changes: object) -> list[Output]:
    made = assembled(crew, folder, **changes)
    try:
        intake = intake_of(made.engine)
        found = served(made.engine, intake.requests(PROMPTS, PARAMS))
        again = served(made.engine, intake.requests(PROMPTS, PARAMS))  # with pages that are known
    finally:
        made.close()
    outputs = [one for one in found if isinstance(one, Output)]
    assert [one.text for one in again if isinstance(one, Output)] == [one.text for one in outputs]
    return outputs


def same(one: list[Output], many: list[Output]) -> None:
    for a, b in zip(one, many, strict=True):
        assert [c.token_ids for c in a.completions] == [c.token_ids for c in b.completions]
        for left, right in zip(a.completions, b.completions, strict=True):
            assert left.finish_reason == right.finish_reason != "error", (left.error, right.error)
            for mine, other in zip(left.logprobs or (), right.logprobs or (), strict=True):
                assert mine.keys() == other.keys()
                for token in mine:
                    assert mine[token].logprob == pytest.approx(other[token].logprob, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("layout", [*LAYOUTS, {"tp": 3}, {"ep": 2}, {"tp": 4, "ep": 2}], ids=str)
@pytest.mark.parametrize("family", [*DENSE, *MIXED])
def test_ranks_write_what_one_writes(
    crew: Crew, checkpoint: Callable[..., Path], family: str, layout: dict[str, int]
) -> None:
    if "ep" in layout and family not in MIXED:
        pytest.skip("it has no experts")
    folder = checkpoint(family)
    same(written(crew, folder), written(crew, folder, **layout))


ODD_HEADS = [
    ("qwen2", {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 224}, {"tp": 8}),
    ("qwen2", {"num_attention_heads": 20, "num_key_value_heads": 4, "hidden_size": 160}, {"tp": 8}),
    ("qwen2", {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 112}, {"tp": 4}),
    ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 2}, {"tp": 5}),
    ("qwen2", {"vocab_size": 601, "intermediate_size": 67}, {"tp": 3}),
]


@pytest.mark.parametrize(("family", "config", "layout"), ODD_HEADS, ids=str)
def test_heads_and_widths_that_do_not_divide(
    crew: Crew, tmp_path: Path, family: str, config: dict[str, int], layout: dict[str, int]
) -> None:
    folder = make(tmp_path / "model", family, **config)
    same(written(crew, folder), written(crew, folder, **layout))


@pytest.mark.parametrize("family", ["gte", "qwen3_embedding"])
@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}, {"tp": 2, "pp": 2}], ids=str)
def test_texts_are_read_alike(
    crew: Crew, checkpoint: Callable[..., Path], family: str, layout: dict[str, int]
) -> None:
    def vectors(**changes: int) -> list[tuple[float, ...]]:
        made = assembled(crew, checkpoint(family), **changes)
        try:
            readings = intake_of(made.engine).embedding(
                ["ab", "what is it", "a"], instruction=None, prompt=None
            )
            return [one.values for one in served(made.engine, readings) if isinstance(one, Vector)]
        finally:
            made.close()

    for one, many in zip(vectors(), vectors(**layout), strict=True):
        assert one == pytest.approx(many, abs=1e-4)


def test_documents_are_scored_alike(crew: Crew, checkpoint: Callable[..., Path]) -> None:
    def scores(**changes: int) -> list[tuple[float, ...]]:
        made = assembled(crew, checkpoint("qwen3"), **changes)
        try:
            readings = [Reading(i, (5, 9, 11 + i), (3, 4)) for i in range(3)]
            return [one.values for one in served(made.engine, readings) if isinstance(one, Vector)]
        finally:
            made.close()

    for one, many in zip(scores(), scores(tp=2), strict=True):
        assert one == pytest.approx(many, abs=1e-4)


@pytest.mark.parametrize("layout", [{"tp": 3}, {"tp": 2, "pp": 2}, {"tp": 4, "ep": 2}], ids=str)
def test_what_a_prompt_gets_on_ranks_does_not_depend_on_its_neighbours(
    crew: Crew, checkpoint: Callable[..., Path], layout: dict[str, int]
) -> None:
    made = assembled(crew, checkpoint("qwen3_moe"), dtype="bfloat16", quantization="w8a8-dynamic", **layout)
    try:
        intake = intake_of(made.engine)
        together = served(made.engine, intake.requests(PROMPTS, GREEDY))
        for i, prompt in enumerate(PROMPTS):
            (alone,) = served(made.engine, intake.requests([prompt], GREEDY))
            both = alone, together[i]
            first, second = (one.completions[0] for one in both if isinstance(one, Output))
            assert (first.token_ids, first.logprobs) == (second.token_ids, second.logprobs)
    finally:
        made.close()


@pytest.mark.parametrize("quantization", ["w8a16", "w8a8-dynamic", "w4a16"])
@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 4, "ep": 2}], ids=str)
def test_quantised_shares_are_near_the_floats(
    crew: Crew, checkpoint: Callable[..., Path], quantization: str, layout: dict[str, int]
) -> None:
    """Of a prompt's tokens; a rank's rows have scales of their own, so that the numbers are not the same."""

    def shares(**changes: object) -> list[float]:
        output = written(crew, checkpoint("qwen3_moe"), **changes)[PARAMS.index(READ)]
        assert output.prompt_logprobs is not None
        pairs = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
        return [found[token].logprob for token, found in pairs if found is not None]

    floats, whole = shares(), shares(quantization=quantization)
    cut = shares(quantization=quantization, **layout)
    worst = max(abs(a - b) for a, b in zip(floats, whole, strict=True))
    assert max(abs(a - b) for a, b in zip(floats, cut, strict=True)) < 2 * worst + 0.05
