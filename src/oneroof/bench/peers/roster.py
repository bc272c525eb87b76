"""Who is compared: each peer's file, how it is installed, and its words for the precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneroof.errors import UserError

OURS = "oneroof"
PRECISIONS = ("fp32", "bf16", "f16", "int8", "int4")  # as users name them; a class of its own is each width
_BITS = {"fp32": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4}
_ENGINES = Path(__file__).parent / "engines"


@dataclass(frozen=True, eq=False)
class Peer:
    """One engine of the comparison."""

    name: str
    file: Path  # what its process runs
    forms: Mapping[str, tuple[str, ...]]  # its own names for each precision that it has
    install: str  # what pip is told
    converts: bool = True  # reads a format of its own


@dataclass(frozen=True)
class Variant:
    """A peer at one of its precisions."""

    peer: Peer
    precision: str  # of PRECISIONS
    form: str  # the peer's own word for it

    def __str__(self) -> str:
        return f"{self.peer.name} {self.form}"

    @property
    def bits(self) -> int:
        """Of a weight: what is compared with what."""
        return _BITS[self.precision]

    @property
    def ours(self) -> bool:
        """Whether this is oneroof itself."""
        return self.peer.name == OURS


def _peer(name: str, file: str, install: str, *, converts: bool = True, **forms: str) -> Peer:
    words = {precision: tuple(said.split()) for precision, said in forms.items()}
    return Peer(name, _ENGINES / file, words, install, converts)


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _peer(
            OURS,
            "ours.py",
            "oneroof",
            converts=False,
            fp32="float32",
            bf16="bfloat16",
            f16="float16",
            int8="w8a16 w8a8-dynamic",
            int4="w4a16 w4a8-dynamic",
        ),
        _peer(
            "llama.cpp",
            "llamacpp.py",
            "llama-cpp-python gguf",
            fp32="F32",
            bf16="BF16",
            f16="F16",
            int8="Q8_0",
            int4="Q4_0",
        ),
        _peer("ctranslate2", "ctranslate.py", "ctranslate2 transformers torch", fp32="float32", int8="int8"),
        _peer(
            "openvino",
            "openvino_genai.py",
            "openvino-genai optimum-intel nncf",
            int8="int8",
            int4="int4",
        ),
        _peer(
            "onnxruntime",
            "onnx_genai.py",
            "onnxruntime-genai onnx onnx-ir transformers torch",
            int8="int8",
            int4="int4",
        ),
        _peer(
            "transformers",
            "transformers_eager.py",
            "transformers torch",
            converts=False,
            fp32="float32",
            bf16="bfloat16",
        ),
    )
}


def variants(peers: Sequence[str], precisions: Sequence[str]) -> tuple[Variant, ...]:
    """Every named peer at each of the precisions that it has, widest first; UserError for a strange word."""
    _check("--peers", peers, tuple(PEERS))
    _check("--precisions", precisions, PRECISIONS)
    found = tuple(
        Variant(PEERS[name], precision, form)
        for precision in PRECISIONS
        if precision in precisions
        for name in peers
        for form in PEERS[name].forms.get(precision, ())
    )
    if not found:
        raise UserError(
            f"none of {', '.join(peers)} has {', '.join(precisions)}; {', '.join(PRECISIONS)} are allowed; "
            "add one of them, or another peer"
        )
    return found


def interpreters(words: Sequence[str], default: Path) -> dict[str, Path]:
    """The Python of each peer, from PATH (for all) and PEER=PATH; UserError where there is no such file."""
    given, general = dict[str, Path](), default
    for word in words:
        name, equals, path = word.partition("=")
        if not equals:
            general = Path(word).expanduser()
        else:
            _check("--python", (name,), tuple(PEERS))
            given[name] = Path(path).expanduser()
    for place in (general, *given.values()):
        if not place.is_file():
            raise UserError(
                f"--python {place} was given; the path of a Python is allowed, or PEER=PATH; "
                "try --python llama.cpp=.venv/bin/python"
            )
    return {name: given.get(name, default if name == OURS else general) for name in PEERS}


def _check(flag: str, words: Sequence[str], allowed: Sequence[str]) -> None:
    strange = next((word for word in words if word not in allowed), None)
    if strange is not None or not words:
        raise UserError(
            f"{flag} {strange or ','.join(words)!r} was given; {', '.join(allowed)} are allowed; "
            f"try {flag} {allowed[0]}"
        )
