"""Outputs as the records that `generate` prints and journals: plain JSON data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from oneroof.engine.request import Completion, Logprob, Output


def record(index: int, prompt: object, output: Output) -> dict[str, object]:
    """Prompt `index`, as it was given, and what it brought.

    `logprobs`, `prompt_logprobs` and `completions` (more than one) are there only where they were asked for,
    `error` only where there was one.
    """
    made: dict[str, object] = {"index": index, "prompt": prompt}
    made |= _text(output.completions[0])
    made["prompt_tokens"] = len(output.prompt_token_ids)
    if output.prompt_logprobs is not None:
        ids = output.prompt_token_ids
        made["prompt_logprobs"] = [p and _place(ids[i], p) for i, p in enumerate(output.prompt_logprobs)]
    if len(output.completions) > 1:
        made["completions"] = [_text(c) for c in output.completions]
    return made


def heading(made: Mapping[str, object], width: int = 60) -> str:
    """A record for a reader: a line with the prompt's number and beginning, then the text or texts."""
    prompt = made["prompt"]
    said = prompt if isinstance(prompt, str) else str(_last(prompt).get("content", ""))
    line = " ".join(said.split())
    short = line if len(line) <= width else line[: width - 1] + "…"
    several = made.get("completions")
    texts = [str(c["text"]) for c in several] if isinstance(several, list) else [str(made["text"])]
    return "\n".join([f"[{made['index']}] {short}", *texts])


def _last(turns: object) -> Mapping[str, object]:
    found = turns[-1] if isinstance(turns, list) and turns else {}
    return found if isinstance(found, Mapping) else {}


def _text(completion: Completion) -> dict[str, object]:
    made: dict[str, object] = {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "completion_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }
    if completion.error is not None:
        made["error"] = completion.error
    if completion.logprobs is not None:
        made["logprobs"] = _places(completion.token_ids, completion.logprobs)
    return made


def _places(ids: Sequence[int], places: Sequence[Mapping[int, Logprob]]) -> list[object]:
    return [_place(token, place) for token, place in zip(ids, places, strict=True)]


def _place(token: int, place: Mapping[int, Logprob]) -> dict[str, object]:
    """The token that stands there, and under `top` all that were reported, likeliest first."""
    ranked = sorted(place.items(), key=lambda item: item[1].rank)
    return _share(token, place[token]) | {"top": [_share(t, share) for t, share in ranked]}


def _share(token: int, share: Logprob) -> dict[str, object]:
    logprob = share.logprob if math.isfinite(share.logprob) else None  # JSON has no other numbers
    return {"token_id": token, "text": share.text, "logprob": logprob, "rank": share.rank}
