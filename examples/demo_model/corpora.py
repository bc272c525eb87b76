"""The texts that the demo model learns from: cleaned JSON lines, and conversations cut from them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

VALID = "en_books.valid"
TRAIN = ("en_books.train", "zh_d2l", "zh_classics")

END = "<|endoftext|>"
START, STOP = "<|im_start|>", "<|im_end|>"
NO_THOUGHT = "<think>\n\n</think>\n\n"


def documents(corpora: Path, name: str) -> list[str]:
    """The texts of one corpus, with lines ended by a single newline and no blanks before it."""
    with (corpora / f"{name}.jsonl").open(encoding="utf-8") as lines:
        texts = [str(json.loads(line)["text"]) for line in lines]
    return [re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n")).strip() for text in texts]


def conversations(books: list[str], seed: int) -> list[str]:
    """ChatML in which the user begins a passage and the assistant goes on: all that the template can be
    taught here.

    A turn is 1 to 3 paragraphs; every third answer has the empty thought that the template writes when asked
    not to think.
    """
    draw = random.Random(seed)
    made = []
    for book in books:
        paragraphs = [p for p in book.split("\n\n") if p]
        place = 0
        while place < len(paragraphs):
            turns = []
            for _ in range(draw.randint(1, 3)):
                asked = paragraphs[place : place + 1]
                answer = paragraphs[place + 1 : place + 1 + draw.randint(1, 3)]
                place += 1 + len(answer)
                if asked and answer:
                    thought = NO_THOUGHT if draw.random() < 1 / 3 else ""
                    turns.append(_turn("user", asked[0]) + _turn("assistant", thought + "\n\n".join(answer)))
            made += ["".join(turns)] if turns else []
    return made


def _turn(role: str, content: str) -> str:
    return f"{START}{role}\n{content}{STOP}\n"
