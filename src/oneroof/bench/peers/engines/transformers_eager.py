"""transformers: its own modules, one call a step, with a cache and experts as grouped products.

It is a peer here, in a process of its own; what judges the families is in the tests.
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

PACKAGES = {"transformers": "transformers", "torch": "torch"}


def refusal(facts: dict[str, Any], precision: str) -> str:
    """Nothing is known beforehand."""
    return ""


class Writer:
    """A model in memory."""

    def __init__(self, folder: Path, precision: str, threads: int, batch: int, positions: int) -> None:
        self._torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
        self._torch.set_num_threads(threads)
        more = {"experts_implementation": "grouped_mm"} if "moe" in _kind(folder) else {}
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(self._torch, precision), **more
        ).eval()

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of a later token."""
        torch = self._torch
        with torch.inference_mode():
            began = time.perf_counter()
            made = self._model(input_ids=torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            chosen = made.logits[:, -1].argmax(-1, keepdim=True)
            first = time.perf_counter()
            for _ in range(tokens - 1):
                made = self._model(input_ids=chosen, past_key_values=made.past_key_values, use_cache=True)
                chosen = made.logits[:, -1].argmax(-1, keepdim=True)
            ended = time.perf_counter()
        return first - began, (ended - first) / max(tokens - 1, 1)


def _kind(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
