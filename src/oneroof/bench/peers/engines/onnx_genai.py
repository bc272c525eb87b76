"""ONNX Runtime GenAI: built by its model builder, written step by step with its `Generator`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = {
    "onnxruntime-genai": "onnxruntime_genai",
    "onnx": "onnx",
    "onnx-ir": "onnx_ir",
    "transformers": "transformers",
    "torch": "torch",
}


def refusal(facts: dict[str, Any], precision: str) -> str:
    """Nothing is known beforehand: the builder says it."""
    return ""


def convert(folder: Path, target: Path, precision: str) -> None:
    """By its builder, for the CPU."""
    cache = target.with_suffix(".cache")
    words = ["-i", str(folder), "-o", str(target), "-p", precision, "-e", "cpu", "-c", str(cache)]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", *words]
    ran = subprocess.run(builder, capture_output=True, text=True)
    sys.stderr.write(ran.stdout + ran.stderr)
    if ran.returncode:
        raise RuntimeError(f"its builder says: {ran.stderr.strip().splitlines()[-1]}")


class Writer:
    """A model in memory."""

    def __init__(self, folder: Path, precision: str, threads: int, batch: int, positions: int) -> None:
        self._library = importlib.import_module("onnxruntime_genai")
        config = self._library.Config(str(folder))
        options = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._model = self._library.Model(config)

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of a later token."""
        numpy = importlib.import_module("numpy")
        params = self._library.GeneratorParams(self._model)
        length = len(prompts[0]) + tokens
        params.set_search_options(
            batch_size=len(prompts), max_length=length, min_length=length, do_sample=False
        )
        generator = self._library.Generator(self._model, params)
        began = time.perf_counter()
        generator.append_tokens(numpy.array(prompts, dtype=numpy.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(tokens - 1):
            generator.generate_next_token()
        ended = time.perf_counter()
        return first - began, (ended - first) / max(tokens - 1, 1)
