"""Log-probabilities of chosen and likeliest tokens in the model's own distribution, before any setting.

Letters: R rows, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from oneroof.engine.request import Logprob

_CHUNK = 1 << 24  # logits held at once while a prompt is read: 64 MB of float32


def logprobs(
    logits: Tensor, tokens: Tensor, tops: Sequence[int], text: Callable[[int], str]
) -> list[dict[int, Logprob]]:
    """One mapping a row of `logits` [R, V] float32: its token first, then the ``tops[r]`` likeliest.

    `tokens` are [R] int64 and `text` gives the text of one. A negative token (none could be chosen) gives an
    empty mapping.
    """
    norm = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(1, tokens.clamp(min=0)[:, None])
    ranks = (logits > chosen).sum(-1) + 1
    values, ids = logits.topk(min(max(tops), logits.shape[1]), dim=-1)
    chosen_shares, shares, likeliest = (chosen - norm)[:, 0].tolist(), (values - norm).tolist(), ids.tolist()
    result: list[dict[int, Logprob]] = []
    for row, (token, rank) in enumerate(zip(tokens.tolist(), ranks.tolist(), strict=True)):
        entry: dict[int, Logprob] = {}
        if token >= 0:
            entry[token] = Logprob(chosen_shares[row], rank, text(token))
            for place, other in enumerate(likeliest[row][: tops[row]]):
                entry.setdefault(other, Logprob(shares[row][place], place + 1, text(other)))
        result.append(entry)
    return result


def prompt_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    following: Sequence[int],
    top: int,
    text: Callable[[int], str],
    *,
    vocabulary: int,
) -> list[dict[int, Logprob]]:
    """How likely each token of a prompt was after those before it.

    `following` are the R tokens that stand after the rows of `hidden` [R, D]; `head` makes logits of some of
    the rows at a time, never of all of a long prompt.
    """
    result: list[dict[int, Logprob]] = []
    tokens = torch.tensor(following, dtype=torch.int64, device=hidden.device)
    for rows in chunks(len(tokens), vocabulary):
        wanted = tokens[rows.start : rows.stop]
        logits = head(hidden[rows.start : rows.stop])
        result += logprobs(logits, wanted, [top] * len(wanted), text)
    return result


def chunks(count: int, vocabulary: int) -> list[range]:
    """Which of `count` rows `prompt_logprobs` makes logits of at a time."""
    step = max(1, _CHUNK // vocabulary)
    return [range(begin, min(begin + step, count)) for begin in range(0, count, step)]
