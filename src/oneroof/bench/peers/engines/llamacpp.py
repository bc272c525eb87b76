"""llama.cpp through llama-cpp-python's low-level calls: GGUF written with `gguf`, quantised by itself.

The batch is one sequence a text: prefill in one call of all prompts, then a call a step.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = {"llama-cpp-python": "llama_cpp", "gguf": "gguf", "numpy": "numpy"}
_ARCHITECTURES = {
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe",
}
_FILES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama_ftype


def refusal(facts: dict[str, Any], precision: str) -> str:
    """Architectures that are not written here."""
    kind = str(facts.get("model_type"))
    return "" if kind in _ARCHITECTURES else f"no GGUF is written for {kind}"


def convert(folder: Path, target: Path, precision: str) -> None:
    """A bfloat16 file of all weights, and from it the one that is wanted, by llama.cpp's own quantiser."""
    target.mkdir()
    whole = target.parent / "llama.cpp-source.gguf"
    if not whole.exists():
        unfinished = whole.with_suffix(".unfinished")
        _write(folder, unfinished)
        unfinished.rename(whole)
    library = importlib.import_module("llama_cpp")
    params = library.llama_model_quantize_default_params()
    params.ftype, params.nthread = _FILES[precision], 2
    made = target / "model.gguf"
    status = library.llama_model_quantize(str(whole).encode(), str(made).encode(), ctypes.byref(params))
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")


class Writer:
    """A model and its context in memory."""

    def __init__(self, folder: Path, precision: str, threads: int, batch: int, positions: int) -> None:
        self._library = library = importlib.import_module("llama_cpp")
        self._numpy = importlib.import_module("numpy")
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(
            str(folder / "model.gguf").encode(), library.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError("llama.cpp does not load its file; its own words are in the log")
        self._vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        params = library.llama_context_default_params()
        params.n_ctx = batch * -(-positions // 256) * 256
        params.n_seq_max = batch
        params.n_batch = batch * positions
        params.n_threads = params.n_threads_batch = threads
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context of this size; its own words are in the log")
        self._batch = library.llama_batch_init(batch * positions, 0, 1)

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of a later token."""
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        began = time.perf_counter()
        chosen = self._decode([(row, 0, prompt) for row, prompt in enumerate(prompts)])
        first = time.perf_counter()
        length = len(prompts[0])
        for step in range(tokens - 1):
            chosen = self._decode([(row, length + step, [token]) for row, token in enumerate(chosen)])
        ended = time.perf_counter()
        return first - began, (ended - first) / max(tokens - 1, 1)

    def _decode(self, texts: list[tuple[int, int, list[int]]]) -> list[int]:
        """One call for pieces of texts: sequence, first position, tokens; the next token of each."""
        batch, at, last = self._batch, 0, []
        for sequence, start, tokens in texts:
            for offset, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, start + offset
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence, 0
                at += 1
            batch.logits[at - 1] = 1
            last.append(at - 1)
        batch.n_tokens = at
        status = self._library.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return [self._greedy(place) for place in last]

    def _greedy(self, place: int) -> int:
        logits = self._library.llama_get_logits_ith(self._context, place)
        return int(self._numpy.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())


def _write(folder: Path, path: Path) -> None:
    """All tensors in bfloat16, norms and routers in float32, as llama.cpp's converter lays them out."""
    gguf, numpy = importlib.import_module("gguf"), importlib.import_module("numpy")
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    word, depth = _ARCHITECTURES[facts["model_type"]], facts["num_hidden_layers"]
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[word], depth)
    writer = gguf.GGUFWriter(path, word, use_temp_file=False)
    _describe(writer, facts)
    for name, numbers in _merged(dict(_tensors(folder, numpy)), facts, numpy):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ValueError(f"llama.cpp has no name for {name}")
        if numbers.dtype == numpy.float32:
            writer.add_tensor(known, numbers)
        elif numbers.ndim < 2 or "ffn_gate_inp" in known:
            writer.add_tensor(known, (numbers.astype(numpy.uint32) << 16).view(numpy.float32))
        else:
            writer.add_tensor(known, numbers.view(numpy.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, facts: dict[str, Any]) -> None:
    writer.add_block_count(facts["num_hidden_layers"])
    writer.add_context_length(facts["max_position_embeddings"])
    writer.add_embedding_length(facts["hidden_size"])
    writer.add_feed_forward_length(facts["intermediate_size"])
    writer.add_head_count(facts["num_attention_heads"])
    writer.add_head_count_kv(facts["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(facts["rms_norm_eps"])
    writer.add_rope_freq_base(facts["rope_theta"])
    width = facts.get("head_dim", facts["hidden_size"] // facts["num_attention_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(facts["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(_FILES["BF16"])
    experts = facts.get("num_experts", facts.get("moe_num_experts"))
    if not experts:
        return
    writer.add_expert_count(experts)
    writer.add_expert_used_count(facts.get("num_experts_per_tok", facts.get("moe_k")))
    writer.add_expert_feed_forward_length(facts["moe_intermediate_size"])
    shared = facts.get("moe_num_shared_experts", 0)
    width = facts.get("shared_expert_intermediate_size", shared * facts["moe_intermediate_size"])
    if width:
        writer.add_expert_shared_feed_forward_length(width)
    if "moe_k" in facts:
        writer.add_expert_shared_count(shared)
        writer.add_interleave_moe_layer_step(facts["moe_layer_interval"])
        writer.add_leading_dense_block_count(facts["moe_layer_start_index"])


def _tensors(folder: Path, numpy: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor of the folder: float32, or the 16 bits of its bfloat16 numbers."""
    kinds = {"BF16": numpy.dtype("<u2"), "F32": numpy.dtype("<f4")}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, spec in header.items():
            if spec["dtype"] not in kinds:
                raise ValueError(f"{name} is {spec['dtype']}; BF16 and F32 are written")
            start = 8 + length + spec["data_offsets"][0]
            yield name, numpy.memmap(path, kinds[spec["dtype"]], "r", start, tuple(spec["shape"]))


def _merged(tensors: dict[str, Any], facts: dict[str, Any], numpy: Any) -> Iterator[tuple[str, Any]]:
    """The same tensors, the experts of a layer as one; a tied head once."""
    experts: dict[str, dict[int, Any]] = {}
    for name, bits in tensors.items():
        before, found, after = name.partition(".mlp.experts.")
        number, _, kind = after.partition(".")
        if found and number.isdigit():
            experts.setdefault(f"{before}.mlp.experts.{kind}", {})[int(number)] = bits
        elif not (name == "lm_head.weight" and facts.get("tie_word_embeddings")):
            chooses = name.endswith("e_score_correction_bias")
            yield (name[:-5] + ".bias", bits.reshape(-1)) if chooses else (name, bits)
    for name, parts in experts.items():
        yield name, numpy.stack([parts[number] for number in sorted(parts)])
