"""What is common to bodies of requests: strict types, no field passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

_NOT_YET = "is not served in this version"
_SHOWN = 60  # characters of a name or value that a message shows

# Fields that change no text: accepted, for clients send them unasked.
WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)

# Fields that are served with these values alone, which ask for nothing.
ONLY: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "audio": (),
    "background": (False,),
    "bad_words": ([],),
    "best_of": (1,),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "priority": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "structured_outputs": ({},),
    "suffix": ("",),
    "thinking_budget": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}


class Part(BaseModel):
    """A part of a body: its types are strict and its fields all known."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Body(Part):
    """A request's body. A field that is null counts as one that is not there."""

    @model_validator(mode="before")
    @classmethod
    def without_nothing(cls, data: Any) -> Any:
        """`data` without fields that ask for nothing; the first that asks for what is not served is told."""
        if not isinstance(data, dict):
            raise PydanticCustomError(
                "body", "the body is no JSON object; an object is allowed", {"param": "body"}
            )
        kept = {}
        for name, value in data.items():
            if value is None or (name in WITHOUT_EFFECT and name not in cls.model_fields):
                continue
            if name not in cls.model_fields:
                _check_unserved(name, value)
                continue
            kept[name] = value
        return kept


def _check_unserved(name: str, value: object) -> None:
    shown = ascii(name)[1:-1][:_SHOWN]
    if name not in ONLY:
        line = f"{shown} is no field of this request; see /openapi.json for those that are; leave it out"
        raise PydanticCustomError("unknown", "{line}", {"line": line, "param": shown})
    if not any(value == one and type(value) is type(one) for one in ONLY[name]):
        words = " or ".join(repr(one) for one in ONLY[name])
        allowed = f"; {words} is allowed" if words else ""
        line = f"{shown} {_NOT_YET}{allowed}; leave it out"
        raise PydanticCustomError("unserved", "{line}", {"line": line, "param": shown})
