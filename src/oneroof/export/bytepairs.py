"""A `tokenizer.json` from tiktoken ranks: the merges are recovered from the ranks, text is split as before.

Byte-pair encoding picks the merge of lowest rank first, so a token's own merge joins the two pieces that are
left when only lower ranks may be used on its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from oneroof.errors import UserError
from oneroof.text.huggingface import SPLIT, byte_alphabet
from oneroof.text.ranks import SPECIAL


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that each token of more than one byte is joined from, in order of rank.

    Raises UserError for a token that no pair of lower rank makes.
    """
    found = []
    for token, rank in sorted(ranks.items(), key=lambda row: row[1]):
        if len(token) == 1:
            continue
        pieces = _pieces(token, rank, ranks)
        if len(pieces) != 2:
            raise UserError(
                f"token {rank} ({token!r}) is no pair of earlier tokens; byte-pair ranks are allowed"
            )
        found.append((pieces[0], pieces[1]))
    return found


def tokenizer_json(ranks: Mapping[bytes, int], specials: Sequence[str] = SPECIAL) -> dict[str, object]:
    """What `tokenizer.json` holds for `ranks` and the special tokens, which get the ids behind them."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(ranks) + i, "content": text, **plain} for i, text in enumerate(specials)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {
                _spell(token, letters): rank for token, rank in sorted(ranks.items(), key=lambda row: row[1])
            },
            "merges": [
                f"{_spell(left, letters)} {_spell(right, letters)}" for left, right in merges(ranks)
            ],  # read by old versions too
        },
    }


def _pieces(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """`token` by the merges below `rank`, lowest first."""
    pieces = [bytes([b]) for b in token]
    while len(pieces) > 2:
        joined = [ranks.get(a + b, rank) for a, b in pairwise(pieces)]
        best = min(joined)
        if best >= rank:
            break
        at = joined.index(best)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def _spell(token: bytes, letters: Mapping[int, str]) -> str:
    return "".join(letters[b] for b in token)
