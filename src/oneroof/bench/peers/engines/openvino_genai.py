"""OpenVINO GenAI: exported by optimum-intel, written by `LLMPipeline`, timed by its own metrics."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

PACKAGES = {
    "openvino-genai": "openvino_genai",
    "openvino": "openvino",
    "openvino-tokenizers": "openvino_tokenizers",
    "optimum-intel": "optimum.intel",
    "nncf": "nncf",
    "transformers": "transformers",
    "torch": "torch",
}
_BITS = {"int8": 8, "int4": 4}


def refusal(facts: dict[str, Any], precision: str) -> str:
    """Models that its exporter does not know."""
    importlib.import_module("optimum.exporters.openvino.model_configs")
    tasks = importlib.import_module("optimum.exporters.tasks").TasksManager
    kind = str(facts.get("model_type"))
    known = tasks._SUPPORTED_MODEL_TYPE.get(kind) or tasks._SUPPORTED_MODEL_TYPE.get(kind.replace("_", "-"))
    return "" if known and "openvino" in known else f"optimum-intel exports no {kind}"


def convert(folder: Path, target: Path, precision: str) -> None:
    """By optimum-intel, weights alone quantised."""
    intel = importlib.import_module("optimum.intel")
    more: dict[str, Any] = {"load_in_8bit": False}
    if precision in _BITS:
        more = {"quantization_config": intel.OVWeightQuantizationConfig(bits=_BITS[precision])}
    intel.OVModelForCausalLM.from_pretrained(folder, export=True, compile=False, **more).save_pretrained(
        target
    )


class Writer:
    """A pipeline in memory."""

    def __init__(self, folder: Path, precision: str, threads: int, batch: int, positions: int) -> None:
        self._library = importlib.import_module("openvino_genai")
        self._openvino = importlib.import_module("openvino")
        self._pipeline = self._library.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads)

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of a later token."""
        numpy = importlib.import_module("numpy")
        ids = numpy.array(prompts, dtype=numpy.int64)
        inputs = self._library.TokenizedInputs(
            self._openvino.Tensor(ids), self._openvino.Tensor(numpy.ones_like(ids))
        )
        config = self._library.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        began = time.perf_counter()
        made = self._pipeline.generate(inputs, config)
        total = time.perf_counter() - began
        assert all(len(text) == tokens for text in made.tokens)
        first = made.perf_metrics.get_ttft().mean / 1e3
        return first, (total - first) / max(tokens - 1, 1)
