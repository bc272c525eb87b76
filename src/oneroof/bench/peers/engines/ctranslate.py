"""CTranslate2: converted by its own converter; texts through `generate_batch`, timed by its callback."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

PACKAGES = {"ctranslate2": "ctranslate2", "transformers": "transformers", "torch": "torch"}


def refusal(facts: dict[str, Any], precision: str) -> str:
    """Models without a converter, and number types that the processor has no kernels for, in words."""
    loaders = importlib.import_module("ctranslate2.converters.transformers")._MODEL_LOADERS
    name = f"{type_name(str(facts.get('model_type')))}Config"
    if not any(known.lower() == name.lower() for known in loaders):
        return f"has no converter for {facts.get('model_type')}"
    types = importlib.import_module("ctranslate2").get_supported_compute_types("cpu")
    return "" if precision in types else f"computes no {precision} on this processor"


def type_name(kind: str) -> str:
    """``qwen3_moe`` as its config class begins."""
    return "".join(word.capitalize() for word in kind.split("_"))


def convert(folder: Path, target: Path, precision: str) -> None:
    """By `TransformersConverter`."""
    converters = importlib.import_module("ctranslate2.converters")
    converter = converters.TransformersConverter(str(folder), low_cpu_mem_usage=True)
    converter.convert(str(target), quantization=precision)


class Writer:
    """A generator in memory."""

    def __init__(self, folder: Path, precision: str, threads: int, batch: int, positions: int) -> None:
        library = importlib.import_module("ctranslate2")
        self._generator = library.Generator(
            str(folder), device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads
        )
        self._words: list[str] = json.loads((folder / "vocabulary.json").read_text("utf-8"))

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of a later token."""
        words = [[self._words[token] for token in prompt] for prompt in prompts]
        heard: list[float] = []

        def hear(step: Any) -> bool:
            heard.append(time.perf_counter())
            return False

        began = time.perf_counter()
        self._generator.generate_batch(
            words,
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=hear,
        )
        assert len(heard) == tokens * len(prompts), f"{len(heard)} tokens of {len(prompts)} texts"
        first = heard[len(prompts) - 1]
        return first - began, (heard[-1] - first) / max(tokens - 1, 1)
