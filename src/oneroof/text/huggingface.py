"""`tokenizer.json`, and `vocab.json` with `merges.txt`: what Hugging Face's tokenizers library reads.

Taken are byte-level vocabularies and those with byte fallback; anything else is refused as foreign.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from oneroof.errors import UserError
from oneroof.text.declared import Declared
from oneroof.text.vocabulary import Vocabulary

# How text is cut into words before merging; the rank files of the same vocabulary have the same rule.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tokenizer_json(folder: Path, declared: Declared) -> Vocabulary:
    """The vocabulary of `folder`/tokenizer.json. Raises `UserError` on a torn or foreign file."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"{path} is not a tokenizer.json ({error}); copy it again from the model's folder"
        ) from error
    return _vocabulary(tokenizer, declared, path)


def read_vocab_and_merges(folder: Path, declared: Declared) -> Vocabulary:
    """A byte-level BPE from vocab.json and merges.txt, with the added tokens that the folder declares."""
    paths = [folder / "vocab.json", folder / "merges.txt"]
    for path in paths:
        if not path.exists():
            raise UserError(f"{folder} has no {path.name}; vocab.json and merges.txt go together; copy both")
    try:
        model = models.BPE.from_file(*map(str, paths))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"{paths[0]} and {paths[1].name} are no BPE vocabulary ({error}); copy both again"
        ) from error
    tokenizer = _byte_level(model, prefix_space=declared.config.get("add_prefix_space") is True)
    if not declared.tokens:
        tokenizer.add_special_tokens(["<|endoftext|>"])  # as transformers does where nothing is declared
    return _vocabulary(tokenizer, declared, paths[0])


def _byte_level(model: models.BPE, *, prefix_space: bool) -> tokenizers.Tokenizer:
    """A tokenizer of NFC text over a BPE whose alphabet is the 256 bytes; it has no added tokens yet."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class _Encoder:
    """Text to ids.

    Whether special tokens count is a setting of the library's whole tokenizer, so that there are two. The
    second takes up to a second to make: it is made when a text first spells one that is not to count.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: Iterable[str], *, folded: bool) -> None:
        """`folded`: special tokens may also arise by normalising the text, where a search would miss them."""
        self._special = tokenizer
        self._plain: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        self._spelt = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._folded = folded

    def __call__(self, text: str, special: bool) -> list[int]:
        plain = not special and (self._folded or self._spelt.search(text) is not None)
        chosen = self._plain_tokenizer() if plain else self._special
        return list(chosen.encode(text, add_special_tokens=False).ids)

    def _plain_tokenizer(self) -> tokenizers.Tokenizer:
        with self._lock:
            if self._plain is None:
                self._plain = tokenizers.Tokenizer.from_str(self._special.to_str())
                self._plain.encode_special_tokens = True
            return self._plain


def _vocabulary(tokenizer: tokenizers.Tokenizer, declared: Declared, path: Path) -> Vocabulary:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _declare(tokenizer, declared, path)
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content: i for i, token in added.items() if token.special}
    size = max([tokenizer.get_vocab_size(with_added_tokens=False) - 1, *added]) + 1
    texts = {i: token.content for i, token in added.items()}
    bytes_of, leading_space = _bytes_of(tokenizer, texts, path)
    prepended, appended = _frame(tokenizer)
    end = tokenizer.token_to_id(declared.roles.get("eos_token", ""))
    if declared.config.get("add_eos_token") is True and end is not None and end not in appended:
        appended = (*appended, end)
    return Vocabulary(
        encode=_Encoder(tokenizer, special, folded=any(t.special and t.normalized for t in added.values())),
        bytes_of=cache(bytes_of),
        size=size,
        added={text: i for i, text in texts.items()},
        special=special,
        prepended=prepended,
        appended=appended,
        leading_space=leading_space,
    )


def _declare(tokenizer: tokenizers.Tokenizer, declared: Declared, path: Path) -> None:
    """Adds what the side files declare. Raises `UserError` where a token then has another id than declared.

    Where `added_tokens_decoder` and the tokenizer disagree on a token's flags, transformers takes the former;
    a token with a role is special whatever they say.
    """
    present = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    decides = "added_tokens_decoder" in declared.config
    for token in declared.tokens:
        flags = {name: getattr(token, name) for name in _FLAGS}
        there = present.get(token.text)
        differs = there is not None and any(getattr(there, name) != flag for name, flag in flags.items())
        if there is None or (differs and (decides or token.special)):
            tokenizer.add_tokens([tokenizers.AddedToken(token.text, **flags)])
        found = tokenizer.token_to_id(token.text)
        if token.id is not None and found != token.id:
            raise UserError(
                f"tokenizer_config.json gives {token.text!r} the id {token.id}, {path} gives it {found};"
                " the files are not of one model: copy both again"
            )


_FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


def _bytes_of(
    tokenizer: tokenizers.Tokenizer, texts: Mapping[int, str], path: Path
) -> tuple[Callable[[int], bytes], bool]:
    """How a token's bytes are found, and whether decoding drops a leading space."""
    steps = _components(tokenizer.decoder, "decoders")
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds or (
        not steps and "ByteLevel" in _types(tokenizer.pre_tokenizer, "pretokenizers")
    ):
        spell = _from_byte_level()
    elif "ByteFallback" in kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        spell = piece_bytes
    else:
        raise UserError(
            f"{path} decodes by {', '.join(sorted(kinds)) or 'nothing'}; byte-level and byte-fallback"
            " vocabularies can be read; take the tokenizer of a supported model"
        )

    def bytes_of(id: int) -> bytes:
        if id in texts:
            return texts[id].encode()
        token = tokenizer.id_to_token(id)
        return b"" if token is None else spell(token)

    return bytes_of, any(step["type"] == "Strip" and step.get("start") for step in steps)


def _from_byte_level() -> Callable[[str], bytes]:
    alphabet = byte_alphabet()

    def spell(token: str) -> bytes:
        known = all(character in alphabet for character in token)
        return bytes(alphabet[c] for c in token) if known else token.encode()

    return spell


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 stands for itself, the other 68 bytes are U+0100 and up, in order: the table of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def piece_bytes(piece: str) -> bytes:
    """The bytes of a sentencepiece piece: ``<0xE4>`` is one byte, U+2581 a space."""
    if _BYTE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _frame(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and behind a single text."""
    before: list[int] = []
    behind: list[int] = []
    for step in _components(tokenizer.post_processor, "processors"):
        if step["type"] != "TemplateProcessing":
            continue
        side = before
        for item in step["single"]:
            if "Sequence" in item:
                side = behind
            else:
                side += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    return tuple(before), tuple(behind)


def _types(component: object, inside: str) -> set[str]:
    return {step["type"] for step in _components(component, inside)}


def _components(component: Any, inside: str) -> list[dict[str, Any]]:
    """A component of the library, or the members of a sequence of them, as the JSON it is saved as."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())  # the only road from a component to its JSON
    return list(state[inside]) if state["type"] == "Sequence" else [state]
