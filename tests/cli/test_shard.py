"""The commands `shard` and `merge` from words to folders, and their failures as status 2 and one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Checkpoint
from ranks_on_disk import assert_same, digests, put_together, stored
from safetensors.torch import save_file

import oneroof
from oneroof.cli.main import main


def test_a_model_is_cut_cut_again_and_joined(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint("qwen3_moe")
    two, four, whole = (str(tmp_path / name) for name in ("two", "four", "whole"))
    assert main(["shard", str(folder), two, "--tp", "2"]) == 0
    assert main(["shard", two, four, "--pp", "2", "--ep", "2", "--standalone"]) == 0
    assert main(["merge", four, whole, "--max-shard-size", "0.0002"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == ""
    layout = json.loads((tmp_path / "four" / "layout.json").read_text())
    assert (layout["version"], layout["tp"], layout["pp"], layout["ep"]) == (1, 2, 2, 2)
    assert_same(put_together(tmp_path / "two"), stored(folder))
    assert_same(stored(tmp_path / "whole"), stored(folder))
    assert len(list((tmp_path / "whole").glob("model-*.safetensors"))) > 1


def test_given_again_it_says_that_nothing_is_left_to_do(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = ["shard", str(checkpoint("qwen2")), str(tmp_path / "cut"), "--tp", "2"]
    join = ["merge", str(tmp_path / "cut"), str(tmp_path / "whole")]
    for words in (cut, join):
        assert main(words) == 0
        assert capsys.readouterr().err == ""
        assert main(words) == 0
        assert "is complete already, of the same source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["shard", "MODEL", "OUT"], "one rank was asked for; 2 or more are allowed; give --tp, --pp or --ep"),
        (["shard", "MODEL", "OUT", "--tp", "0"], "--tp is 0; 1 or more is allowed"),
        (["shard", "MODEL", "OUT", "--pp", "-1"], "--pp is -1; 1 or more is allowed"),
        (["shard", "MODEL", "OUT", "--tp", "two"], "--tp"),
        (["shard", "MODEL", "OUT", "--tp", "64"], "tp is 64; 1, 2, 3, 4 can be"),
        (["shard", "MODEL", "OUT", "--ep", "2"], "the model has no experts"),
        (["shard", "MODEL", "MODEL", "--tp", "2"], "lies in it; a folder elsewhere is allowed"),
        (["shard", "MODEL", "FULL", "--tp", "2"], "holds mine.txt, which is not of this command"),
        (["shard", "MODEL", "/proc/x", "--tp", "2"], "/proc/x cannot be written (No such file or directory)"),
        (["shard", "nowhere", "OUT", "--tp", "2"], "is not a folder"),
        (["shard", "EMPTY", "OUT", "--tp", "2"], "has no config.json"),
        (["shard", "MODEL", "--tp", "2"], "OUT"),
        (["merge", "MODEL", "OUT"], "has no layout.json; a folder that `shard` wrote is allowed"),
        (["merge", "MODEL", "OUT", "--max-shard-size", "0"], "more than 0 GB"),
    ],
)
def test_a_wrong_word_is_status_2_and_one_line(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = digests(tmp_path / "full")
    place = {
        "MODEL": str(checkpoint("qwen2")),
        "OUT": str(tmp_path / "out"),
        "FULL": str(tmp_path / "full"),
        "EMPTY": str(tmp_path / "empty"),
        "nowhere": str(tmp_path / "nowhere"),
    }
    assert main([place.get(word, word) for word in words]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert digests(tmp_path / "full") == before


@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on_and_does(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for path in checkpoint("qwen2").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    # what the model leaves out is kept, so it takes some time
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(25_000_000) for i in range(4)}
    save_file(extra | stored(folder), folder / "model.safetensors")
    run = [sys.executable, "-m", "oneroof", "shard", str(folder), str(tmp_path / "out"), "--tp", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(oneroof.__file__).parents[1])}
    process = subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("out/rank_0/.model.safetensors.part")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines() == [
        "oneroof: what is written stays; the same command goes on with it",
        "",
        "oneroof: interrupted",
    ]
    ran = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "was begun before" in ran.stderr
    assert_same(put_together(tmp_path / "out"), stored(folder))
