"""A tiktoken rank file (`*.tiktoken`): one line a token, its bytes in base64 and its rank, which is its id.

The 208 special tokens follow the ranks: end of text, the two ChatML marks, and 205 spare ones.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import tiktoken

from oneroof.errors import UserError
from oneroof.text.declared import Declared
from oneroof.text.huggingface import SPLIT
from oneroof.text.vocabulary import Vocabulary

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def read_ranks(folder: Path, declared: Declared) -> Vocabulary:
    """The vocabulary of the rank file in `folder`; nothing that is declared beside it is needed.

    Text is brought to NFC first, as the vocabulary's own tokenizer does. Raises `UserError` on a broken file.
    """
    ranks = load_ranks(folder)
    special = {text: len(ranks) + i for i, text in enumerate(SPECIAL)}
    encoding = tiktoken.Encoding(folder.name, pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)

    def encode(text: str, as_special: bool) -> list[int]:
        text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        for part in _cut(text):
            ids += (
                encoding.encode(part, allowed_special="all") if as_special else encoding.encode_ordinary(part)
            )
        return ids

    return Vocabulary(
        encode=encode,
        bytes_of=cache(encoding.decode_single_token_bytes),
        size=len(ranks) + len(special),
        added=special,
        special=special,
        eos=SPECIAL[0],
    )


def load_ranks(folder: Path) -> dict[bytes, int]:
    """Token -> rank, of the rank file in `folder`.

    Raises `UserError` unless the ranks are 0, 1, 2 ... and every single byte has one.
    """
    path = min(folder.glob("*.tiktoken"), default=None)
    if path is None:
        raise UserError(f"{folder} has no .tiktoken file; copy it from the model's folder")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{path} line {number + 1} is not 'base64 rank' ({error}); copy the file again"
            ) from error
        if int(rank) != number or len(ranks) != number + 1:
            raise UserError(
                f"{path} line {number + 1} has rank {int(rank)}, not {number}; copy the file again"
            )
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise UserError(
            f"{path} holds {len(ranks)} tokens and not all 256 bytes among them; copy the file again"
        )
    return ranks


_LONG_BLANK = re.compile(r"\s{20000}(?=\s)")


def _cut(text: str) -> list[str]:
    """The library overflows its stack on some 100,000 blanks in a row, so that longer runs are cut."""
    bounds = [0, *(match.end() for match in _LONG_BLANK.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]
