"""What a request gets is the same to the bit in any company: by hash of the logits behind every token.

A request by itself, read at once by one thread, is what is compared with: batches of strangers who come and
go, prompts in chunks, prefixes that were read for others, preemption, guesses, and other numbers of threads.
The references make no such promise, so that these tests are the native kernels' alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
from native_kernels import threads
from torch import Tensor

from oneroof.engine.admission import admit
from oneroof.engine.engine import Drafter, Engine
from oneroof.engine.options import EngineOptions
from oneroof.engine.request import Piece, Request, SamplingParams
from oneroof.engine.sequence import Sequence as Written
from oneroof.engine.stats import Stats
from oneroof.load import Loaded, load
from oneroof.ops.cpu.library import native, status
from oneroof.ops.matmul import matmul
from oneroof.pages import bytes_per_token
from oneroof.quant.schemes import SCHEMES

pytestmark = pytest.mark.skipif(native() is None, reason=f"no native kernels: {status()['at work']}")

SIZES = {"hidden_size": 160, "num_hidden_layers": 2, "max_position_embeddings": 1024}
FAMILIES: dict[str, dict[str, object]] = {  # of uneven sizes: groups of inputs and register tiles have tails
    "qwen2": {**SIZES, "intermediate_size": 232, "use_sliding_window": True, "sliding_window": 50},
    "qwen3": {**SIZES, "intermediate_size": 224},
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 48},
    "ernie4_5_moe": {**SIZES, "moe_intermediate_size": 32},
}
KINDS = ("float", "kv8")
STEPS = [(2, 1), (3, 7), (2, 33), (3, 256), (2, 1000), (3, 4096)]  # threads, and tokens of a step at most


@dataclass(frozen=True)
class Form:
    """How a model is held."""

    dtype: str
    quantization: str
    kv: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.quantization} {self.kv}"


EVERY = [Form(d, q, kv) for d in ("float32", "bfloat16", "float16") for q in SCHEMES for kv in KINDS]
FEW = [  # each format, number format and kind of cache with each sort of model at least once
    ("qwen2", Form("bfloat16", "w4a16", "kv8")),
    ("qwen3", Form("float32", "w8a16", "float")),
    ("qwen3_moe", Form("bfloat16", "none", "float")),
    ("ernie4_5_moe", Form("bfloat16", "w8a8-dynamic", "kv8")),
]


@dataclass
class Trace:
    """The texts of a run, and a hash of the logits behind each of their tokens."""

    texts: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)  # (request, completion)
    logits: dict[tuple[int, int, int], str] = field(default_factory=dict)  # ... and place
    stats: Stats | None = None

    def check(self, other: Trace, where: str) -> None:
        """`other` is the same for all that it has."""
        for key, text in other.texts.items():
            assert text == self.texts[key], f"{where}: text {key}"
        assert {k[:2] for k in other.logits} == set(other.texts)
        for (key, number, place), value in self.logits.items():
            if (key, number) in other.texts:
                assert other.logits[key, number, place] == value, f"{where}: {key, number} at {place}"


@pytest.fixture(scope="module")
def model(checkpoint: Callable[..., Path]) -> Callable[[str, Form], Loaded]:
    @cache
    def held(family: str, dtype: str, quantization: str) -> Loaded:
        folder = checkpoint(family, dtype="bfloat16", **FAMILIES[family])
        return load(folder, device="cpu", dtype=dtype, quantization=quantization)

    return lambda family, form: held(family, form.dtype, form.quantization)


def requests(loaded: Loaded, *, longest: int = 330) -> list[Request]:
    """Prompts of very different lengths, some of which begin alike; greedy and drawn, some of two texts."""
    draw = random.Random(5)
    shared = [draw.randrange(300) for _ in range(37)]
    made = []
    for index, length in enumerate((1, 3, longest, 14, 5, 40, 70, 26)):
        ids = [*shared[: 37 * (index % 2)], *(draw.randrange(300) for _ in range(length))]
        params = SamplingParams(
            max_tokens=6 + 5 * (index % 3),
            temperature=[0.0, 1.0][index // 2 % 2],
            top_p=0.95,
            repetition_penalty=1.1 if index == 6 else 1.0,
            n=2 if index in (3, 5) else 1,
            ignore_eos=True,
        )
        made.append(
            admit(
                index,
                None,
                ids,
                params,
                config=loaded.config,
                context=loaded.config.max_positions,
                ends=frozenset(),
                seed=1000 + index,
                namespace="",
            )
        )
    return made


def run(
    loaded: Loaded,
    wanted: Sequence[Request],
    options: EngineOptions,
    *,
    drafter: Drafter | None = None,
    staggered: bool = False,
    before: Sequence[Request] = (),
) -> Trace:
    """`wanted` through one engine, freed pages poisoned; `before` go first and are not looked at."""
    engine, found = Engine(loaded, options, poison=True, drafter=drafter), Trace()
    for request in before:
        engine.add(1000 + request.index, request)
    while engine.busy:
        engine.step()
    _listen(engine, found, again=drafter is not None)
    late = list(wanted)
    while late or engine.busy:
        while late and (not staggered or not engine.busy or engine.stats().steps % 2):
            engine.add(late[0].index, late.pop(0))
            if staggered:
                break
        for key, event in engine.step():
            assert isinstance(event, Piece)
            if event.output is not None:
                for number, completion in enumerate(event.output.completions):
                    assert completion.finish_reason == "length", completion.error
                    found.texts[key, number] = completion.token_ids
    found.stats = engine.stats()
    return found


def _listen(engine: Engine, found: Trace, *, again: bool) -> None:
    """Note the logits of every choice. A place may be seen twice, with guesses (`again`) in two ways."""
    choose = engine.runner._sample

    def noted(logits: Tensor, choices: list[object]) -> Tensor:
        for row, choice in zip(logits, choices, strict=True):
            sequence: Written = choice.sequence  # type: ignore[attr-defined]
            key = (sequence.key, sequence.number, choice.length)  # type: ignore[attr-defined]
            value = hashlib.sha256(row.numpy().tobytes()).hexdigest()
            assert again or found.logits.setdefault(key, value) == value, f"{key} is another the second time"
            found.logits[key] = value
        return choose(logits, choices)  # type: ignore[arg-type]

    engine.runner._sample = noted  # type: ignore[method-assign, assignment]


def alone(loaded: Loaded, form: Form, wanted: Sequence[Request]) -> Trace:
    """Each of `wanted` in an engine of its own, its prompt in one piece, by one thread."""
    options = EngineOptions(max_batch=2, max_batch_tokens=4096, prefix_cache=False, kv=form.kv)  # type: ignore[arg-type]
    whole = Trace()
    with threads(1):
        for request in wanted:
            one = run(loaded, [request], options)
            whole.texts |= one.texts
            whole.logits |= one.logits
    assert len(whole.texts) == len(wanted) + 2 and len(set(whole.logits.values())) > len(wanted)
    return whole


def usual(form: Form, **others: object) -> EngineOptions:
    options = EngineOptions(page_size=8, max_batch=8, max_batch_tokens=64, prefix_cache=False, kv=form.kv)  # type: ignore[arg-type]
    return replace(options, **others)  # type: ignore[arg-type]


def scenarios(loaded: Loaded, form: Form, expected: Trace, *, all_of_them: bool) -> None:
    """Every company in turn; `all_of_them`: more sizes of each."""
    wanted = requests(loaded)
    for team, tokens in STEPS if all_of_them else [(2, 7), (3, 4096)]:
        some = wanted[:2] + wanted[3:] if tokens == 1 else wanted
        options = usual(form, max_batch_tokens=tokens, page_size=5)
        with threads(team):
            found = run(loaded, some, options, staggered=tokens < 4096)
        expected.check(found, f"{tokens} tokens a step, {team} threads")
    for count in range(2, 9) if all_of_them else (3,):
        some = [wanted[(2 + 3 * i) % 8] for i in range(count)]
        found = run(loaded, some, usual(form, max_batch=count), staggered=True)
        expected.check(found, f"{count} together")
    found = run(loaded, wanted, usual(form, prefix_cache=True), before=wanted)
    assert found.stats is not None and found.stats.cached_tokens > 300
    expected.check(found, "prefixes that were read before")
    _crowded(loaded, form, expected, wanted, (4, 20, 60) if all_of_them else (4,))
    _guessed(loaded, form, expected, wanted)


def _crowded(
    loaded: Loaded, form: Form, expected: Trace, wanted: Sequence[Request], sizes: Sequence[int]
) -> None:
    """Caches that hold one of the texts, and so many more pages."""
    config, some = loaded.config, [r for r in wanted if len(r.token_ids) < 120]
    longest = max(len(r.token_ids) + r.limit * r.params.n for r in some)
    each = 2 * bytes_per_token(
        depth=config.depth,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=loaded.dtype,
        kind=form.kv,  # type: ignore[arg-type]
    )
    preempted = 0
    for more in sizes:
        memory = (-(-longest // 2) + more + 0.5) * each / 1e9
        found = run(loaded, some, usual(form, page_size=2, kv_memory=memory, prefix_cache=more == 20))
        assert found.stats is not None
        preempted += found.stats.preemptions
        expected.check(found, f"preempted {found.stats.preemptions} times")
    assert preempted > 0


def _guessed(loaded: Loaded, form: Form, expected: Trace, wanted: Sequence[Request]) -> None:
    guesser = random.Random(0)

    def guess(sequence: Written) -> tuple[int, ...]:
        """Some right tokens, then a wrong one."""
        text = expected.texts[sequence.key, sequence.number]
        made = len(sequence.tokens) - sequence.prompt
        return (*text[made : made + guesser.randint(0, 3)], guesser.randrange(300))

    expected.check(run(loaded, wanted, usual(form), drafter=guess), "guesses")


@pytest.mark.parametrize(("family", "form"), FEW, ids=str)
def test_company_changes_no_bit(model: Callable[[str, Form], Loaded], family: str, form: Form) -> None:
    loaded = model(family, form)
    scenarios(loaded, form, alone(loaded, form, requests(loaded)), all_of_them=False)


@pytest.mark.slow
@pytest.mark.parametrize("form", EVERY, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_company_changes_a_bit(model: Callable[[str, Form], Loaded], family: str, form: Form) -> None:
    loaded = model(family, form)
    scenarios(loaded, form, alone(loaded, form, requests(loaded)), all_of_them=True)


def test_a_sum_that_threads_share_is_noticed(
    model: Callable[[str, Form], Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrix can fail: here a product is summed in two parts where there are other rows beside it."""
    form = Form("float32", "none", "float")
    loaded = model("qwen3", form)
    wanted = requests(loaded, longest=60)
    expected, serves = alone(loaded, form, wanted), matmul._fast
    assert serves is not None

    def cut(x: Tensor, *others: object) -> Tensor:
        if x.shape[0] < 3:
            return serves(x, *others)  # type: ignore[arg-type]
        late = x.clone()
        late[:, ::2] = 0
        return serves(x - late, *others) + serves(late, *others)  # type: ignore[arg-type, operator]

    monkeypatch.setattr(matmul, "_fast", cut)
    with pytest.raises(AssertionError, match="together"):
        expected.check(run(loaded, wanted, usual(form)), "together")


def test_a_texts_own_numbers_are_its_kind_of_cache_and_weights(model: Callable[[str, Form], Loaded]) -> None:
    """Each form gives other logits: none is another's by mistake."""
    found: dict[str, str] = {}
    for form in (Form("bfloat16", q, kv) for q in SCHEMES for kv in KINDS):
        loaded = model("qwen3", form)
        trace = run(loaded, [requests(loaded)[2]], usual(form))
        found[str(form)] = trace.logits[min(trace.logits)]
    assert len(set(found.values())) == len(found), found
