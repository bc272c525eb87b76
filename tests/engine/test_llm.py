"""The library's face: prompts in any form, outputs in order, and no option ignored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor

from oneroof.device import Memory
from oneroof.engine import capacity, plain
from oneroof.engine.llm import LLM
from oneroof.engine.request import SamplingParams, defaults
from oneroof.errors import UserError
from oneroof.load import Loaded, load

GREEDY = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="session")
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    return load(checkpoint("qwen2"), device="cpu", dtype="float32")


@pytest.fixture
def llm(loaded: Loaded) -> LLM:
    return LLM(loaded, max_batch=2, seed=3)


def test_a_folder_is_loaded_and_closed(checkpoint: Callable[..., Path]) -> None:
    with LLM(checkpoint("qwen2"), dtype="float32", device="cpu") as llm:
        output = llm.generate("hello", GREEDY)[0]
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 5
    llm.close()
    with pytest.raises(UserError, match="closed"):
        llm.generate("hello", GREEDY)


def test_a_prompt_is_text_or_ids_or_messages(llm: LLM) -> None:
    ids = llm.loaded.text().encode("hello")
    messages = [{"role": "user", "content": "hello"}]
    text, numbers, turns = llm.generate(["hello", ids, messages], GREEDY)
    assert [o.index for o in (text, numbers, turns)] == [0, 1, 2]
    assert text.prompt == "hello"
    assert numbers.prompt is None
    assert text.token_ids == numbers.token_ids
    assert len(turns.prompt_token_ids) > len(ids)
    assert llm.generate("hello", GREEDY)[0] == llm.generate(["hello"], GREEDY)[0] == text
    assert llm.generate(ids, GREEDY)[0].token_ids == text.token_ids
    assert (
        llm.generate(messages, GREEDY)[0].token_ids
        == llm.chat(messages, GREEDY)[0].token_ids
        == turns.token_ids
    )
    assert [o.token_ids for o in llm.chat([messages, messages], GREEDY)] == [turns.token_ids] * 2
    assert llm.generate([], GREEDY) == []


def test_outputs_come_in_order_whatever_ends_first(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in (9, 1, 5, 2, 7)]
    outputs = llm.generate(["a", "b", "c", "d", "e"], params)
    assert [o.index for o in outputs] == [0, 1, 2, 3, 4]
    assert [len(o.token_ids) for o in outputs] == [9, 1, 5, 2, 7]


def test_pieces_join_to_the_output(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, stop=["e", "th"])
    texts = {0: "", 1: ""}
    for piece in llm.stream(["hello there", "other"], params):
        texts[piece.index] += piece.text
        if piece.output is not None:
            assert piece.output.text == texts[piece.index]
            assert "e" not in piece.output.text


def test_a_seed_makes_a_call_repeatable_and_none_does_not(loaded: Loaded, llm: LLM) -> None:
    params = SamplingParams(max_tokens=30, temperature=2.0, ignore_eos=True)
    first = llm.generate(["a", "a"], params)
    assert first == llm.generate(["a", "a"], params)
    assert first[0].token_ids != first[1].token_ids
    fresh = LLM(loaded)
    assert fresh.generate("a", params)[0].token_ids != fresh.generate("a", params)[0].token_ids


def test_without_params_the_authors_recommendations_serve(llm: LLM) -> None:
    recommended = defaults(llm.loaded.generation)
    assert recommended.top_k == 20
    assert llm.generate("hello") == llm.generate("hello", recommended)


@pytest.mark.parametrize(
    ("prompts", "params", "said"),
    [
        ("", GREEDY, "prompt 0 has no tokens"),
        (["a", "b" * 500], GREEDY, "prompt 1 has"),
        (["a", [1, 9999]], GREEDY, "prompt 1 has token 9999"),
        (["a", "b"], [GREEDY], "1 SamplingParams for 2 prompts"),
        ([3.5], GREEDY, "a prompt is 3.5"),
        ("a", SamplingParams(adapter="poet"), "poet"),
        ({"role": "user", "content": "a"}, GREEDY, "one message"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_runs(
    llm: LLM, prompts: list[str], params: SamplingParams, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        llm.stream(prompts, params)  # not even iterated
    assert said in str(caught.value)
    assert llm.speed.prompt_tokens == 0


@pytest.mark.parametrize(
    "option",
    [
        {"tp": 2},
        {"pp": 2},
        {"ep": 2},
        {"dp": 2},
        {"quantization": "w3a3"},
        {"kv": "fa8"},
        {"engine": "fast"},
        {"execution": "graph"},
        {"quantization": "w8a16"},
        {"max_batch": 0},
        {"max_batch_tokens": 0},
        {"max_batch": 2.5},
        {"seed": 2**63},
        {"kv_memory": 0.0},
        {"max_model_len": 100_000},
    ],
    ids=str,
)
def test_no_option_is_ignored(loaded: Loaded, option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        LLM(loaded, **option)  # type: ignore[arg-type]


def test_seeds_of_a_call_wrap_around(loaded: Loaded) -> None:
    with LLM(loaded, seed=2**63 - 1) as llm:
        first, second = llm.generate(["a", "a"], SamplingParams(max_tokens=3))
    with LLM(loaded, seed=-(2**63)) as llm:
        assert llm.generate("a", SamplingParams(max_tokens=3))[0].token_ids == second.token_ids
    assert first.finish_reason == "length"


@pytest.mark.parametrize(
    ("family", "said"), [("gte", "both directions"), ("qwen3_embedding", r"lm_head\.weight")]
)
def test_a_model_of_vectors_writes_no_text(checkpoint: Callable[..., Path], family: str, said: str) -> None:
    with LLM(checkpoint(family), device="cpu") as llm:
        with pytest.raises(UserError, match=said):
            llm.generate("a", GREEDY)
        assert llm.speed.prompt_tokens == 0


def test_a_context_that_cannot_be_is_refused_before_the_weights(checkpoint: Callable[..., Path]) -> None:
    read: list[int] = []
    with pytest.raises(UserError, match="max_model_len"):
        LLM(checkpoint("qwen3"), max_model_len=10**6, progress=lambda done, _: read.append(done))
    assert read == []


def test_a_declared_first_token_stands_before_a_text(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """As transformers' own call does; messages bring theirs by the template."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("qwen3"), folder)
    path = folder / "tokenizer.json"
    keys = json.loads(path.read_text())
    begin = next(t for t in keys["added_tokens"] if t["content"] == "<|endoftext|>")
    keys["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [begin["id"]], "tokens": ["<|endoftext|>"]}
        },
    }
    path.write_text(json.dumps(keys))
    expected = reference.transformers().AutoTokenizer.from_pretrained(folder)("the king")["input_ids"]
    with LLM(folder, device="cpu") as llm:
        assert list(llm.generate("the king", GREEDY)[0].prompt_token_ids) == expected
    assert expected[0] == begin["id"]


def test_a_cache_that_does_not_fit_is_refused(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "memory", lambda place: Memory(total=10**6, free=1000))
    with LLM(loaded, engine="plain") as llm, pytest.raises(UserError, match="memory are free"):
        llm.generate("a", GREEDY)
    monkeypatch.setattr(capacity, "memory", lambda place: Memory(total=10**6, free=1000))
    with pytest.raises(UserError, match="1e-06 GB are free on cpu"):
        LLM(loaded)


def test_a_folder_without_tokenizer_takes_ids_only(checkpoint: Callable[..., Path]) -> None:
    bare = load(checkpoint("qwen2", tokenizer="none"), device="cpu", dtype="float32")
    llm = LLM(bare)
    output = llm.generate([5, 6], GREEDY)[0]
    assert (output.text, len(output.token_ids)) == ("", 5)
    for prompts, params in (("a", GREEDY), ([5, 6], SamplingParams(stop="x")), ([{"role": "user"}], GREEDY)):
        with pytest.raises(UserError):
            llm.generate(prompts, params)  # type: ignore[arg-type]


def test_a_turn_ends_at_its_mark_where_a_text_does_not(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = load(checkpoint("qwen1"), device="cpu", dtype="float32")
    mark = old.text().special["<|im_end|>"]
    assert mark not in old.config.eos

    def always_the_mark(hidden: Tensor) -> Tensor:
        return torch.zeros(len(hidden), old.config.vocabulary).index_fill_(1, torch.tensor([mark]), 1.0)

    monkeypatch.setattr(old.model, "logits", always_the_mark)
    params = SamplingParams(max_tokens=5, temperature=0.0)
    llm = LLM(old)
    turn = llm.chat([{"role": "user", "content": "hi"}], params)[0]
    assert (turn.finish_reason, turn.token_ids, turn.text) == ("stop", (mark,), "")
    assert llm.generate("hi", params)[0].finish_reason == "length"
