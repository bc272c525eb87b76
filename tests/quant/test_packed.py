"""The file of packed weights: the next start is the same to the bit, and nothing stale or torn is ever
read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from native_kernels import with_kernels

from oneroof import load
from oneroof.export.ranks import shard
from oneroof.layout import Grid
from oneroof.load import Loaded

PROMPT = [[1, 2, 3, 4, 5, 6, 7]]

pytestmark = with_kernels


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint of one's own, to write beside."""
    return Path(shutil.copytree(checkpoint("qwen3_moe", dtype="bfloat16"), tmp_path / "model"))


def again(folder: Path, quantization: str | None = None) -> Loaded:
    return load(folder, device="cpu", quantization=quantization, packed_cache=True)


def kept(folder: Path) -> list[Path]:
    return sorted((folder / ".oneroof").glob("*.packed"))


@pytest.mark.parametrize("quantization", [None, "w8a16", "w8a8-dynamic", "w4a16", "w4a8-dynamic"])
def test_the_second_start_is_the_first_to_the_bit(folder: Path, quantization: str | None) -> None:
    expected = load(folder, device="cpu", quantization=quantization).logits(PROMPT)[0]
    first = again(folder, quantization).logits(PROMPT)[0]
    (written,) = kept(folder)
    before = written.stat().st_mtime_ns
    second = again(folder, quantization).logits(PROMPT)[0]
    assert torch.equal(expected, first) and torch.equal(first, second)
    assert written.stat().st_mtime_ns == before


def test_the_second_start_reads_no_weight_of_the_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(folder)

    def read(self: object, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("oneroof.weights.stored.StoredWeights.read", read)
    again(folder).logits(PROMPT)


def test_other_content_is_packed_anew_and_the_old_file_goes(folder: Path) -> None:
    old = again(folder).logits(PROMPT)[0]
    (before,) = kept(folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40  # of the last number's highest byte but one bit
    path.write_bytes(data)
    new = again(folder).logits(PROMPT)[0]
    assert not torch.equal(old, new)
    assert len(kept(folder)) == 1 and kept(folder) != [before]
    assert torch.equal(new, load(folder, device="cpu").logits(PROMPT)[0])


def test_a_touched_file_with_the_same_content_is_the_same(folder: Path) -> None:
    again(folder)
    (before,) = kept(folder)
    (folder / "model.safetensors").touch()
    again(folder)
    assert kept(folder) == [before]


@pytest.mark.parametrize("harm", ["torn", "foreign", "digests"])
def test_a_damaged_file_is_written_anew(folder: Path, harm: str) -> None:
    expected = again(folder).logits(PROMPT)[0]
    (path,) = kept(folder)
    if harm == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "foreign":
        path.write_bytes(b"something else")
    else:
        (folder / ".oneroof" / "digests.json").write_text(json.dumps({"model.safetensors": 5}) + "{")
    assert torch.equal(again(folder).logits(PROMPT)[0], expected)
    assert torch.equal(again(folder).logits(PROMPT)[0], expected)


def test_a_folder_that_cannot_be_written_is_no_failure(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / ".oneroof").write_text("a file in the way")
    again(folder).logits(PROMPT)
    assert "keeps no packed weights" in caplog.text


def test_of_a_sharded_folder_the_file_of_every_rank_counts(folder: Path, tmp_path: Path) -> None:
    expected = load(folder, device="cpu").logits(PROMPT)[0]
    shard(folder, tmp_path / "cut", Grid(tp=2))
    assert torch.equal(again(tmp_path / "cut").logits(PROMPT)[0], expected)
    for rank in range(2):
        path = tmp_path / "cut" / f"rank_{rank}" / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-2] ^= 0x40
        path.write_bytes(data)
        before = expected
        expected = load(tmp_path / "cut", device="cpu").logits(PROMPT)[0]
        assert not torch.equal(before, expected)
        assert torch.equal(again(tmp_path / "cut").logits(PROMPT)[0], expected)
