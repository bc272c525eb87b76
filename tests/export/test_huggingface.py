"""`convert`: a model stays the same from every layout, transformers reads it, nothing half-written stays."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import oneroof
from oneroof.errors import UserError
from oneroof.export import huggingface
from oneroof.export.huggingface import convert, portable
from oneroof.models import read_config
from oneroof.weights.stored import StoredWeights

IDS = torch.tensor([[1, 5, 9, 33, 200, 7, 351]])


def logits(folder: Path) -> Tensor:
    with torch.inference_mode():
        found: Tensor = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    return found


LAYOUTS: list[dict[str, object]] = [
    {"files": "bin"},
    {"files": "sharded-bin", "schema": 5},
    {"files": "sharded", "prefixed": False},
    {"packed": True, "schema": 5},
    {"tied": True, "head": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "schema": 5,
    },
]


@pytest.mark.parametrize(
    "family", ["qwen2", "qwen2_moe", "gte", "qwen3", "qwen3_moe", "ernie4_5", "ernie4_5_moe"]
)
def test_transformers_computes_the_same_before_and_after(
    checkpoint: Checkpoint, tmp_path: Path, family: str
) -> None:
    for i, layout in enumerate(LAYOUTS):
        kept = {key: value for key, value in layout.items() if key != "packed" or "moe" in family}
        readable = {key: value for key, value in kept.items() if key not in ("prefixed", "files", "packed")}
        convert(checkpoint(family, **kept), tmp_path / f"{i}", limit=300_000)
        assert torch.equal(logits(checkpoint(family, **readable)), logits(tmp_path / f"{i}"))
        assert read_config(tmp_path / f"{i}") == read_config(checkpoint(family, **kept))


def test_an_embedding_model_without_a_head_stays_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("qwen3_embedding")
    convert(folder, tmp_path / "out")
    states = []
    for place in (folder, tmp_path / "out"):
        with torch.inference_mode():
            states.append(AutoModel.from_pretrained(place)(IDS).last_hidden_state)
    assert torch.equal(*states)
    assert "model.norm.weight" in StoredWeights(tmp_path / "out").specs
    assert "lm_head.weight" not in StoredWeights(tmp_path / "out").specs
    beside = ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", "tokenizer.json")
    assert all((tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in beside)


def test_qwen_1_keeps_its_own_form(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("qwen1", files="sharded-bin", dtype="bfloat16")
    assert convert(folder, tmp_path / "out") == ()
    want = load_file(checkpoint("qwen1", dtype="bfloat16") / "model.safetensors")
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], x) for name, x in want.items())
    assert (tmp_path / "out" / "qwen.tiktoken").exists()
    assert read_config(tmp_path / "out") == replace(read_config(folder), dtype="bfloat16")


def test_what_is_left_out_is_said(checkpoint: Checkpoint, tmp_path: Path) -> None:
    notes = convert(checkpoint("ernie4_5_moe", mtp=True), tmp_path / "a")
    assert [note for note in notes if "tensors left out: multi-token prediction" in note]
    assert not any("mtp" in name for name in StoredWeights(tmp_path / "a").specs)
    notes = convert(checkpoint("qwen2", tied=True, head=True), tmp_path / "b")
    assert notes == ("1 tensors left out: tied: the head is the embedding",)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_casts_all_but_what_the_model_computes_in_float32(
    checkpoint: Checkpoint, tmp_path: Path, dtype: str
) -> None:
    source = checkpoint("ernie4_5_moe")
    convert(source, tmp_path / "out", dtype=dtype)
    old, number = load_file(source / "model.safetensors"), getattr(torch, dtype)
    for name, x in load_file(tmp_path / "out" / "model.safetensors").items():
        exact = name.endswith(("mlp.gate.weight", "e_score_correction_bias"))
        assert torch.equal(x, old[name] if exact else old[name].to(number))
    keys = json.loads((tmp_path / "out" / "config.json").read_text())
    assert keys["dtype"] == keys["torch_dtype"] == dtype


def test_numbers_that_float16_lacks_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "in"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 70000.0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight holds numbers that float16 lacks"):
        convert(folder, tmp_path / "out", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}, "torch_dtype": "float32"},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}, "dtype": "bfloat16"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}},
    ],
)
def test_rope_and_dtype_are_written_in_both_schemas(tmp_path: Path, keys: dict[str, object]) -> None:
    made = portable(keys, "bfloat16", tmp_path)
    assert made["rope_theta"] == 1e6
    assert made["rope_scaling"] == {"type": "yarn", "rope_type": "yarn", **YARN}
    assert made["rope_parameters"] == {"rope_type": "yarn", "rope_theta": 1e6, **YARN}
    assert made["torch_dtype"] == made["dtype"] == "bfloat16"


def test_a_plain_rope_scales_nothing_and_experts_are_counted_twice(tmp_path: Path) -> None:
    made = portable({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "float32", tmp_path)
    assert (made["rope_theta"], made["rope_scaling"]) == (5.0, None)
    assert "num_experts" not in made
    for key in ("num_experts", "num_local_experts"):
        made = portable({key: 7}, "float32", tmp_path)
        assert (made["num_experts"], made["num_local_experts"]) == (7, 7)


def test_remote_code_is_copied_but_not_named_where_it_is_missing(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("gte"), tmp_path / "in"))
    convert(folder, tmp_path / "a")
    assert "auto_map" not in json.loads((tmp_path / "a" / "config.json").read_text())
    (folder / "modeling_qwen.py").write_text("raise SystemExit('run')\n")
    convert(folder, tmp_path / "b")
    assert (tmp_path / "b" / "modeling_qwen.py").exists()
    assert "auto_map" in json.loads((tmp_path / "b" / "config.json").read_text())


def test_only_what_belongs_to_a_checkpoint_is_copied(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2", files="bin"), tmp_path / "in"))
    more = "additional_chat_templates/tool_use.jinja"
    (folder / more).parent.mkdir()
    for name in (
        "LICENSE",
        "chat_template.jinja",
        more,
        "optimizer.pt",
        "training_args.bin",
        ".gitattributes",
    ):
        (folder / name).write_text(name)
    convert(folder, tmp_path / "out")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / more).read_text() == more
    assert there == {
        "LICENSE",
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_every_published_config_is_read_by_transformers_afterwards(shared: Path, tmp_path: Path) -> None:
    for path in sorted((shared / "data" / "configs").glob("*/config.json")):
        keys = json.loads(path.read_text())
        if keys.get("model_type") not in (
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_moe",
            "ernie4_5",
            "ernie4_5_moe",
        ):
            continue
        (tmp_path / "config.json").write_text(json.dumps(portable(keys, keys["torch_dtype"], path.parent)))
        (tmp_path / "old.json").write_text(json.dumps({k: v for k, v in keys.items() if k != "auto_map"}))
        new, old = (AutoConfig.from_pretrained(tmp_path / name) for name in ("config.json", "old.json"))
        assert new.rope_parameters["rope_theta"] == old.rope_parameters["rope_theta"]
        assert new.rope_parameters["rope_type"] == old.rope_parameters["rope_type"]
        assert new.dtype == old.dtype


def test_a_checkpoint_that_would_not_load_is_not_converted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "in"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks model\.layers\.1\.self_attn\.q_proj\.bias; all"):
        convert(folder, tmp_path / "out")
    with pytest.raises(UserError, match=r"has no config\.json"):
        convert(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_out_that_is_there_is_refused_unless_it_is_empty(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        convert(checkpoint("qwen2"), out)
    assert [path.name for path in out.iterdir()] == ["precious"]
    with pytest.raises(UserError, match="is there already"):
        convert(checkpoint("qwen2"), out / "precious")
    (out / "precious").unlink()
    convert(checkpoint("qwen2"), out)
    assert (out / "config.json").exists()


def test_an_unwritable_out_is_one_clear_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        convert(checkpoint("qwen2"), tmp_path / "file" / "deeper" / "out")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="cannot be written"):
            convert(checkpoint("qwen2"), tmp_path / "closed" / "out")


def test_a_full_disk_is_noticed_before_and_while_writing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"needs 0\.0 GB, 0\.0 GB are free"):
            convert(checkpoint("qwen2"), tmp_path / "some" / "where" / "out")
    assert list(tmp_path.iterdir()) == []

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "sync", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            convert(checkpoint("qwen2"), tmp_path / "some" / "where" / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_is_a_link_is_written_where_it_points(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    for name in ("empty", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        convert(checkpoint("qwen2"), tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / name / "config.json").exists()


def test_an_interruption_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint("qwen2"), tmp_path / "out", limit=100_000, report=stop)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from oneroof.export import huggingface

def report(done, total):
    if done >= float(sys.argv[3]) * total:
        os.kill(os.getpid(), signal.SIGKILL)

if float(sys.argv[3]) > 1:  # when all weights are there
    huggingface.write_text = lambda path, text: os.kill(os.getpid(), signal.SIGKILL)
huggingface.convert(Path(sys.argv[1]), Path(sys.argv[2]), limit=100_000, report=report)
"""


def test_a_killed_conversion_leaves_nothing_that_looks_finished(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source, out = checkpoint("qwen2"), tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(Path(oneroof.__file__).parents[1])}
    for share in ("0.5", "2"):
        run = [sys.executable, "-c", KILLED, str(source), str(out), share]
        assert subprocess.run(run, env=environment, check=False).returncode == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == [".out.part"]
        assert not list(tmp_path.rglob("config.json"))
    convert(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert torch.equal(logits(out), logits(source))


def test_two_conversions_to_one_place_do_not_meet(checkpoint: Checkpoint, tmp_path: Path) -> None:
    part = tmp_path / ".out.part"
    part.mkdir()
    (part / "model-00001-of-00002.safetensors").write_text("of the other")
    other = os.open(part, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="being written by another command"):
        convert(checkpoint("qwen2"), tmp_path / "out")
    assert (part / "model-00001-of-00002.safetensors").exists()
    os.close(other)
    convert(checkpoint("qwen2"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


PEAK = """
import re, sys
from pathlib import Path
from oneroof.export.huggingface import convert

status = lambda key: int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
convert(Path(sys.argv[1]), Path(sys.argv[3]) / "warm", dtype="bfloat16")
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
convert(Path(sys.argv[2]), Path(sys.argv[3]) / "out", dtype="bfloat16")
print((status("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_converting_needs_one_tensor_and_its_cast(checkpoint: Checkpoint, tmp_path: Path) -> None:
    large = checkpoint("qwen2", files="sharded", vocab_size=8000, hidden_size=512, intermediate_size=8000)
    largest = 8000 * 512 * 4  # bytes; the whole is 15 of them
    run = [sys.executable, "-c", PEAK, str(checkpoint("qwen2")), str(large), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(oneroof.__file__).parents[1])}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed goes back at once
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 2 * largest  # a cast is half of one
