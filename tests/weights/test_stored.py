"""Finding and opening a folder's weights in each layout; what is torn, missing or evil is one clear line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Checkpoint
from safetensors.torch import save_file

import oneroof
from oneroof.errors import UserError
from oneroof.weights.stored import StoredWeights

LAYOUTS = ("single", "sharded", "bin", "sharded-bin")


@pytest.mark.parametrize("files", LAYOUTS)
def test_every_layout_holds_the_same_tensors(checkpoint: Checkpoint, files: str) -> None:
    one, other = StoredWeights(checkpoint("qwen2")), StoredWeights(checkpoint("qwen2", files=files))
    assert set(one.specs.values()) == set(other.specs.values())
    for name in one.specs:
        assert torch.equal(one.read(name), other.read(name))
        other.release(name)
        assert torch.equal(one.read(name), other.read(name))


@pytest.mark.parametrize("files", ["sharded", "sharded-bin"])
def test_shards_are_found_without_an_index(checkpoint: Checkpoint, tmp_path: Path, files: str) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2", files=files), tmp_path / "x"))
    next(folder.glob("*.index.json")).unlink()
    assert set(StoredWeights(folder).specs) == set(StoredWeights(checkpoint("qwen2")).specs)
    sorted(folder.glob("*-of-*"))[1].unlink()
    with pytest.raises(UserError, match=r"lacks .*-00002-of-00003"):
        StoredWeights(folder)


def test_safetensors_goes_before_bin(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert StoredWeights(tmp_path).read("a").tolist() == [1, 1]


def test_a_missing_shard_is_named_before_anything_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2", files="sharded"), tmp_path / "x"))
    (folder / "model-00001-of-00003.safetensors").write_text("torn, but not looked at")
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"lacks model-00003-of-00003\.safetensors, which .*index\.json asks for"
    ):
        StoredWeights(folder)


def index(folder: Path, content: object) -> Path:
    (folder / "model.safetensors.index.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


def test_an_index_that_names_a_tensor_its_shard_lacks(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "s.safetensors")
    index(tmp_path, {"weight_map": {"a": "s.safetensors", "b": "s.safetensors"}})
    with pytest.raises(UserError, match=r"s\.safetensors lacks b, which its index names"):
        StoredWeights(tmp_path)


def test_a_tensor_the_index_forgot_is_still_seen(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "s.safetensors")
    assert set(StoredWeights(index(tmp_path, {"weight_map": {"a": "s.safetensors"}})).specs) == {"a", "b"}


def test_the_index_says_which_of_two_copies_counts_and_without_it_they_clash(tmp_path: Path) -> None:
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        save_file({"a": torch.full((2,), float(i))}, tmp_path / file)
    with pytest.raises(UserError, match="stores a once more"):
        StoredWeights(tmp_path)
    save_file({"b": torch.ones(1), "a": torch.zeros(2)}, tmp_path / files[0])
    index(tmp_path, {"weight_map": {"a": files[1], "b": files[0]}})
    assert StoredWeights(tmp_path).read("a").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, "points to"),
        ({"weight_map": {"a": "/etc/passwd"}}, "points to"),
        ({"weight_map": {"a": "code.py"}}, "points to"),
    ],
)
def test_a_bad_index_is_one_clear_line(tmp_path: Path, content: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        StoredWeights(index(tmp_path, content))


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights; model\.safetensors"):
        StoredWeights(tmp_path)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.mark,))  # type: ignore[return-value]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    mark, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2), "b": Evil(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="nothing in it was run") as caught:
        StoredWeights(tmp_path)
    assert not mark.exists()
    assert "\n" not in str(caught.value)
    torch.load(path, weights_only=False)
    assert mark.exists()  # it would have been


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match="cannot be read as weights"):
        StoredWeights(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torn_bin_is_one_clear_line(tmp_path: Path, zipped: bool) -> None:
    state = {name: torch.ones(300) for name in "abc"}
    torch.save(state, tmp_path / "whole", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole").read_bytes()
    for length in (*range(30), *range(30, len(whole), 53), len(whole) - 1):
        (tmp_path / "pytorch_model.bin").write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read as weights") as caught:
            StoredWeights(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 3}, {"a": {"b": torch.ones(1)}}, {"a": torch.eye(3).to_sparse()}]
)
def test_a_bin_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="a dict of tensors is allowed"):
        StoredWeights(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_bins_of_old_and_new_torch_with_shared_and_strided_tensors(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(6.0).view(2, 3)
    state = {"a": base, "b": base, "t": base.t(), "p": torch.nn.Parameter(torch.ones(2).bfloat16())}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    stored = StoredWeights(tmp_path)
    for name, tensor in state.items():
        assert torch.equal(stored.read(name), tensor)
        stored.release(name)
    assert torch.equal(stored.read("b"), base)
    assert not stored.read("p").requires_grad


PEAK = """
import re, sys
from pathlib import Path
import torch
from oneroof.weights.stored import StoredWeights

status = lambda key: int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.save({"x": torch.ones(9)}, sys.argv[1] + "/warm", _use_new_zipfile_serialization=False)
torch.load(sys.argv[1] + "/warm", weights_only=True).popitem()[1].sum()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
stored = StoredWeights(Path(sys.argv[1]))
assert [float(stored.read(name).sum()) for name in stored.specs] == [i * 4e6 for i in range(5)]
print((status("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_of_old_bins_one_is_in_memory(tmp_path: Path) -> None:
    for i in range(5):
        path = tmp_path / f"pytorch_model-0000{i + 1}-of-00005.bin"
        torch.save({f"{i}": torch.full((4_000_000,), float(i))}, path, _use_new_zipfile_serialization=False)
    environment = os.environ | {"PYTHONPATH": str(Path(oneroof.__file__).parents[1])}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed goes back at once
    run = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 2 * 16_000_000  # of five files, one
