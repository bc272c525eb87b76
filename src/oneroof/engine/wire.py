"""What the engine's process and its client say to each other: typed messages in frames, by msgspec.

A frame is a mark, a length and so many bytes of MessagePack. Nothing in it can name code to run, so that one
end may be wrong without the other coming to harm: what is not a message is a `WireError` that says so.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from oneroof.engine.options import EngineOptions
from oneroof.engine.request import Piece, Reading, Request, Vector
from oneroof.engine.stats import Stats

LIMIT = 2**28  # bytes of one message: log-probabilities of a long prompt are megabytes, never so many
_MARK = b"1RF2"  # the last byte counts up when messages change
_HEAD = struct.Struct(">4sI")  # the mark, and the bytes that follow

T = TypeVar("T")


class WireError(Exception):
    """What came is no message, or what was to be sent cannot be one."""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """The first word to a new process: which model, where, and what the engine may use.

    `threads` are those of one operation on a CPU, which `bind_cpu` keeps on one NUMA node where that has
    cores enough; `level` is what the process need not log below. `tp`, `pp` and `ep` say for how many ranks
    the model is cut, whose logs go to `log_dir`; of the machine, engine `engine` of `engines` has its share.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | Literal["auto"] = "auto"
    bind_cpu: bool = True
    random_weights: bool = False
    layers: int | None = None
    quantization: str = "none"
    packed_cache: bool = False
    seed: int = 0
    revision: str = "main"
    hub: str = "huggingface"
    options: EngineOptions = EngineOptions()
    tp: int = 1
    pp: int = 1
    ep: int = 1
    engine: int = 0
    engines: int = 1
    level: int = 0
    log_dir: str | None = None


class Write(msgspec.Struct, frozen=True, tag="write"):
    """Begin a request; `key` is never used again."""

    key: int
    request: Request


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Begin a reading."""

    key: int
    reading: Reading


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Whoever asked for `key` has left."""

    key: int


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """How is it going?"""

    key: int


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Bytes of the weights that are read."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded, and this is what came of `Load`."""

    folder: str
    device: str  # as `oneroof.device.describe` says it
    dtype: str
    context: int  # tokens that prompt and text may have together
    writes: bool  # it has a head; without one it gives vectors alone


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The line of a `UserError`: what `Load` or the request of `key` asked for cannot be done."""

    line: str
    key: int | None = None


class Events(msgspec.Struct, frozen=True, tag="events"):
    """What the steps since the last one brought, by key."""

    pieces: list[tuple[int, Piece]]
    vectors: list[tuple[int, Vector]]


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The answer to `Ask`."""

    key: int
    stats: Stats


class Said(msgspec.Struct, frozen=True, tag="said"):
    """A line for the log."""

    level: int
    line: str


class _Keyed(msgspec.Struct):
    """What is left of a message whose other fields are wrong."""

    key: int


Order = Load | Write | Read | Abort | Ask
Reply = Loading | Ready | Refused | Events | Told | Said

orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_keyed = msgspec.msgpack.Decoder(_Keyed)


def pack(message: Order | Reply) -> bytes:
    """`message` as it goes over the socket; WireError where it is too large or no text in UTF-8."""
    try:
        payload = msgspec.msgpack.encode(message, enc_hook=_plain)
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise WireError(f"this cannot be sent: {error}") from error
    if len(payload) > LIMIT:
        raise WireError(f"this is a message of {len(payload)} bytes; at most {LIMIT} are allowed")
    return _HEAD.pack(_MARK, len(payload)) + payload


def unpack(payload: bytes, kind: msgspec.msgpack.Decoder[T]) -> T:
    """What `payload` says; `kind` is `orders` or `replies`. WireError where it says nothing of the kind."""
    try:
        return kind.decode(payload)
    except msgspec.MsgspecError as error:
        raise WireError(f"a frame of {len(payload)} bytes is no message: {error}") from error


def key_of(payload: bytes) -> int | None:
    """Whose `payload` is, although it is no message; None where not even that can be told."""
    try:
        return _keyed.decode(payload).key
    except msgspec.MsgspecError:
        return None


class Frames:
    """Bytes as they come, cut into what the frames hold."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def push(self, arrived: bytes) -> list[bytes]:
        """The payloads that `arrived` completes. WireError for what is no frame, or too long a one."""
        self._bytes += arrived
        payloads, begin = [], 0
        while len(self._bytes) - begin >= _HEAD.size:
            mark, length = _HEAD.unpack_from(self._bytes, begin)
            if mark != _MARK:
                raise WireError(f"{bytes(mark)!r} came where a frame begins with {_MARK!r}")
            if length > LIMIT:
                raise WireError(f"a frame of {length} bytes came; at most {LIMIT} are allowed")
            end = begin + _HEAD.size + length
            if len(self._bytes) < end:
                break
            payloads.append(bytes(self._bytes[begin + _HEAD.size : end]))
            begin = end
        del self._bytes[:begin]
        return payloads

    def finish(self) -> None:
        """No more will come. WireError where a frame is torn."""
        if self._bytes:
            raise WireError(f"the socket closed within a frame, after {len(self._bytes)} bytes of it")


def _plain(value: object) -> object:
    """What callers may put in the place of plain data, such as numpy's floats and mappings of other kinds."""
    for kind in (str, float, int):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not plain data")
