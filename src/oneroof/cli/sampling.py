"""The sampling options of commands that write text: flags with the names of `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from oneroof.cli.options import as_flags
from oneroof.engine.request import SamplingParams, defaults


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. Auto takes what the model's generation_config.json says, else leaves it off."""

    max_tokens: int = 128
    """Tokens to write at most."""

    temperature: float | Literal["auto"] = "auto"
    """How freely to draw: 0 takes the likeliest token always, 1 is the model's own distribution."""

    top_p: float | Literal["auto"] = "auto"
    """Draw among the fewest tokens that hold this share of the probability."""

    top_k: int | Literal["auto"] = "auto"
    """Draw among this many tokens; 0 is all."""

    min_p: float | Literal["auto"] = "auto"
    """Leave out tokens less likely than this share of the likeliest."""

    repetition_penalty: float | Literal["auto"] = "auto"
    """Above 1, tokens that occur in prompt or text become less likely."""

    presence_penalty: float | Literal["auto"] = "auto"
    """Above 0, tokens that occur in the text become less likely."""

    frequency_penalty: float | Literal["auto"] = "auto"
    """Above 0, tokens become less likely with each time they occur in the text."""

    stop: tuple[str, ...] = ()
    """End the text before this string."""

    stop_token_ids: tuple[int, ...] = ()
    """End the text at this token."""

    ignore_eos: bool = False
    """Write on past the model's own end."""

    def params(self, generation: Mapping[str, object]) -> SamplingParams:
        """These options over the recommendations in `generation`; UserError for values that cannot be."""
        names = [field.name for field in fields(SamplingOptions)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) != "auto"}
        recommended = defaults(generation)
        with as_flags(given):
            return replace(recommended, **given)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(SamplingOptions):
    """What is told of each prompt. Besides the text."""

    logprobs: int | None = None
    """Report log-probabilities of the chosen token and of so many likeliest."""

    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""

    n: int = 1
    """Texts a prompt."""

    def params(self, generation: Mapping[str, object]) -> SamplingParams:
        """As the sampling options say, with these."""
        chosen = super().params(generation)
        given = {"logprobs": self.logprobs, "prompt_logprobs": self.prompt_logprobs, "n": self.n}
        with as_flags(given):
            return replace(chosen, **given)  # type: ignore[arg-type]  # it checks the types itself
