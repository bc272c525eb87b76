"""Log-probabilities as OpenAI's two dialects and vLLM's further field write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from oneroof.engine.request import Completion, Logprob
from oneroof.load import Front

_LEAST = -9999.0  # stands for minus infinity, which JSON lacks
_BROKEN = "\ufffd"

Entries = Sequence[Mapping[int, Logprob] | None]


def chat_logprobs(front: Front, completion: Completion, likeliest: int) -> dict[str, object] | None:
    """`logprobs` of a chat's choice; so many of the `likeliest` are told at each place."""
    if completion.logprobs is None:
        return None
    content = []
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=False):
        ordered = sorted(entry.items(), key=lambda one: -one[1].logprob)[:likeliest]
        tops = [_told(front, other, one) for other, one in ordered]
        content.append(_told(front, token, entry[token]) | {"top_logprobs": tops})
    return {"content": content, "refusal": None}


def text_logprobs(front: Front, ids: Sequence[int], entries: Entries, *, prompt: int) -> dict[str, object]:
    """`logprobs` of a completion's choice. The first `prompt` of its tokens are a prompt's.

    There special tokens are part of the text; the first has no log-probability. Offsets are those in the
    choice's text.
    """
    tokens, shares, tops = [], [], []
    for token, entry in zip(ids, entries, strict=True):
        tokens.append(_spelled(front, token))
        shares.append(None if entry is None else _number(entry[token].logprob))
        tops.append(None if entry is None else _by_text(front, entry))
    return {
        "tokens": tokens,
        "token_logprobs": shares,
        "top_logprobs": tops,
        "text_offset": _offsets(front, ids[:prompt], ids[prompt:]),
    }


def _offsets(front: Front, prompt: Sequence[int], written: Sequence[int]) -> list[int]:
    offsets, offset = [], 0
    for part, skipped in ((prompt, False), (written, True)):
        stream = None if front.tokenizer is None else front.tokenizer.stream(skip_special=skipped)
        for token in part:
            offsets.append(offset)
            offset += 0 if stream is None else len(stream.push((token,)))
        offset += 0 if stream is None else len(stream.finish())
    return offsets


def prompt_entries(entries: Entries | None) -> list[dict[str, object] | None] | None:
    """vLLM's `prompt_logprobs`: one object a token, by id; none for the first."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token): {"logprob": _number(one.logprob), "rank": one.rank, "decoded_token": one.text}
            for token, one in entry.items()
        }
        for entry in entries
    ]


def _told(front: Front, token: int, one: Logprob) -> dict[str, object]:
    spelled = b"" if front.tokenizer is None else front.tokenizer.token_bytes(token)
    return {"token": one.text, "logprob": _number(one.logprob), "bytes": list(spelled)}


def _by_text(front: Front, entry: Mapping[int, Logprob]) -> dict[str, float]:
    """Of two tokens that are spelt alike, the likelier."""
    made: dict[str, float] = {}
    for token, one in entry.items():
        text, share = _spelled(front, token), _number(one.logprob)
        made[text] = max(share, made.get(text, share))
    return made


def _spelled(front: Front, token: int) -> str:
    """A token's text, or its bytes where those are no whole characters."""
    text = front.spelled(token)
    if _BROKEN not in text or front.tokenizer is None:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in front.tokenizer.token_bytes(token))


def _number(value: float) -> float:
    return value if math.isfinite(value) else _LEAST
