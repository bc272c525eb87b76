"""Messages survive the wire as they are, and what is no message is an error that says so."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroof.engine import wire
from oneroof.engine.options import EngineOptions
from oneroof.engine.request import (
    Completion,
    Logprob,
    Output,
    Piece,
    Reading,
    Request,
    SamplingParams,
    Vector,
)
from oneroof.engine.stats import Stats
from oneroof.engine.wire import (
    Abort,
    Ask,
    Events,
    Frames,
    Load,
    Loading,
    Order,
    Read,
    Ready,
    Refused,
    Reply,
    Said,
    Told,
    WireError,
    Write,
    key_of,
    orders,
    pack,
    replies,
    unpack,
)

text = st.text(st.characters(codec="utf-8"), max_size=12)
whole = st.integers(0, 2**40)
number = st.floats(allow_nan=False, width=64)
ids = st.lists(st.integers(0, 2**31), max_size=6).map(tuple)
seeds = st.integers(-(2**63), 2**63 - 1)
keys = st.integers(0, 2**53)
shares = st.dictionaries(
    st.integers(0, 2**31), st.builds(Logprob, number, st.integers(1, 2**18), text), max_size=3
)
params = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 2**40),
    temperature=st.floats(0, 100) | st.integers(0, 3),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(-1, 2**40),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0, 100, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    seed=st.none() | seeds,
    stop=st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
    | st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), max_size=3),
    stop_token_ids=ids,
    ignore_eos=st.booleans(),
    logprobs=st.none() | whole,
    prompt_logprobs=st.none() | whole,
    n=st.integers(1, 1024),
    adapter=st.none() | text,
)
requests = st.builds(
    Request, whole, st.none() | text, ids, params, ids.map(frozenset), seeds, whole, namespace=text
)
completions = st.builds(
    Completion,
    text,
    ids,
    st.sampled_from(["stop", "length", "error"]),
    st.none() | text | whole,
    st.none() | st.lists(shares, max_size=3).map(tuple),
    st.none() | text,
)
outputs = st.builds(
    Output,
    whole,
    st.none() | text,
    ids,
    st.lists(completions, min_size=1, max_size=2).map(tuple),
    st.none() | st.lists(st.none() | shares, max_size=3).map(tuple),
    cached_tokens=whole,
)
pieces = st.builds(Piece, whole, whole, text, ids, st.none() | text, st.none() | outputs)
readings = st.builds(Reading, whole, ids, ids, text)
vectors = st.builds(Vector, whole, st.lists(number, max_size=4).map(tuple), st.none() | text)
options = st.builds(
    EngineOptions,
    kv_memory=st.none() | st.floats(1e-6, 1e6),
    max_model_len=st.none() | st.integers(2, 2**40),
    prefix_cache=st.booleans(),
    in_flight=st.none() | st.integers(1, 4),
)
any_order = st.one_of(
    st.builds(
        Load,
        model=text,
        threads=st.just("auto") | st.integers(1, 64),
        bind_cpu=st.booleans(),
        layers=st.none() | whole,
        seed=seeds,
        random_weights=st.booleans(),
        options=options,
    ),
    st.builds(Write, keys, requests),
    st.builds(Read, keys, readings),
    st.builds(Abort, keys),
    st.builds(Ask, keys),
)
stats = st.builds(
    Stats,
    **{f: whole for f in Stats.__dataclass_fields__ if not f.startswith("seconds")},
    seconds=number,
    seconds_model=number,
)
any_reply = st.one_of(
    st.builds(Loading, whole, whole),
    st.builds(Ready, folder=text, device=text, dtype=text, context=whole, writes=st.booleans()),
    st.builds(Refused, text, st.none() | keys),
    st.builds(
        Events,
        st.lists(st.tuples(keys, pieces), max_size=3),
        st.lists(st.tuples(keys, vectors), max_size=3),
    ),
    st.builds(Told, keys, stats),
    st.builds(Said, whole, text),
)


def sent(message: Order | Reply, kind: object) -> object:
    (payload,) = Frames().push(pack(message))
    return unpack(payload, kind)  # type: ignore[arg-type]


@given(any_order)
def test_every_order_arrives_as_it_was_sent(order: Order) -> None:
    assert sent(order, orders) == order


@given(any_reply)
def test_every_reply_arrives_as_it_was_sent(reply: Reply) -> None:
    assert sent(reply, replies) == reply


@given(requests)
def test_a_request_is_the_same_to_its_types(request: Request) -> None:
    there = sent(Write(1, request), orders)
    assert isinstance(there, Write)
    assert isinstance(there.request.token_ids, tuple)
    assert isinstance(there.request.ends, frozenset)
    assert isinstance(there.request.params.stop, tuple)  # __post_init__ has run
    assert isinstance(there.request.params.temperature, float)
    assert hash(there.request.params) == hash(request.params)


@given(outputs)
def test_what_no_comparison_sees_arrives_too(output: Output) -> None:
    there = sent(Events([(1, Piece(0, 0, "", (), "stop", output))], []), replies)
    assert isinstance(there, Events)
    found = there.pieces[0][1].output
    assert found is not None
    assert found.cached_tokens == output.cached_tokens
    for mine, theirs in zip(output.completions, found.completions, strict=True):
        assert list(map(list, mine.logprobs or ())) == list(map(list, theirs.logprobs or ()))  # in order


def test_numbers_that_are_none_arrive() -> None:
    vector = Vector(0, (math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308))
    there = sent(Events([], [(1, vector)]), replies)
    assert isinstance(there, Events)
    assert repr(there.vectors[0][1]) == repr(vector)


def test_numbers_of_numpy_and_mappings_of_any_kind_are_plain_on_the_other_side() -> None:
    class Word(str):
        __slots__ = ()

    params = SamplingParams(temperature=np.float64(0.5), stop=[Word("end")])
    there = sent(Write(1, Request(0, Word("a"), (1,), params, frozenset(), 0, 1)), orders)
    assert isinstance(there, Write)
    assert there.request.params == SamplingParams(temperature=0.5, stop=["end"])
    assert type(there.request.params.temperature) is float
    shares = MappingProxyType({3: Logprob(-0.5, 1, "x")})
    completion = Completion("x", (3,), "stop", None, (shares,))
    piece = Piece(0, 0, "", (), "stop", Output(0, None, (1,), (completion,), None))
    back = sent(Events([(1, piece)], []), replies)
    assert isinstance(back, Events)
    assert back.pieces[0][1] == piece


@pytest.mark.parametrize(
    ("params", "prompt"),
    [
        (SamplingParams(stop=["\ud800"]), None),
        (SamplingParams(), "half a character: \udc80"),
        (SamplingParams(top_k=2**70), None),
    ],
)
def test_what_cannot_be_sent_is_told_to_the_sender(params: SamplingParams, prompt: str | None) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        pack(Write(1, Request(0, prompt, (1,), params, frozenset(), 0, 1)))


@given(st.lists(any_order, min_size=1, max_size=4), st.data())
def test_frames_may_come_in_any_pieces(messages: list[Order], data: st.DataObject) -> None:
    stream = b"".join(pack(m) for m in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    frames, found = Frames(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += frames.push(stream[begin:end])
    frames.finish()
    assert [unpack(f, orders) for f in found] == [unpack(pack(m)[8:], orders) for m in messages]


@given(any_order, st.data())
def test_a_torn_frame_is_an_error_at_its_end(order: Order, data: st.DataObject) -> None:
    frame = pack(order)
    length = data.draw(st.integers(1, len(frame) - 1))
    frames = Frames()
    assert frames.push(frame[:length]) == []
    with pytest.raises(WireError, match=f"after {length} bytes"):
        frames.finish()


@given(st.binary(min_size=8, max_size=64).filter(lambda b: b[:4] != b"1RF2"))
def test_foreign_bytes_are_no_frame(foreign: bytes) -> None:
    with pytest.raises(WireError, match="where a frame begins"):
        Frames().push(foreign)


def test_a_frame_has_a_largest_size_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LIMIT", 100)
    assert Frames().push(pack(Said(0, "x" * 50)))
    with pytest.raises(WireError, match="at most 100"):
        pack(Said(0, "x" * 100))
    with pytest.raises(WireError, match="at most 100"):
        Frames().push(struct.pack(">4sI", b"1RF2", 101))  # nothing is kept for it


@given(st.binary(max_size=64))
def test_a_frame_of_anything_is_a_message_or_an_error(payload: bytes) -> None:
    for kind in (orders, replies):
        try:
            unpack(payload, kind)  # type: ignore[arg-type]
        except WireError as error:
            assert "no message" in str(error)
    assert key_of(payload) is None or isinstance(key_of(payload), int)


def test_an_order_that_is_wrong_in_itself_still_says_whose_it_is() -> None:
    wrong = Request(0, None, (True,), SamplingParams(), frozenset(), 0, 1)
    payload = pack(Write(7, wrong))[8:]
    with pytest.raises(WireError, match="token_ids"):
        unpack(payload, orders)
    assert key_of(payload) == 7
    assert key_of(pack(Load(model="demo"))[8:]) is None


def test_orders_are_no_replies() -> None:
    with pytest.raises(WireError, match="'write'"):
        unpack(pack(Write(1, Request(0, None, (1,), SamplingParams(), frozenset(), 0, 1)))[8:], replies)


def test_the_client_needs_neither_torch_nor_pickle() -> None:
    program = (
        "import sys; import oneroof.engine.remote, oneroof.engine.worker; "
        "sys.exit(bool({'torch', 'pickle', 'multiprocessing'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
