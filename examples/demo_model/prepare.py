"""Corpora to token streams: trains the tokenizer, writes the model's text files and an array of ids a corpus.

Run from the repository's root: ``python -m examples.demo_model.prepare --corpora FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from examples.demo_model import corpora

HERE = Path(__file__).parent
VOCABULARY = 6144  # ids, the added tokens included; 3.7 bytes of English and 3.1 of modern Chinese a token
SPECIAL = (corpora.END, corpora.START, corpora.STOP)
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
# The split of the Qwen tokenizers: contractions, words with a leading sign, digits, signs, line ends, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE of `size` ids, NFC first; the last ids are the special tokens and the marks, as Qwen3
    flags them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL) - len(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKS])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json`, and the `tokenizer_config.json` that carries the chat template."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL,
        }
        for token in (*SPECIAL, *MARKS)
    }
    facts = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": (HERE / "chat_template.jinja").read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": False,
        "eos_token": corpora.STOP,
        "errors": "replace",
        "model_max_length": json.loads((HERE / "config.json").read_text())["max_position_embeddings"],
        "pad_token": corpora.END,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def stream(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int16]:
    """The ids of all texts, each followed by the end of text."""
    end = tokenizer.token_to_id(corpora.END)
    return np.concatenate([np.array([*e.ids, end], dtype=np.int16) for e in tokenizer.encode_batch(texts)])


def main() -> None:
    """Parse the options and do the work of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--corpora", type=Path, default=Path("../shared/data/corpora"), help="folder of .jsonl corpora"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="folder for all that is made"
    )
    options = parser.parse_args()
    books, modern, classics = (corpora.documents(options.corpora, name) for name in corpora.TRAIN)
    model = options.work / "model"
    model.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([*books, *modern[::2], *classics[::8]])  # English weighs most
    write_tokenizer(tokenizer, model)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(HERE / name, model / name)
    streams = {
        "books": books,
        "modern": modern,
        "classics": classics,
        "chat": corpora.conversations(books, seed=0),
        "valid": corpora.documents(options.corpora, corpora.VALID),
    }
    for name, texts in streams.items():
        ids = stream(tokenizer, texts)
        np.save(options.work / f"{name}.npy", ids)
        bytes_a_token = sum(len(t.encode()) for t in texts) / len(ids)
        print(f"{name}: {len(texts)} texts, {len(ids)} tokens, {bytes_a_token:.2f} bytes a token")


if __name__ == "__main__":
    main()
