"""What a caller asks for and what comes back: sampling parameters, requests, pieces of text, outputs.

Plain data without torch. Everything a user can get wrong in a `SamplingParams` is refused when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from oneroof.errors import UserError

SEEDS = (-(2**63), 2**63 - 1)  # the least and the largest
_MOST_COMPLETIONS = 1024  # of one prompt
_GREEDY_BELOW = 1e-5  # colder than this, logits / temperature leaves float32


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop; the names are those of vLLM and OpenAI."""

    max_tokens: int | None = 16
    """Tokens to make at most; None: until the context is full."""
    temperature: float = 1.0
    """0 (and anything below 1e-5): always the most likely token."""
    top_p: float = 1.0
    """Draw among the fewest tokens that hold this share of the probability."""
    top_k: int = 0
    """Draw among this many tokens; 0 or -1: all."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the most likely one."""
    repetition_penalty: float = 1.0
    """Divides (if positive, else multiplies) the logit of a token that occurs in prompt or output."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of a token that occurs in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it occurs in the output."""
    seed: int | None = None
    """The same seed gives the same tokens in any batch, up to rounding where the native CPU kernels do not
    serve; None: always another."""
    stop: str | Sequence[str] = ()
    """Strings that end the text; they are not part of it."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the text, besides the model's own; their text is not part of it."""
    ignore_eos: bool = False
    """Write on past the model's own end tokens."""
    logprobs: int | None = None
    """Log-probabilities of the chosen token and of so many likeliest, from the model's unmodified logits."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    n: int = 1
    """Completions of one prompt."""
    adapter: str | None = None
    """The LoRA adapter to apply."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1, None, "leave it None to write until the context is full")
        _number("temperature", self.temperature, 0.0, None, "0 for the most likely token, 0.6 to 1.0 to vary")
        _number("top_p", self.top_p, 0.0, 1.0, "1.0 to switch it off", above=True)
        whole("top_k", self.top_k, -1, None, "0 to switch it off")
        _number("min_p", self.min_p, 0.0, 1.0, "0.0 to switch it off")
        _number("repetition_penalty", self.repetition_penalty, 0.0, None, "1.0 to switch it off", above=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0, "0.0 to switch it off")
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0.0 to switch it off")
        if self.seed is not None:
            whole("seed", self.seed, *SEEDS, "any number of 64 bits")
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                whole(name, value, 0, None, "None to switch it off")
        whole("n", self.n, 1, _MOST_COMPLETIONS, "1 for one completion")
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"ignore_eos is {self.ignore_eos!r}; True or False is allowed; try False")
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise UserError(f"adapter is {self.adapter!r}; a name or None is allowed; try None")

    @property
    def greedy(self) -> bool:
        """The most likely token is taken, and no noise is drawn."""
        return self.temperature < _GREEDY_BELOW

    @property
    def penalized(self) -> bool:
        """What was written before changes what is written next."""
        return bool(self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty)

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as the tuple it was made into."""
        return tuple(self.stop)


def defaults(generation: Mapping[str, object], *, max_tokens: int | None = 16) -> SamplingParams:
    """What a model's authors recommend: the sampling keys of `generation_config.json`.

    ``"do_sample": false`` means greedy. Raises `UserError` where the file holds what cannot be.
    """
    numbers: dict[str, float] = {}
    for name in (
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ):
        value = generation.get(name)
        if isinstance(value, (int, float)):
            numbers[name] = value
    if generation.get("do_sample") is False:
        numbers["temperature"] = 0.0
    top_k = generation.get("top_k")
    try:
        params = SamplingParams(max_tokens=max_tokens, top_k=top_k if isinstance(top_k, int) else 0)
        return replace(params, **numbers)  # type: ignore[arg-type]  # only float fields are named above
    except UserError as error:
        raise UserError(f"generation_config.json: {error}") from error


@dataclass(frozen=True)
class Logprob:
    """One token's share of the model's own distribution at one place."""

    logprob: float
    rank: int  # 1 = the likeliest
    text: str  # the token by itself


@dataclass(frozen=True)
class Completion:
    """One finished text. `finish_reason`: stop, length, or error."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None  # the stop string or stop token that ended it; None for the model's own end
    logprobs: (
        tuple[Mapping[int, Logprob], ...] | None
    )  # one a token: the chosen one first, then the likeliest
    error: str | None = None  # what went wrong, where that is the reason


@dataclass(frozen=True)
class Request:
    """One prompt under way. `index` is unique among those that run together; `seed` is decided."""

    index: int
    prompt: str | None  # the text it was given as, if any
    token_ids: tuple[int, ...]
    params: SamplingParams
    ends: frozenset[int]  # the model's own end tokens, unless they are to be ignored
    seed: int
    limit: int  # tokens to make at most: max_tokens, or less where the context ends first
    namespace: str = ""  # whose it is: what was read for one namespace is not shared with another


@dataclass(frozen=True)
class Reading:
    """One text that is read for what it means: its final hidden state, or how likely some words come next."""

    index: int
    token_ids: tuple[int, ...]
    words: tuple[int, ...] = ()  # tokens whose logits are wanted at the end; none: the hidden state is
    namespace: str = ""


@dataclass(frozen=True)
class Vector:
    """What a `Reading` brings: the final hidden state of its last token, or a logit for each of its words."""

    index: int
    values: tuple[float, ...]
    error: str | None = None  # what went wrong; then there are no values


@dataclass(frozen=True)
class Output:
    """Everything a request brought. `text`, `token_ids` and so on are those of the first completion."""

    index: int
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]  # `n` of them
    prompt_logprobs: tuple[Mapping[int, Logprob] | None, ...] | None  # one a prompt token; None for the first
    cached_tokens: int = field(default=0, compare=False)  # of the prompt, that had been read before

    @property
    def text(self) -> str:
        """The text that was written, without the prompt."""
        return self.completions[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that were made, an end token included."""
        return self.completions[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Why it ended: stop, length or error."""
        return self.completions[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string or stop token that ended it, if one did."""
        return self.completions[0].stop_reason

    @property
    def logprobs(self) -> tuple[Mapping[int, Logprob], ...] | None:
        """One mapping a token, where `SamplingParams.logprobs` asked for it."""
        return self.completions[0].logprobs


@dataclass(frozen=True)
class Piece:
    """What one step adds to one completion. `text` may be empty: half a character, or held back."""

    index: int  # of the request
    number: int  # of the completion, 0..n-1
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    output: Output | None  # with the last piece of a request's last completion


def _number(name: str, value: object, low: float, high: float | None, hint: str, above: bool = False) -> None:
    """`low` itself is refused where `above`."""
    span = f"{'above' if above else 'at least'} {low:g}" + ("" if high is None else f", at most {high:g}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; a number {span} is allowed; try {hint}")
    if value < low or (above and value == low) or (high is not None and value > high):
        raise UserError(f"{name} is {value}; a number {span} is allowed; try {hint}")


def whole(name: str, value: object, low: int, high: int | None, hint: str) -> None:
    """UserError unless option `name` is a whole number from `low` to `high` (None: without end)."""
    span = f"at least {low}" + ("" if high is None else f", at most {high}")
    wrong = isinstance(value, bool) or not isinstance(value, int) or value < low
    if wrong or (high is not None and isinstance(value, int) and value > high):
        raise UserError(f"{name} is {value!r}; a whole number {span} is allowed; try {hint}")


def _strings(name: str, value: object) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(s, str) and s for s in found):
        raise UserError(
            f"{name} is {value!r}; a string or a list of strings is allowed, none empty; try ['\\n']"
        )
    return tuple(found)


def _ids(name: str, value: object) -> tuple[int, ...]:
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    found: tuple[object, ...] = tuple(value) if listed else (value,)  # type: ignore[arg-type]
    ids = tuple(t for t in found if isinstance(t, int) and not isinstance(t, bool) and t >= 0)
    if not listed or len(ids) < len(found):
        raise UserError(f"{name} is {value!r}; a list of token ids is allowed; try [] for none")
    return ids
