"""Reranking scores: how probable a reranker finds "yes" against "no" at the end of its own prompt.

The prompt is that of the Qwen3-Reranker model card; query and document are plain text in it, whatever they
contain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from oneroof.engine.pooling import check_numbers
from oneroof.engine.request import Vector
from oneroof.errors import UserError
from oneroof.text.tokenizer import Tokenizer

TASK = "Given a web search query, retrieve relevant passages that answer the query"

_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the"
    ' Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
_TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def judged(
    tokenizer: Tokenizer, query: str, documents: Sequence[str], instruction: str
) -> tuple[tuple[int, int], list[tuple[int, ...]]]:
    """The tokens of "no" and "yes", and a prompt for each document that one of them answers.

    UserError where the tokenizer lacks the prompt's words.
    """
    lacking = [mark for mark in _MARKS if mark not in tokenizer.added]
    if lacking:
        raise UserError(
            f"this tokenizer has no {lacking[0]}; rerankers need {', '.join(_MARKS)}; use one of them"
        )
    head, tail = tokenizer.encode(_HEAD, special=True), tokenizer.encode(_TAIL, special=True)
    ask = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: "
    prompts = [(*head, *tokenizer.encode(ask + document), *tail) for document in documents]
    return (_word(tokenizer, "no"), _word(tokenizer, "yes")), prompts


def probability(vector: Vector) -> float:
    """How probable "yes" is against "no"; UserError where the reading failed or gave no numbers."""
    no, yes = check_numbers(vector)
    return 1.0 / (1.0 + math.exp(min(no - yes, 700.0)))  # e^700 is near the end of float64


def _word(tokenizer: Tokenizer, word: str) -> int:
    ids = tokenizer.encode(word)
    if len(ids) != 1:
        raise UserError(
            f"this tokenizer makes {len(ids)} tokens of {word!r}; one is allowed; use a reranker checkpoint"
        )
    return ids[0]
