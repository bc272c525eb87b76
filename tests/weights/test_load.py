"""`fill`: every layout lands in the same places, a misfit is one clear line, memory keeps its promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Checkpoint
from safetensors.torch import save_file
from torch import Tensor

import oneroof
from oneroof.errors import UserError
from oneroof.models import family_of, read_facts, read_keys
from oneroof.models.decoder import Decoder
from oneroof.names import Ignored, Rename
from oneroof.tensorfile import Spec
from oneroof.weights.load import fill
from oneroof.weights.names import Names
from oneroof.weights.stored import StoredWeights

FAMILIES = (
    "qwen1",
    "qwen2",
    "qwen2_moe",
    "gte",
    "qwen3",
    "qwen3_embedding",
    "qwen3_moe",
    "ernie4_5",
    "ernie4_5_moe",
)


def filled(folder: Path, dtype: torch.dtype = torch.float32, *, fused: bool = True) -> dict[str, Tensor]:
    keys = read_keys(folder)
    family, config = family_of(keys), read_facts(keys)
    head = config.tied_head or "lm_head.weight" in StoredWeights(folder).specs
    targets = Decoder(config, dtype=dtype, head=head, fused=fused).tensors()
    for tensor in targets.values():
        tensor.fill_(float("nan"))
    fill(targets, StoredWeights(folder), Names(family.renames, family.ignored), tied=config.tied_head)
    assert all(tensor.isfinite().all() for tensor in targets.values())
    return targets


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_of_a_family_fills_the_same_model(checkpoint: Checkpoint, family: str) -> None:
    plain = filled(checkpoint(family))
    layouts: list[dict[str, object]] = [{"files": "sharded"}, {"files": "bin"}, {"files": "sharded-bin"}]
    if family != "qwen1":
        layouts += [{"prefixed": False}, {"prefixed": True, "schema": 5}]
    if "moe" in family:
        layouts += [{"packed": True}, {"packed": True, "prefixed": False, "files": "sharded"}]
    for layout in layouts:
        assert_same(plain, filled(checkpoint(family, **layout)))
    assert_same(plain, filled(checkpoint(family), fused=False))


def test_numbers_are_those_of_the_file_cast_once(checkpoint: Checkpoint) -> None:
    whole, half = filled(checkpoint("qwen3")), filled(checkpoint("qwen3"), torch.bfloat16)
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in whole.items())


@pytest.mark.parametrize("packed", [True, False])
def test_what_transformers_saves_is_what_it_loaded(
    checkpoint: Checkpoint, tmp_path: Path, packed: bool
) -> None:
    from transformers import AutoModelForCausalLM

    for family in ("qwen2_moe", "qwen3_moe", "ernie4_5_moe", "qwen2"):
        model = AutoModelForCausalLM.from_pretrained(checkpoint(family))
        model.save_pretrained(tmp_path / family, save_original_format=not packed, max_shard_size="200KB")
        assert_same(filled(checkpoint(family)), filled(tmp_path / family))


def test_a_tied_head_that_is_stored_is_left_out(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen2", tied=True, head=True)
    assert "lm_head.weight" in StoredWeights(folder).specs
    assert "lm_head.weight" not in filled(folder)


def test_multi_token_prediction_is_left_out(checkpoint: Checkpoint) -> None:
    assert_same(filled(checkpoint("ernie4_5_moe")), filled(checkpoint("ernie4_5_moe", mtp=True)))


def test_stored_names_reads_headers_alone(checkpoint: Checkpoint) -> None:
    found = StoredWeights(checkpoint("qwen3_moe", packed=True)).specs
    name = "model.layers.0.mlp.experts.down_proj"
    assert found[name] == Spec(name, torch.float32, (8, 64, 32))


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(9)}, tmp_path / "model.safetensors")
    told: list[tuple[int, int]] = []
    targets = {"a": torch.zeros(2), "b": torch.zeros(3)}
    ignored = (Ignored("c", "not wanted"),)
    fill(
        targets,
        StoredWeights(tmp_path),
        Names((), ignored),
        tied=False,
        report=lambda done, total: told.append((done, total)),
    )
    assert [total for _, total in told] == [20, 20]
    assert told[-1] == (20, 20)


OLD = (Rename("old.{rest}", ("{rest}",), written=False),)
MISFITS: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing": ({}, r"lacks b and 1 more; all 3 tensors are needed"),
    "one missing": ({"b": torch.ones(3)}, r"lacks c; all 3"),
    "not expected": (
        {"b": torch.ones(3), "c": torch.ones(1), "d": torch.ones(1)},
        r"d has no place in this model",
    ),
    "renamed, not expected": ({"old.d": torch.ones(1)}, r"old\.d \(d\) has no place"),
    "shape": (
        {"b": torch.ones(3, 1), "c": torch.ones(1)},
        r"b has shape \[3, 1\], this model has \[3\] there",
    ),
    "integers": ({"b": torch.ones(3, dtype=torch.int8)}, r"b has the wrong dtype int8; float32 is needed"),
    "eight bits": ({"b": torch.ones(3).to(torch.float8_e4m3fn)}, r"wrong dtype float8_e4m3fn"),
    "twice": ({"b": torch.ones(3), "old.b": torch.ones(3)}, r"(old\.b and b|b and old\.b) are both b"),
}


@pytest.mark.parametrize("kind", MISFITS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_misfit_is_one_clear_line_and_touches_nothing(tmp_path: Path, kind: str, file: str) -> None:
    tensors, says = MISFITS[kind]
    save = save_file if file.endswith("safetensors") else torch.save
    save({"a": torch.ones(2), **tensors}, tmp_path / file)
    targets = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    with pytest.raises(UserError, match=says) as caught:
        fill(targets, StoredWeights(tmp_path), Names(OLD), tied=False)
    assert "\n" not in str(caught.value)
    assert not any(tensor.any() for tensor in targets.values())


def test_integers_land_where_integers_are_wanted(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3)}, tmp_path / "model.safetensors")
    targets = {"a": torch.zeros(3, dtype=torch.int64)}
    fill(targets, StoredWeights(tmp_path), Names(()), tied=False)
    assert targets["a"].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="wrong dtype int64; int32"):
        fill({"a": torch.zeros(3, dtype=torch.int32)}, StoredWeights(tmp_path), Names(()), tied=False)


PEAK = """
import re, sys
from pathlib import Path
import torch
from oneroof.names import Rename
from oneroof.weights.load import fill
from oneroof.weights.names import Names
from oneroof.weights.stored import StoredWeights

rows, count = 2048, 12  # 12 tensors of 16 MiB
targets = {f"w{i}": torch.zeros(rows, 2048, dtype=torch.float32) for i in range(count)}
for x in targets.values():
    x.fill_(1.0)  # its pages are there
pack = Rename("pack{i}", ("w{i}",), written=False)
fill({"warm": torch.zeros(8)}, StoredWeights(Path(sys.argv[1]) / "warm"), Names(()), tied=False)
status = lambda key: int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
fill(targets, StoredWeights(Path(sys.argv[1])), Names((pack,)), tied=False)
after = status("VmHWM")
assert all(x[0, 0] == i and x[-1, -1] == i for i, x in enumerate(targets.values()))
print((after - before) * 1024 / (rows * 2048 * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_loading_needs_one_tensor_beside_the_model(tmp_path: Path, kind: str) -> None:
    tensors = {f"pack{i}": torch.full((2048, 2048), float(i)) for i in range(12)}
    warm = {"warm": torch.zeros(8)}
    (tmp_path / "warm").mkdir()
    if kind == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
        save_file(warm, tmp_path / "warm" / "model.safetensors")
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        torch.save(warm, tmp_path / "warm" / "pytorch_model.bin")
    del tensors
    run, source = [sys.executable, "-c", PEAK, str(tmp_path)], str(Path(oneroof.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source}
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
    extra = float(done.stdout)
    assert extra < 1.25  # in tensors of the twelve
