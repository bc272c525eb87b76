"""Text to token ids and back, whichever of the four file formats a checkpoint folder carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oneroof.errors import UserError
from oneroof.text.declared import Declared, read_declared
from oneroof.text.stream import TextStream
from oneroof.text.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer. Safe to use from several threads at once.

    A token is *special* where the checkpoint flags it so (`<|im_end|>`). Other added tokens (`<think>`,
    `<tool_call>` and the fill-in-the-middle marks of most checkpoints) are ordinary words of the vocabulary:
    wherever a text spells them they become their one id, and decoding never skips them.
    """

    vocabulary: Vocabulary
    eos: int | None  # the end of text that the folder names
    special: Mapping[str, int]  # text -> id

    @property
    def size(self) -> int:
        """One past the highest id, added tokens included."""
        return self.vocabulary.size

    @property
    def added(self) -> Mapping[str, int]:
        """Every added token, special or not: text -> id."""
        return self.vocabulary.added

    @property
    def prepended(self) -> tuple[int, ...]:
        """Ids that the tokenizer's own post-processor puts before a text. `encode` does not add them."""
        return self.vocabulary.prepended

    @property
    def appended(self) -> tuple[int, ...]:
        """Ids that the tokenizer's own post-processor puts after a text. `encode` does not add them."""
        return self.vocabulary.appended

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`; lone surrogates count as U+FFFD.

        `special`: special tokens spelt in the text become their ids, as transformers does by default;
        otherwise they are plain text, as anything that a user wrote should be.
        """
        return self.vocabulary.encode(_without_surrogates(text), special)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`. Ids without a token leave nothing; bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream(skip_special=skip_special)
        return stream.push(ids) + stream.finish()

    def stream(self, *, skip_special: bool = True) -> TextStream:
        """A decoder for one sequence that arrives piece by piece."""
        skipped = frozenset(self.special.values()) if skip_special else frozenset()
        return TextStream(self.token_bytes, skipped, leading_space=self.vocabulary.leading_space)

    def token_bytes(self, id: int) -> bytes:
        """The bytes of token `id`, often not whole characters; empty where there is no such token."""
        return self.vocabulary.bytes_of(id) if 0 <= id < self.size else b""


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Read is the first of these: `tokenizer.json`, `vocab.json` with `merges.txt`, a `*.tiktoken` rank file, a
    sentencepiece `tokenizer.model`. Raises `UserError` where there is none or it is broken.
    """
    folder = Path(folder)
    declared = read_declared(folder)
    vocabulary = _reader(folder)(folder, declared)
    eos = declared.roles.get("eos_token", vocabulary.eos)
    return Tokenizer(vocabulary, None if eos is None else vocabulary.added.get(eos), vocabulary.special)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer in any of those forms."""
    single = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")
    return any((folder / name).exists() for name in single) or any(folder.glob("*.tiktoken"))


def _reader(folder: Path) -> Callable[[Path, Declared], Vocabulary]:
    """The reader of the best format that `folder` has; the libraries of the others are not imported."""
    if (folder / "tokenizer.json").exists():
        from oneroof.text.huggingface import read_tokenizer_json

        return read_tokenizer_json
    if (folder / "vocab.json").exists() or (folder / "merges.txt").exists():
        from oneroof.text.huggingface import read_vocab_and_merges

        return read_vocab_and_merges
    if any(folder.glob("*.tiktoken")):
        from oneroof.text.ranks import read_ranks

        return read_ranks
    if (folder / "tokenizer.model").exists():
        from oneroof.text.pieces import read_pieces

        return read_pieces
    raise UserError(
        f"{folder} holds no tokenizer; tokenizer.json, vocab.json with merges.txt, a .tiktoken file or"
        " tokenizer.model would do; copy one from the model's own folder"
    )


def _without_surrogates(text: str) -> str:
    """JSON may smuggle in half a surrogate pair, which no encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
