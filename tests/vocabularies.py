"""Tiny tokenizers on disk, in each form that a checkpoint folder may carry; built from a text of a few lines.

The byte-level forms (`tokenizer.json`, `vocab.json` + `merges.txt`, `qwen.tiktoken`) hold one and the same
vocabulary, so that they can be compared with each other. Made without the package under test.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import sentencepiece

_TEXT = (
    "the quick brown fox jumps over the lazy dog and then the other thing that one thought was there. "
    "yes yes yes yes no no no no yes or no; in the beginning there was a king, and the king sang. "
    "\nyes\nno\nyes\nno\nyes\nno\nyes\nno\nyes\nno "
    "你好世界 你好 世界 你好你好 人之初 性本善 天地玄黄 宇宙洪荒 "
)
_MERGES = 64
END = {"add_eos_token": True, "eos_token": "<|endoftext|>"}  # as gte-Qwen2
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
ENDOFTEXT, IM_START, IM_END = 256 + _MERGES, 257 + _MERGES, 258 + _MERGES  # ids in the byte-level forms
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
ERNIE_CHAT = (
    "{{ '<|begin_of_sentence|>' }}{%- for m in messages %}"
    "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + '<|end_of_sentence|>' }}"
    "{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def write_json(folder: Path, *, appended: bool = False) -> None:
    """`tokenizer.json` and `tokenizer_config.json`; `appended`: its post-processor adds the end-of-text."""
    tokens, merges = _bpe()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    added: list[dict[str, object]] = [
        {"id": i, "content": text, "special": special, **_FLAGS}
        for i, (text, special) in enumerate(_added(), start=len(tokens))
    ]
    ranks, pairs = _spelled(tokens, merges)
    plain = {
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {"type": "Sequence", "processors": [level, _append_end()]} if appended else level,
        "decoder": level,
        "model": {"type": "BPE", **plain, "vocab": ranks, "merges": pairs},
    }
    _dump(folder / "tokenizer.json", document)
    _dump(folder / "tokenizer_config.json", _qwen_config())


def write_vocab(folder: Path, *, add_eos: bool = False) -> None:
    """`vocab.json` + `merges.txt` + `tokenizer_config.json`, as the slow Qwen2 tokenizer keeps them."""
    vocabulary, merges = _spelled(*_bpe())
    _dump(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _dump(folder / "tokenizer_config.json", _qwen_config() | (END if add_eos else {}))


def write_tiktoken(folder: Path) -> None:
    """`qwen.tiktoken` and Qwen-1's `tokenizer_config.json`, which names remote code that is not there."""
    tokens, _ = _bpe()
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    auto = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    _dump(
        folder / "tokenizer_config.json",
        {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer", "auto_map": auto},
    )


def write_sentencepiece(folder: Path) -> None:
    """`tokenizer.model` (byte fallback, as ERNIE's), `tokenizer_config.json`, `special_tokens_map.json`."""
    (folder / "tokenizer.model").write_bytes(_sentencepiece())
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    names |= {
        "cls_token": "<|begin_of_sentence|>",
        "sep_token": "<|end_of_sentence|>",
        "mask_token": "<mask:1>",
    }
    _dump(folder / "special_tokens_map.json", names)
    _dump(
        folder / "tokenizer_config.json",
        {
            **names,
            "tokenizer_class": "Ernie4_5_Tokenizer",
            "model_max_length": 4096,
            "chat_template": ERNIE_CHAT,
        },
    )


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _added() -> list[tuple[str, bool]]:
    return [(text, True) for text in SPECIALS] + [(text, False) for text in _ADDED]


def _qwen_config() -> dict[str, object]:
    added = {str(ENDOFTEXT + i): {"content": t, "special": s, **_FLAGS} for i, (t, s) in enumerate(_added())}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIALS[1:]),
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _append_end() -> dict[str, object]:
    end = {"SpecialToken": {"id": SPECIALS[0], "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    known = {SPECIALS[0]: {"id": SPECIALS[0], "ids": [ENDOFTEXT], "tokens": [SPECIALS[0]]}}
    return {
        "type": "TemplateProcessing",
        "single": [first, end],
        "pair": [first, end, second, end],
        "special_tokens": known,
    }


def _spelled(
    tokens: list[bytes], merges: list[tuple[bytes, bytes]]
) -> tuple[dict[str, int], list[list[str]]]:
    letters = _byte_letters()
    words = ["".join(letters[b] for b in token) for token in tokens]
    spell = dict(zip(tokens, words, strict=True))
    ranks = {word: rank for rank, word in enumerate(words)}
    return ranks, [[spell[left], spell[right]] for left, right in merges]


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


@cache
def _bpe() -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """256 bytes in GPT-2's order, then the merges that plain byte-pair encoding finds in the text."""
    words = Counter(re.findall(r" ?\w+| ?[^\w\s]+", _TEXT))
    pieces = {word: [bytes([b]) for b in word.encode()] for word in words}
    tokens = [bytes([b]) for b in _byte_letters()]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < _MERGES:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:], strict=False):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        tokens.append(best[0] + best[1])
        for word in words:
            pieces[word] = _merged(pieces[word], best)
    return tokens, merges


def _merged(pieces: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


@cache
def _sentencepiece() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([_TEXT] * 4),
        model_writer=model,
        vocab_size=340,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        normalization_rule_name="identity",
        user_defined_symbols=["<mask:1>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "\n"],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _dump(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
