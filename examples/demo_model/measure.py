"""What the card states of a trained model: bits per byte of unseen text, and how many written words exist.

Letters: R rows, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from examples.demo_model.windows import Ids
from oneroof import LLM
from oneroof.batch import pack
from oneroof.engine.request import Output, defaults
from oneroof.load import Loaded
from oneroof.models.decoder import Decoder

WINDOW, STRIDE = 512, 256  # tokens: each is judged with at least STRIDE before it, but for the first ones
WORD = re.compile(r"[a-z]+")
OPENINGS = (
    "Once upon a time",
    "The little girl",
    "It was a cold morning, and",
    "When the door opened,",
    '"Where have you been?" said',
    "The old man looked at the sea",
    "In the evening they all sat",
    "There was a garden behind the house",
    "She had never seen",
    "He took the letter from the table",
    "After breakfast the children",
    "The road went through the wood",
    "I do not know",
    "Far away in the north",
    "My dear friend,",
    "One day the King",
)


@torch.no_grad()
def nats(decoder: Decoder, stream: Ids) -> float:
    """Summed cross entropy of all ids but the first."""
    total = 0.0
    for start in range(0, len(stream) - 1, STRIDE):
        judged = len(stream[start + 1 : start + STRIDE + 1])
        window = stream[max(0, start + STRIDE - WINDOW) : start + judged + 1].tolist()
        logits_RV = decoder.logits(decoder(pack([window[:-1]]))[-judged:])
        total += float(F.cross_entropy(logits_RV, torch.tensor(window[-judged:]), reduction="sum"))
    return total


def bits_per_byte(decoder: Decoder, stream: Ids, texts: Iterable[str]) -> float:
    """Bits of the whole `stream`, which is `texts` in ids, over the bytes of `texts` in UTF-8."""
    return nats(decoder, stream) / math.log(2) / sum(len(text.encode()) for text in texts)


def words(text: str) -> list[str]:
    """Runs of a to z, after lower-casing."""
    return WORD.findall(text.lower())


def share(written: Sequence[str], known: Iterable[str]) -> float:
    """How many of `written`, repeats counted, are in `known`."""
    there = set(known)
    return sum(word in there for word in written) / max(1, len(written))


def written(loaded: Loaded, tokens: int, seed: int) -> list[Output]:
    """`tokens` tokens of text after each of the openings, at the folder's own sampling."""
    with LLM(loaded, seed=seed, max_batch=len(OPENINGS)) as llm:
        return llm.generate(list(OPENINGS), defaults(loaded.generation, max_tokens=tokens))


def whole_words(output: Output) -> list[str]:
    """The words of an output, without the last where the end of the budget may have cut it."""
    found = words(output.text)
    return found[:-1] if output.finish_reason == "length" else found
