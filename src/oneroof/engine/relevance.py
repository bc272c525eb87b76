"""Reranking scores: how probable a reranker finds "yes" against "no" at the end of its own prompt.

The prompt is that of the Qwen3-Reranker model card; query and document are plain text in it, whatever they
contain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from oneroof.engine.pooling import check_numbers, groups, last_states
from oneroof.errors import UserError
from oneroof.load import Loaded, check_tokens
from oneroof.text.tokenizer import Tokenizer

TASK = "Given a web search query, retrieve relevant passages that answer the query"

_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the"
    ' Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
_TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@torch.inference_mode()
def score(loaded: Loaded, query: str, documents: Sequence[str], *, instruction: str = TASK) -> list[float]:
    """A probability for each document, in order. UserError where the tokenizer lacks the prompt's words."""
    tokenizer = loaded.text()
    lacking = [mark for mark in _MARKS if mark not in tokenizer.added]
    if lacking:
        raise UserError(
            f"this tokenizer has no {lacking[0]}; rerankers need {', '.join(_MARKS)}; use one of them"
        )
    no, yes = _word(tokenizer, "no"), _word(tokenizer, "yes")
    head, tail = tokenizer.encode(_HEAD, special=True), tokenizer.encode(_TAIL, special=True)
    ask = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: "
    sequences = [[*head, *tokenizer.encode(ask + document), *tail] for document in documents]
    check_tokens(sequences, loaded.config)
    found: list[float] = []
    for group in groups(sequences):
        logits = loaded.model.logits(last_states(loaded, group))
        found += logits[:, [no, yes]].softmax(-1)[:, 1].tolist()
    check_numbers(torch.tensor(found))
    return found


def _word(tokenizer: Tokenizer, word: str) -> int:
    ids = tokenizer.encode(word)
    if len(ids) != 1:
        raise UserError(
            f"this tokenizer makes {len(ids)} tokens of {word!r}; one is allowed; use a reranker checkpoint"
        )
    return ids[0]
