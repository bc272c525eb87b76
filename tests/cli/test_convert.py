"""The command `convert` from words to folder, and its failures as status 2 and one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Checkpoint

from oneroof.cli.main import main
from oneroof.tensorfile import TensorFile


def test_convert_writes_a_folder_and_says_what_is_lost(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["convert", str(checkpoint("qwen1")), str(out), "--to", "qwen2", "--dtype", "bfloat16"]
    assert main([*words, "--max-shard-size", "0.0001"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "dynamic NTK and logn attention are lost" in said.err
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {str(spec.dtype) for spec in TensorFile(shards[0]).specs.values()} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["MODEL", "MODEL"], "is there already"),
        (["MODEL", "OUT", "--max-shard-size", "0"], "more than 0 GB"),
        (["MODEL", "OUT", "--to", "qwen3"], "qwen2"),
        (["MODEL", "OUT", "--dtype", "int8"], "bfloat16"),
        (["MODEL"], "OUT"),
        (["nowhere", "OUT"], "is not a folder"),
    ],
)
def test_a_wrong_word_is_status_2_and_one_line(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    place = {
        "MODEL": str(checkpoint("qwen2")),
        "OUT": str(tmp_path / "out"),
        "nowhere": str(tmp_path / "nowhere"),
    }
    assert main(["convert", *(place.get(word, word) for word in words)]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
