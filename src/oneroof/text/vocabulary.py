"""What every tokenizer file comes down to: text to ids, an id to bytes, and which tokens were added by hand.

The readers of the file formats make one; `Tokenizer` is what the rest of the house sees of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """One tokenizer file, read. Safe to use from several threads at once."""

    encode: Callable[[str, bool], list[int]]  # (text, special tokens written in the text count as such)
    bytes_of: Callable[[int], bytes]  # of any id below `size`; empty where no token has that id
    size: int  # one past the highest id
    added: Mapping[str, int]  # all added tokens, the special ones among them
    special: Mapping[str, int]  # those that the checkpoint flags as special
    prepended: tuple[int, ...] = ()  # what the tokenizer's own post-processor puts in front of a text
    appended: tuple[int, ...] = ()  # ... and behind it
    eos: str | None = None  # the file format's own end of text, where the folder names none
    leading_space: bool = False  # decoding drops one space at the head of the text
