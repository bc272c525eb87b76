"""The one way to a model: what it gives, what it can be asked, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from places import tensors
from safetensors.torch import load_file, save_file

from oneroof import device
from oneroof.errors import UserError
from oneroof.load import load

Checkpoint = Callable[..., Path]
Spoil = Callable[[Path], None]


# What it gives.


def test_a_folder_gives_a_model_its_config_and_its_text(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen3_moe")
    loaded = load(folder, device="cpu", dtype="float32")
    assert loaded.folder == folder
    assert (loaded.config.depth, loaded.config.dim, loaded.config.vocabulary) == (4, 64, 352)
    assert loaded.device == torch.device("cpu") and loaded.dtype == torch.float32
    assert loaded.tokenizer is not None and loaded.template is not None
    assert loaded.generation["top_k"] == 20
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_face_hands_out_the_function_although_a_module_bears_its_name() -> None:
    from oneroof import load as handed_out

    assert handed_out is load


def test_logits_are_one_tensor_a_sequence(checkpoint: Checkpoint) -> None:
    loaded = load(str(checkpoint("qwen2")), device="cpu")
    logits = loaded.logits([[1, 2, 3], [4, 5]])
    assert [tuple(x.shape) for x in logits] == [(3, 352), (2, 352)]
    assert all(x.dtype == torch.float32 for x in logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_cast_while_they_are_read(checkpoint: Checkpoint, dtype: str) -> None:
    folder = checkpoint("qwen3", dtype="bfloat16")
    loaded = load(folder, device="cpu", dtype=dtype)
    assert loaded.dtype == getattr(torch, dtype) and loaded.config.dtype == "bfloat16"
    stored = load_file(folder / "model.safetensors")
    for name, tensor in tensors(loaded.model).items():
        assert torch.equal(tensor, stored[name].to(tensor.dtype)), name


@pytest.mark.parametrize("files", ["single", "sharded", "bin", "sharded-bin"])
def test_every_stored_tensor_is_in_its_place(checkpoint: Checkpoint, files: str) -> None:
    plain = load_file(checkpoint("qwen2") / "model.safetensors")
    found = tensors(load(checkpoint("qwen2", files=files), device="cpu").model)
    assert set(found) == set(plain)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_angles_that_older_tools_stored_are_left_out_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = _copy(checkpoint("qwen2"), tmp_path)
    _tensors(lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))(folder)
    assert len(load(folder, device="cpu").model.tensors()) == len(load_file(folder / "model.safetensors")) - 1


def test_the_router_of_ernie_stays_in_float32(checkpoint: Checkpoint) -> None:
    for dtype in ("float32", "bfloat16"):
        folder = checkpoint("ernie4_5_moe", dtype=dtype)
        places = load(folder, device="cpu", dtype="bfloat16").model.tensors()
        kept = {name for name, place in places.items() if place.dtype == torch.float32}
        assert (
            kept == {n for n in places if n.endswith((".mlp.gate.weight", ".mlp.gate.choice_bias"))} != set()
        )


def test_the_first_layers_alone(checkpoint: Checkpoint) -> None:
    """Layers 2 and 3 are left out by name; what is kept is what the file with two layers would give."""
    cut = load(checkpoint("qwen3_moe"), device="cpu", dtype="float32", layers=2)
    two = load(checkpoint("qwen3_moe", num_hidden_layers=2), device="cpu", dtype="float32")
    assert cut.config == two.config
    assert torch.equal(cut.logits([[1, 2, 3]])[0], two.logits([[1, 2, 3]])[0])
    assert load(checkpoint("qwen1"), device="cpu", layers=1).config.depth == 1


@pytest.mark.parametrize("layers", [0, -1, 5])
def test_layers_that_are_not_there(checkpoint: Checkpoint, layers: int) -> None:
    _refused(lambda: load(checkpoint("qwen2"), device="cpu", layers=layers), str(layers), "4")


def test_random_weights_need_the_config_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    shutil.copy(checkpoint("qwen3_moe") / "config.json", tmp_path)
    first = load(tmp_path, device="cpu", random_weights=True)
    again = load(tmp_path, device="cpu", random_weights=True)
    other = load(tmp_path, device="cpu", random_weights=True, seed=1)
    assert first.tokenizer is None and first.template is None
    logits = [x.logits([[1, 2, 3]])[0] for x in (first, again, other)]
    assert logits[0].isfinite().all() and logits[0].std() > 0
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert load(tmp_path, device="cpu", random_weights=True, layers=1).config.depth == 1


def test_random_weights_of_a_cut_model_are_the_same_values(checkpoint: Checkpoint) -> None:
    """In any number format: bfloat16 is float32's draw, rounded."""
    whole, cut, rounded = (
        tensors(load(checkpoint("qwen3_moe"), device="cpu", random_weights=True, dtype=d, layers=n).model)
        for d, n in (("float32", None), ("float32", 2), ("bfloat16", None))
    )
    assert "lm_head.weight" in cut and all(torch.equal(cut[name], whole[name]) for name in cut)
    assert all(torch.equal(rounded[name], whole[name].bfloat16()) for name in whole)


def test_progress_counts_bytes_to_the_end(checkpoint: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    load(checkpoint("qwen2"), device="cpu", progress=lambda done, everything: seen.append((done, everything)))
    total = sum(x.nbytes for x in load_file(checkpoint("qwen2") / "model.safetensors").values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_folder_without_tokenizer_serves_token_ids(checkpoint: Checkpoint) -> None:
    loaded = load(checkpoint("qwen2", tokenizer="none"), device="cpu")
    assert loaded.tokenizer is None and len(loaded.logits([[1, 2]])) == 1
    _refused(loaded.text, "tokenizer")


# What is wrong with a folder: each says so in one line, before any weight is read.


def _edit(**changes: object) -> Spoil:
    """A change of `config.json`; a key whose value is `...` is removed."""

    def spoil(folder: Path) -> None:
        keys = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in keys.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def _write(name: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def _truncate(name: str, left: float) -> Spoil:
    def spoil(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * left)])

    return spoil


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def _twice(folder: Path) -> None:
    """The first shard lies where the second should."""
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors")


NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
BAD_CONFIGS: dict[str, tuple[str, Spoil, tuple[str, ...]]] = {
    "no config": ("qwen2", lambda folder: (folder / "config.json").unlink(), ("config.json",)),
    "quantised weights": (
        "qwen3",
        _edit(quantization_config={"quant_method": "gptq", "bits": 4}),
        ("gptq", "quantised"),
    ),
    "quantised for another engine": ("qwen2", _edit(quantize="w8a8"), ("w8a8", "quantised")),
    "sliding layers and no window": (
        "qwen2",
        _edit(layer_types=["sliding_attention"] * 4, sliding_window=7, use_sliding_window=False),
        ("use_sliding_window",),
    ),
    "windows on some layers where the architecture has all or none": (
        "qwen3_moe",
        _edit(
            layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=7, use_sliding_window=True
        ),
        ("layer_types",),
    ),
    "torn JSON": ("qwen2", _truncate("config.json", 0.7), ("config.json",)),
    "JSON of another kind": ("qwen2", _write("config.json", b"[1, 2]"), ("config.json",)),
    "not text": ("qwen2", _write("config.json", b"\xff\xfe\x00"), ("config.json",)),
    "unknown architecture": (
        "qwen2",
        _edit(architectures=["LlamaForCausalLM"]),
        ("LlamaForCausalLM", "Qwen2"),
    ),
    "another model's type": ("qwen2", _edit(architectures=..., model_type="bert"), ("bert",)),
    "kv heads that do not divide": ("qwen2", _edit(num_key_value_heads=3), ("3", "4")),
    "heads that do not divide": ("qwen2", _edit(num_attention_heads=5, num_key_value_heads=5), ("5", "64")),
    "no heads": ("qwen2", _edit(num_attention_heads=0), ("heads",)),
    "no kv heads": ("qwen2", _edit(num_key_value_heads=0), ("0",)),
    "an odd head": ("qwen3", _edit(head_dim=15), ("15",)),
    "no layers": ("qwen2", _edit(num_hidden_layers=0), ("0",)),
    "negative layers": ("qwen2", _edit(num_hidden_layers=-2), ("-2",)),
    "negative width": ("qwen2", _edit(intermediate_size=-96), ("-96",)),
    "zero width": ("qwen2", _edit(intermediate_size=0), ("0",)),
    "an expert of no width": ("qwen3_moe", _edit(moe_intermediate_size=0), ("0",)),
    "no vocabulary": ("qwen2", _edit(vocab_size=0), ("vocab", "0")),
    "no positions": ("qwen2", _edit(max_position_embeddings=0), ("position", "0")),
    "a trained length of nothing": ("qwen1", _edit(seq_length=0), ("seq_length", "0")),
    "a rope that stands still": ("qwen2", _edit(rope_theta=0.0), ("rope_theta", "0")),
    "a norm that may divide by zero": ("qwen2", _edit(rms_norm_eps=-1e-6), ("rms_norm_eps",)),
    "a window of nothing": (
        "qwen2",
        _edit(use_sliding_window=True, sliding_window=0, max_window_layers=0),
        ("0",),
    ),
    "a fraction of a width": ("qwen2", _edit(hidden_size=64.5), ("64.5",)),
    "a size in words": ("qwen2", _edit(vocab_size="many"), ("many",)),
    "a size that is missing": ("qwen2", _edit(hidden_size=...), ("hidden_size",)),
    "a switch that is none": ("qwen2", _edit(tie_word_embeddings="no"), ("tie_word_embeddings",)),
    "an unknown rope": ("qwen2", _edit(rope_scaling={"type": "su", "factor": 2.0}), ("su", "yarn")),
    "an unknown activation": ("qwen2", _edit(hidden_act="gelu"), ("gelu", "silu")),
    "a dtype we do not read": ("qwen2", _edit(torch_dtype="int8"), ("int8", "bfloat16")),
    "more chosen than there are": ("qwen3_moe", _edit(num_experts_per_tok=9), ("9", "8")),
    "none chosen": ("ernie4_5_moe", _edit(moe_k=0), ("0", "8")),
    "no experts": ("qwen3_moe", _edit(num_experts=0), ("0",)),
    "a sparse step of zero": ("qwen2_moe", _edit(decoder_sparse_step=0), ("decoder_sparse_step",)),
    "an interval of zero": ("ernie4_5_moe", _edit(moe_layer_interval=0), ("moe_layer_interval",)),
    "layer kinds we do not know": (
        "qwen2",
        _edit(layer_types=["linear_attention"] * 4),
        ("linear_attention",),
    ),
    "part of a head rotated": ("qwen1", _edit(rotary_pct=0.5), ("rotary_pct",)),
}
BAD_WEIGHTS: dict[str, tuple[str, dict[str, object], Spoil, tuple[str, ...]]] = {
    "no weights": ("qwen2", {}, lambda folder: (folder / "model.safetensors").unlink(), ("safetensors",)),
    "torn in the middle": ("qwen2", {}, _truncate("model.safetensors", 0.5), ("model.safetensors",)),
    "torn at the last byte": ("qwen2", {}, _truncate("model.safetensors", 0.99999), ("model.safetensors",)),
    "torn in the header": ("qwen2", {}, _truncate("model.safetensors", 0.001), ("model.safetensors",)),
    "empty": ("qwen2", {}, _write("model.safetensors", b""), ("model.safetensors",)),
    "a web page": (
        "qwen2",
        {},
        _write("model.safetensors", b"<!DOCTYPE html><html>"),
        ("model.safetensors",),
    ),
    "a shard that is missing": (
        "qwen2",
        {"files": "sharded"},
        lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(),
        ("model-00002-of-00003.safetensors",),
    ),
    "a shard under another one's name": ("qwen2", {"files": "sharded"}, _twice, ("model-0000",)),
    "a tensor that is missing": ("qwen2", {}, _tensors(lambda t: t.__delitem__(NORM)), (NORM,)),
    "a tensor too many": ("qwen2", {}, _tensors(lambda t: t.update(extra=torch.ones(2))), ("extra",)),
    "a tensor of another shape": (
        "qwen2",
        {},
        _tensors(lambda t: t.update({QUERY: torch.ones(8, 64)})),
        (QUERY,),
    ),
    "whole numbers": (
        "qwen2",
        {},
        _tensors(lambda t: t.update({QUERY: t[QUERY].to(torch.int8)})),
        (QUERY, "int8"),
    ),
    "another model's config": ("qwen2", {}, _edit(hidden_size=128), ("64", "128")),
    "more layers than are stored": ("qwen2", {}, _edit(num_hidden_layers=5), ("model.layers.4",)),
    "fewer layers than are stored": ("qwen2", {}, _edit(num_hidden_layers=3), ("model.layers.3",)),
    "a pickle that runs code": (
        "qwen2",
        {"files": "bin"},
        _write("pytorch_model.bin", b"cos\nsystem\n(S'touch /tmp/ran'\ntR."),
        ("pytorch_model.bin",),
    ),
    "a bin that is torn": (
        "qwen2",
        {"files": "bin"},
        _truncate("pytorch_model.bin", 0.5),
        ("pytorch_model.bin",),
    ),
    "an index that is torn": (
        "qwen2",
        {"files": "sharded"},
        _truncate("model.safetensors.index.json", 0.5),
        ("model.safetensors.index.json",),
    ),
    "an index that leads away": (
        "qwen2",
        {"files": "sharded"},
        _write("model.safetensors.index.json", b'{"weight_map": {"a": "../../x.safetensors"}}'),
        ("../../x.safetensors",),
    ),
    "a tokenizer that is torn": ("qwen2", {}, _write("tokenizer.json", b"{"), ("tokenizer.json",)),
    "a template that does not compile": (
        "qwen2",
        {},
        _write("chat_template.jinja", b"{% if %}"),
        ("template",),
    ),
    "generation settings that are torn": (
        "qwen2",
        {},
        _write("generation_config.json", b"{"),
        ("generation",),
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_cannot_be_honoured(checkpoint: Checkpoint, tmp_path: Path, case: str) -> None:
    family, spoil, told = BAD_CONFIGS[case]
    folder = _copy(checkpoint(family), tmp_path)
    spoil(folder)
    _refused(lambda: load(folder, device="cpu"), *told)
    _refused(lambda: load(folder, device="cpu", random_weights=True), *told)  # not for the weights' sake


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_cannot_be_read(checkpoint: Checkpoint, tmp_path: Path, case: str) -> None:
    family, options, spoil, told = BAD_WEIGHTS[case]
    folder = _copy(checkpoint(family, **options), tmp_path)
    spoil(folder)
    read: list[tuple[int, int]] = []
    _refused(lambda: load(folder, device="cpu", progress=lambda *told: read.append(told)), *told)
    assert read == []


def test_names_that_lead_to_no_folder(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "./nowhere", "/nowhere/at/all"):
        _refused(partial(load, name), str(name))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    _refused(lambda: load(file), "model.safetensors")


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "memory", lambda place: device.Memory(total=10**6, free=10**5))
    _refused(lambda: load(checkpoint("qwen2"), device="cpu"), "0.0 GB", "free")


def test_chunked_attention_ends_where_its_chunks_begin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Qwen2.5-1M: without the chunks, positions up to the trained length are right."""
    folder = _copy(checkpoint("qwen2"), tmp_path)
    _edit(dual_chunk_attention_config={"chunk_size": 64, "original_max_position_embeddings": 96})(folder)
    assert load(folder, device="cpu").config.max_positions == 96


def test_options_with_unknown_words(checkpoint: Checkpoint) -> None:
    _refused(lambda: load(checkpoint("qwen2"), device="tpu"), "tpu", "cpu")
    _refused(lambda: load(checkpoint("qwen2"), device="cpu", dtype="int4"), "int4", "float32")


@pytest.mark.parametrize(
    ("sequences", "told"),
    [([[]], "0"), ([[1, 352]], "352"), ([[1], [-1, 2]], "-1"), ([[1] * 129], "129")],
    ids=["empty", "beyond the vocabulary", "negative", "beyond the context"],
)
def test_token_ids_that_the_model_cannot_take(
    checkpoint: Checkpoint, sequences: list[list[int]], told: str
) -> None:
    loaded = load(checkpoint("qwen2"), device="cpu")
    _refused(lambda: loaded.logits(sequences), told)


def _copy(folder: Path, into: Path) -> Path:
    shutil.copytree(folder, into / "model")
    return into / "model"


def _refused(call: Callable[[], object], *told: str) -> None:
    """One line of what was found, what is allowed and what to try, with these words in it."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    for word in told:
        assert word in line, line
