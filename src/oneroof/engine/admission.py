"""The gate: a prompt and its parameters become a `Request`, or one line says why not before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oneroof.config import ModelConfig
from oneroof.engine.request import Request, SamplingParams
from oneroof.errors import UserError

_LENGTH_AWARE = ("dynamic", "ntk-by-doubling")  # ropes that stretch themselves past the trained length


def admit(
    index: int,
    prompt: str | None,
    token_ids: Sequence[int],
    params: SamplingParams,
    *,
    config: ModelConfig,
    context: int,
    ends: frozenset[int],
    seed: int,
    namespace: str = "",
) -> Request:
    """Request `index`. `prompt` is the text of `token_ids`, if any.

    `ends` are the tokens that end its text; `seed` serves where `params` has none. Raises UserError for an
    empty prompt, one that fills the `context` (tokens), ids outside the vocabulary, and adapters: there are
    none yet.
    """
    named = f"prompt {index}"
    if not token_ids:
        raise UserError(f"{named} has no tokens; at least 1 is allowed; write something")
    if len(token_ids) >= context:
        raise UserError(
            f"{named} has {len(token_ids)} tokens; at most {context - 1} are allowed, for one more must "
            f"fit into the context of {context}; cut the prompt"
        )
    check_ids(f"{named} has token", token_ids, config.vocabulary, "use this model's own tokenizer")
    check_ids("stop_token_ids has", params.stop_token_ids, config.vocabulary, "leave it out")
    if params.adapter is not None:
        raise UserError(f"adapter {params.adapter!r} was asked; none is loaded; leave it out")
    left = context - len(token_ids)
    return Request(
        index=index,
        prompt=prompt,
        token_ids=tuple(token_ids),
        params=params,
        ends=frozenset() if params.ignore_eos else ends,
        seed=seed if params.seed is None else params.seed,
        limit=left if params.max_tokens is None else min(left, params.max_tokens),
        namespace=namespace,
    )


def context_of(config: ModelConfig, asked: int | None) -> int:
    """Tokens that prompt and text may have together: `asked`, or the model's own limit.

    Raises UserError for more than the model's limit, unless its rope stretches itself.
    """
    if asked is None:
        return config.max_positions
    stretches = config.rope.kind in _LENGTH_AWARE
    if asked < 2 or (asked > config.max_positions and not stretches):
        most = "" if stretches else f" to {config.max_positions}"
        raise UserError(
            f"max_model_len {asked} was asked; 2{most or ' and more'} is allowed; leave it out for all"
        )
    return asked


def end_tokens(config: ModelConfig, generation: Mapping[str, object]) -> frozenset[int]:
    """The tokens that end a text: those of `config.json` and of `generation_config.json`."""
    more = generation.get("eos_token_id")  # one or several, by transformers' rules
    listed = more if isinstance(more, list) else [more]
    return frozenset(config.eos) | {t for t in listed if isinstance(t, int)}


def check_ids(found: str, ids: Sequence[int], vocabulary: int, hint: str) -> None:
    """UserError for the first of `ids` that is no token; it begins with `found`."""
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocabulary:
        return  # the usual case, in less than half the time
    for token in ids:
        if not isinstance(token, int) or not 0 <= token < vocabulary:
            raise UserError(f"{found} {token!r}; whole numbers 0 to {vocabulary - 1} are allowed; {hint}")
