"""A sentencepiece `tokenizer.model`, read as transformers 5 reads it: spaces are kept as they are written.

That is, no space is put before the text and runs of spaces are not squeezed, whatever the file asks for.
Control pieces and the unknown piece are special tokens; so are those that the folder declares special.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import sentencepiece

from oneroof.errors import UserError
from oneroof.text.declared import Declared
from oneroof.text.huggingface import piece_bytes
from oneroof.text.vocabulary import Vocabulary


def read_pieces(folder: Path, declared: Declared) -> Vocabulary:
    """The vocabulary of `folder`/tokenizer.model. Raises `UserError` on a torn or foreign file."""
    path = folder / "tokenizer.model"
    processor = _processor(path)
    count = processor.get_piece_size()
    special = {
        processor.id_to_piece(i): i
        for i in range(count)
        if processor.is_control(i) or processor.is_unknown(i)
    }
    added = dict(special)
    size = count
    for token in declared.tokens:
        known = processor.piece_to_id(token.text)
        there = processor.id_to_piece(known) == token.text
        id = token.id if token.id is not None else known if there else size
        if id > size:
            raise UserError(
                f"{folder} gives {token.text!r} the id {id}, but {path.name} ends at {size - 1};"
                " the files are not of one model: copy both again"
            )
        size = max(size, id + 1)
        added[token.text] = id
        if token.special:
            special[token.text] = id
    texts = {id: text for text, id in added.items()}

    def bytes_of(id: int) -> bytes:
        if id in texts:
            return texts[id].encode()
        return piece_bytes(processor.id_to_piece(id))

    return Vocabulary(
        encode=_Encoder(processor, added, special),
        bytes_of=cache(bytes_of),
        size=size,
        added=added,
        special=special,
    )


class _Encoder:
    """Text to ids: added tokens are taken out first, the processor sees what lies between them."""

    def __init__(
        self,
        processor: sentencepiece.SentencePieceProcessor,
        added: Mapping[str, int],
        special: Mapping[str, int],
    ) -> None:
        self._processor = processor
        self._added = added
        self._every = re.compile(_any_of(added))
        self._ordinary = re.compile(_any_of(text for text in added if text not in special))
        # A lookahead, so that tokens that overlap are all found. One letter alone cannot be cut.
        self._spelt = re.compile(f"(?={_any_of(text for text in special if len(text) > 1)})")

    def __call__(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        start = 0
        for match in (self._every if special else self._ordinary).finditer(text):
            ids += self._words(text[start : match.start()], special)
            ids.append(self._added[match[0]])
            start = match.end()
        return ids + self._words(text[start:], special)

    def _words(self, text: str, special: bool) -> list[int]:
        """The processor finds user-defined pieces by itself: a special one is cut behind its first letter."""
        cuts = [] if special else [match.start() + 1 for match in self._spelt.finditer(text)]
        bounds = [0, *cuts, len(text)]
        parts = [text[a:b] for a, b in pairwise(bounds) if a < b]
        return [id for part in parts for id in self._processor.encode(part)]


def _any_of(texts: Iterable[str]) -> str:
    """A pattern that takes the longest of `texts` that begins at a place; of none, it matches nowhere."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


# ModelProto.normalizer_spec {add_dummy_prefix: false, remove_extra_whitespaces: false}. In a protocol buffer
# the last word on a field counts, so that these may simply stand behind the model.
_SPACES_AS_WRITTEN = b"\x1a\x04\x18\x00\x20\x00"


def _processor(path: Path) -> sentencepiece.SentencePieceProcessor:
    model = path.read_bytes()
    try:
        whole = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        if whole is None or whole.get_piece_size() == 0:
            raise RuntimeError("no pieces in it")
        return sentencepiece.SentencePieceProcessor(model_proto=model + _SPACES_AS_WRITTEN)
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a sentencepiece model; copy it again from the model's folder"
        ) from error
