"""oneroof itself: `LLM` with weights of the asked form, timed as `bench model` times it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = {"oneroof": "oneroof", "torch": "torch"}


def refusal(facts: dict[str, Any], precision: str) -> str:
    """Nothing is known beforehand."""
    return ""


class Writer:
    """An `LLM` in memory."""

    def __init__(self, folder: Path, precision: str, threads: int, batch: int, positions: int) -> None:
        import torch

        from oneroof.engine.llm import LLM

        torch.set_num_threads(threads)
        plain = precision in ("float32", "bfloat16", "float16")
        self._llm = LLM(
            folder,
            device="cpu",
            dtype=precision if plain else "auto",
            quantization=None if plain else precision,
            max_batch=batch,
            max_model_len=positions,
        )

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of a later token."""
        from oneroof.bench.measure import measure

        made = measure(self._llm, prompts, tokens, counted=False)
        assert made.step is not None, "its texts were never written all at once"
        return made.prefill, made.step
