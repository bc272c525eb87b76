"""Text while it is made: however tokens or letters are split, a stream gives what all at once would give.

Each property is told beside a reference that reads everything from the beginning again at every step.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import TypeVar

import pytest
import tokenizers
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from oneroof.engine.answer import BAD, Answer
from oneroof.engine.llm import LLM
from oneroof.engine.request import Completion, Request, SamplingParams
from oneroof.engine.stops import StopWatch
from oneroof.hub import locate
from oneroof.text.tokenizer import Tokenizer, load_tokenizer

WORDS = (
    *(
        "the ",
        "quick",
        " brown",
        "\n",
        "  ",
        "a",
        "<",
        "|",
        "<|im_end|>",
        "<think>",
        "</s>",
        "\x00",
        "\ufffd",
    ),
    *("你好", "世界", "，", "。", "né", "e\u0301", "q\u0307\u0323", "ﷺ", "ก็", "\u200b", "\ufeff"),
    *("😀", "👩\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "👍🏽", "🇨🇳", "\U0010ffff"),
)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map("".join) | st.text(max_size=12)
Whole = TypeVar("Whole", str, list[int])
PROPERTY = settings(max_examples=50, deadline=None)


def write_stripped(folder: Path) -> None:
    """A `tokenizer.json` of pieces with byte fallback; its decoder drops one space at the head of a text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "\u2581\u2581", "a", "b", "\u2581a", "ab", "é", "你", "好", "\u2581你"]
    model = tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    steps = tokenizers.decoders
    made.decoder = steps.Sequence(
        [steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))


WRITTEN: dict[str, Callable[[Path], None]] = {
    "json": vocabularies.write_json,
    "vocab": vocabularies.write_vocab,
    "tiktoken": vocabularies.write_tiktoken,
    "sentencepiece": vocabularies.write_sentencepiece,
    "stripped": write_stripped,
}
PUBLISHED = ("qwen1", "qwen2")
FORMS = (*WRITTEN, "demo", *PUBLISHED)


@pytest.fixture(scope="module", params=FORMS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    form: str = request.param
    if form == "demo":
        return load_tokenizer(locate("demo"))
    if form in PUBLISHED:
        return load_tokenizer(request.getfixturevalue("shared") / "data" / "tokenizers" / form)
    folder = tmp_path_factory.mktemp(form)
    WRITTEN[form](folder)
    return load_tokenizer(folder)


@st.composite
def token_ids(draw: st.DrawFn, tokenizer: Tokenizer, most: int = 16) -> list[int]:
    """Ids of texts, halves of characters, special tokens, any ids at all, and some that stand for nothing."""
    special = sorted(tokenizer.special.values())
    ids: list[int] = []
    while len(ids) < most and draw(st.integers(0, 4)):
        text = tokenizer.encode(draw(TEXTS))
        begin, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        odd = st.sampled_from([*special, tokenizer.size]) | st.integers(0, tokenizer.size - 1)
        ids += draw(st.sampled_from([text, text[begin:end], [draw(odd)]]))
    return ids[:most]


def splits(length: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut so many into steps: the borders between them."""
    for count in range(length):
        yield from combinations(range(1, length), count)


def cut(whole: Whole, borders: Sequence[int]) -> list[Whole]:
    """`whole` in steps that end at `borders`."""
    return [whole[a:b] for a, b in pairwise([0, *sorted(borders), len(whole)])]


def borders(length: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, length), max_size=length)


def bytes_of(tokenizer: Tokenizer, ids: Sequence[int], skip: bool = True) -> bytes:
    skipped = set(tokenizer.special.values()) if skip else set()
    return b"".join(tokenizer.token_bytes(i) for i in ids if i not in skipped)


def text_of(tokenizer: Tokenizer, ids: Sequence[int], *, skip: bool = True, whole: bool = True) -> str:
    """All ids decoded at once; of a text that goes on (not `whole`) without its unfinished character."""
    text, _ = codecs.utf_8_decode(bytes_of(tokenizer, ids, skip), "replace", whole)
    return text.removeprefix(" ") if tokenizer.vocabulary.leading_space else text


def stopped(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Letter by letter: the stop that is complete first ends the text, of several the longest."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held(text: str, stops: Sequence[str]) -> str:
    """The longest end of `text` that some stop goes on from: what cannot be shown yet."""
    ends = (text[start:] for start in range(len(text)))
    return next((e for e in ends if any(s.startswith(e) and s != e for s in stops)), "")


@pytest.mark.parametrize("skip", [False, True])
@PROPERTY
@given(data=st.data())
def test_tokens_in_any_steps_are_the_text_of_all_at_once(
    tokenizer: Tokenizer, skip: bool, data: st.DataObject
) -> None:
    ids = data.draw(token_ids(tokenizer))
    expected = text_of(tokenizer, ids, skip=skip)
    assert tokenizer.decode(ids, skip_special=skip) == expected
    ways = [range(size, len(ids), size) for size in range(1, len(ids) + 1)]
    for way in [*ways, *([b] for b in range(len(ids) + 1)), data.draw(borders(len(ids)))]:
        stream = tokenizer.stream(skip_special=skip)
        assert "".join(stream.push(step) for step in cut(ids, way)) + stream.finish() == expected
        assert stream.push(()) + stream.finish() == ""


@PROPERTY
@given(data=st.data())
def test_tokens_at_every_split_show_all_but_the_unfinished_character(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(token_ids(tokenizer, 6))
    for way in splits(len(ids)):
        stream, shown = tokenizer.stream(), ""
        for border, step in zip([*way, len(ids)], cut(ids, way), strict=True):
            shown += stream.push(step)
            assert shown == text_of(tokenizer, ids[:border], whole=False)
        assert shown + stream.finish() == text_of(tokenizer, ids)


def check_watch(text: str, stops: Sequence[str], way: Sequence[int]) -> None:
    """`text` in these steps: the same end, all that may be shown as soon as it may, and nothing after."""
    expected, found = stopped(text, stops)
    watch, shown, seen = StopWatch(stops), "", ""
    for step in cut(text, way):
        shown, seen = shown + watch.push(step), seen + step
        so_far, early = stopped(seen, stops)
        assert shown == so_far.removesuffix("" if early else held(so_far, stops))
        assert watch.found == early
    assert (shown + watch.finish(), watch.found) == (expected, found)
    assert found is None or watch.push("after") + watch.finish() == ""
    assert not any(stop in expected for stop in stops)


def test_all_short_texts_with_all_pairs_of_stops_at_every_split() -> None:
    words = ["".join(letters) for size in (1, 2, 3) for letters in product("ab", repeat=size)]
    for stops in [*((word,) for word in words), *combinations(words, 2)]:
        for letters in product("ab", repeat=5):  # what is shorter is a beginning of one of these
            for way in splits(5):
                check_watch("".join(letters), stops, way)


@st.composite
def watched(draw: st.DrawFn, most: int) -> tuple[str, list[str]]:
    """A text, and stops that are likely to meet in it: parts of it, all of it, and parts of each other."""
    letters = draw(st.sampled_from(["ab", "<|im_end>", "é你😀\u200d\ufffd", "\n a"]))
    text = draw(st.text(letters, max_size=most) | TEXTS.map(lambda text: text[:most]))
    stops: list[str] = []
    for _ in range(draw(st.integers(0, 5))):
        source = draw(st.sampled_from([text, text * 2, *stops]) | st.text(letters, max_size=4))
        begin, end = sorted((draw(st.integers(0, len(source))), draw(st.integers(0, len(source)))))
        stops.append(draw(st.sampled_from([source, source[begin:end], source[begin:end] + letters[0]])))
    return text, [stop for stop in stops if stop]


@settings(max_examples=150, deadline=None)
@given(watched(8))
def test_stops_are_found_at_every_split_of_the_text(case: tuple[str, list[str]]) -> None:
    text, stops = case
    for way in splits(len(text)):
        check_watch(text, stops, way)


@settings(max_examples=300, deadline=None)
@given(watched(40), st.data())
def test_stops_are_found_in_long_texts(case: tuple[str, list[str]], data: st.DataObject) -> None:
    text, stops = case
    check_watch(text, stops, data.draw(borders(len(text))))


def expected_completion(tokenizer: Tokenizer, request: Request, tokens: Sequence[int]) -> Completion:
    """What `tokens` become: after each of them, all that was made is read again from the beginning."""
    stops, count, reason, why = request.params.stops, 0, "", None
    for count, token in enumerate(tokens, start=1):
        ended = {BAD: ("error", None), **dict.fromkeys(request.ends, ("stop", None))}
        ended |= {end: ("stop", end) for end in request.params.stop_token_ids}
        made = tokens[: count - 1] if token in ended else tokens[:count]
        over = token in ended or count == request.limit
        text, stop = stopped(text_of(tokenizer, made, whole=over), stops)
        if over or stop is not None:
            reason, why = ended.get(token, ("length", None)) if stop is None else ("stop", stop)
            reason, why = ended[BAD] if token == BAD else (reason, why)
            break
    error = "its logits are not numbers" if reason == "error" else None
    return Completion(text, tuple(t for t in tokens[:count] if t != BAD), reason, why, None, error)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_an_answer_is_the_same_however_many_tokens_a_step_brings(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    tokens = data.draw(token_ids(tokenizer).filter(bool))
    text = text_of(tokenizer, tokens)
    inside = st.tuples(*[st.integers(0, len(text))] * 2).map(lambda ends: text[min(ends) : max(ends)])
    some = st.sampled_from(tokens)
    params = SamplingParams(
        stop=[s for s in data.draw(st.lists(inside | st.sampled_from(WORDS), max_size=3)) if s],
        stop_token_ids=data.draw(st.lists(some, max_size=1)) if data.draw(st.booleans()) else [],
    )
    ends = frozenset(data.draw(st.lists(some, max_size=1))) if data.draw(st.booleans()) else frozenset()
    if data.draw(st.integers(0, 9)) == 0:
        tokens[data.draw(st.integers(0, len(tokens) - 1))] = BAD
    limit = data.draw(st.integers(1, len(tokens)))
    request = Request(0, None, (1,), params, ends - {BAD}, 5, limit)
    expected = expected_completion(tokenizer, request, tokens)
    for way in (range(1, len(tokens)), [], data.draw(borders(len(tokens)))):
        answer, shown = Answer(request, 0, tokenizer), ""
        for step in cut(tokens, way):
            for token in step:
                if answer.finish_reason is None:
                    shown += answer.add(token)
                    assert expected.text.startswith(shown)
        assert answer.completion() == expected
        assert shown == expected.text
    assert not any(stop in expected.text for stop in params.stops)


@pytest.mark.parametrize(
    ("token", "reason", "why"), [(BAD, "error", None), (256, "stop", "\ufffd"), (1, "stop", "\ufffd")]
)
def test_a_stop_string_that_the_end_completes_is_why_it_ended_unless_it_failed(
    tmp_path: Path, token: int, reason: str, why: str | None
) -> None:
    vocabularies.write_json(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    params = SamplingParams(stop=["\ufffd"], stop_token_ids=[256])
    tokens = [*tokenizer.encode("é")[:1], token]
    answer = Answer(Request(0, None, (1,), params, frozenset({1}), 5, 9), 0, tokenizer)
    assert [answer.add(t) for t in tokens] == ["", ""]
    assert answer.completion() == expected_completion(tokenizer, answer.request, tokens)
    assert (answer.finish_reason, answer.stop_reason) == (reason, why)
    assert (answer.error is None) == (token != BAD)


@pytest.fixture(scope="module", params=["qwen1", "qwen3", "ernie4_5_moe"])
def llm(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> LLM:
    return LLM(checkpoint(request.param), device="cpu", seed=3)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_stream_concatenates_to_the_text_that_is_not_streamed(llm: LLM, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 2))
    params = SamplingParams(max_tokens=12, n=count, seed=data.draw(st.integers(0, 9)), temperature=2.0)
    prompts = data.draw(st.lists(st.sampled_from(["the king", "你好", "yes no 😀"]), min_size=1, max_size=2))
    texts = [c.text for output in llm.generate(prompts, params) for c in output.completions]
    stops = []
    for text in texts[: data.draw(st.integers(0, len(texts)))]:
        at = data.draw(st.integers(0, max(0, len(text) - 1)))
        stops += [text[at : at + data.draw(st.integers(1, 3))]]
    params = SamplingParams(
        max_tokens=12, n=count, seed=params.seed, temperature=2.0, stop=[s for s in stops if s]
    )
    joined: dict[tuple[int, int], str] = {}
    made: dict[tuple[int, int], tuple[int, ...]] = {}
    for piece in llm.stream(prompts, params):
        place = piece.index, piece.number
        joined[place] = joined.get(place, "") + piece.text
        made[place] = made.get(place, ()) + piece.token_ids
    outputs = llm.generate(prompts, params)
    whole = {(o.index, i): c for o in outputs for i, c in enumerate(o.completions)}
    assert joined == {place: c.text for place, c in whole.items()}
    assert made == {place: c.token_ids for place, c in whole.items()}
    assert [joined[place] for place in sorted(joined)] == [stopped(text, params.stops)[0] for text in texts]
