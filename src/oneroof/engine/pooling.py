"""Embeddings: a text's vector is the final hidden state of its last token, brought to length 1.

What the folder says of itself is followed: pooling and prompts in the layout of sentence-transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from oneroof.engine.request import Vector
from oneroof.errors import UserError
from oneroof.jsonfile import read_object


@dataclass(frozen=True)
class Pooling:
    """How a folder makes vectors of texts."""

    prompts: Mapping[str, str]  # name -> what stands before a text

    def prefix(self, instruction: str | None, prompt: str | None) -> str:
        """What stands before a text: the prompt of that name, or the query prompt with another task in it."""
        if instruction is not None and prompt is not None:
            raise UserError(
                "both an instruction and a prompt were given; one of them is allowed; leave one out"
            )
        if prompt is not None:
            if prompt not in self.prompts:
                known = ", ".join(sorted(self.prompts)) or "none"
                raise UserError(f"prompt {prompt!r} is unknown; this model's are: {known}; leave it out")
            return self.prompts[prompt]
        if instruction is None:
            return ""
        _, mark, tail = self.prompts.get("query", "Instruct: \nQuery:").partition("\n")
        return f"Instruct: {instruction}{mark}{tail}"


def read_pooling(folder: Path) -> Pooling:
    """The folder's pooling; UserError for a kind that is not the last token's."""
    kinds = read_object(folder / "1_Pooling" / "config.json")
    wrong = [
        k
        for k, v in kinds.items()
        if k.startswith("pooling_mode_") and v is True and k != "pooling_mode_lasttoken"
    ]
    if wrong or kinds.get("pooling_mode", "lasttoken") != "lasttoken":
        raise UserError(
            f"{folder} pools by {wrong or kinds['pooling_mode']}; only lasttoken is allowed; check 1_Pooling"
        )
    prompts = read_object(folder / "config_sentence_transformers.json").get("prompts", {})
    named = {str(k): str(v) for k, v in prompts.items()} if isinstance(prompts, dict) else {}
    return Pooling(prompts=named)


def unit(vector: Vector) -> list[float]:
    """The state that `vector` brought, at length 1. UserError where it failed or is not of numbers."""
    values = torch.tensor(check_numbers(vector))
    made: list[float] = F.normalize(values, dim=0).tolist()
    return made


def check_numbers(vector: Vector) -> tuple[float, ...]:
    """Its values; UserError where it failed, or where the weights are damaged or the dtype too narrow."""
    if vector.error is not None:
        raise UserError(f"text {vector.index} could not be read: {vector.error}; the others could; try again")
    if not all(map(math.isfinite, vector.values)):
        raise UserError(
            "the model gave results that are not numbers; finite ones are allowed; try dtype float32"
        )
    return vector.values
