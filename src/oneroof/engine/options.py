"""The engine's options as plain data: how much memory, how many at once, how large a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from oneroof.engine.request import whole
from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine may use. GB are 10^9 bytes. Raises UserError for what cannot be."""

    kv_memory: float | None = None
    """GB for the cache of keys and values, of each rank; None: from free memory, as much as is of use."""
    kv: Literal["float", "kv8"] = "float"
    """How keys and values are kept: in the model's number format, or as int8 with scales."""
    page_size: int = 16
    """Positions in a page: small ones share prefixes finely, large ones make short tables."""
    max_model_len: int | None = None
    """Tokens of prompt and text together; None: the model's own limit, or what the cache holds."""
    max_batch: int = 8
    """Completions under way at most."""
    max_batch_tokens: int = 2048
    """Tokens of one step at most; longer prompts are read in chunks."""
    device_memory: float | None = None
    """GB of the device that may be used in all, weights included."""
    reserve_memory: float | None = None
    """GB of the device that are left free."""
    prefix_cache: bool = True
    """Keep what was read, for prompts that begin in the same way."""
    in_flight: int | None = None
    """Batches launched before the oldest is collected; None: 1 on a CPU, 2 elsewhere."""

    def __post_init__(self) -> None:
        whole("page_size", self.page_size, 1, None, "16, or 128 for long contexts")
        whole("max_batch", self.max_batch, 1, None, "leave it out for the usual number")
        whole("max_batch_tokens", self.max_batch_tokens, 1, None, "leave it out for the usual number")
        if self.kv not in ("float", "kv8"):
            raise UserError(f"kv is {self.kv!r}; float and kv8 are allowed; leave it out for the usual")
        if self.max_model_len is not None:
            whole("max_model_len", self.max_model_len, 2, None, "leave it out for all the model can")
        if self.in_flight is not None:
            whole("in_flight", self.in_flight, 1, None, "leave it out for the usual number")
        for name in ("kv_memory", "device_memory", "reserve_memory"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise UserError(f"{name} is {value!r}; a number of GB is allowed; leave it out for the usual")
        for name in ("kv_memory", "device_memory"):
            if getattr(self, name) == 0:
                raise UserError(f"{name} is 0; more than 0 GB is allowed; leave it out for the usual")
