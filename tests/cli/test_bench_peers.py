"""`oneroof bench peers`: what it prints and writes, whom it leaves out and why, what a stop leaves."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peer_results import READING, standin

from oneroof.bench.peers import findings as room
from oneroof.bench.peers.contest import Contest
from oneroof.cli.main import main
from oneroof.report import read

SMALL = ("--prompts", "16,8", "--batch-sizes", "[[1,2],[1]]", "--tokens", "4", "--rounds", "2")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory's rate is not what is tested here, nor is this machine quiet."""
    monkeypatch.setattr("oneroof.bench.peers.probes.read", lambda: READING)
    monkeypatch.setattr("oneroof.bench.peers.contest.QUIET", 1e9)


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers without models: ours is twice as fast as another, one fails, one refuses."""
    there = {
        "oneroof": standin("oneroof", bf16=("10",), int8=("5",)),
        "llama.cpp": standin("llama.cpp", converts=True, bf16=("20",), int8=("10",)),
        "openvino": standin("openvino", int8=("30", "raise")),
        "ctranslate2": standin("ctranslate2", int8=("refuse",)),
    }
    for place in ("oneroof.bench.peers.roster.PEERS", "oneroof.cli.bench_peers.PEERS"):
        monkeypatch.setattr(place, there)


@pytest.fixture
def folder(checkpoint: Callable[..., Path]) -> str:
    return str(checkpoint("qwen2"))


def bench(*words: str) -> int:
    return main(["bench", "peers", *words])


@pytest.mark.usefixtures("standins")
def test_one_run_gives_a_table_with_ratios_and_reasons(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    files = [tmp_path / name for name in ("a/records.jsonl", "a/table.csv", "a/picture.png")]
    words = [w for o, f in zip(("--output", "--csv", "--plot"), files, strict=True) for w in (o, str(f))]
    assert bench("--models", folder, *SMALL, "--threads", "1", "--work", str(tmp_path / "work"), *words) == 0
    caught = capsys.readouterr()
    lines = caught.out.splitlines()
    assert not [line for line in lines if len(line) > 100 and folder not in line]
    assert lines[0].endswith(", 1 threads")
    assert lines[1].startswith("medians of 2 interleaved rounds, 4 tokens written, commit ")
    assert "  1 x 16, 16 bits, decode: 2.00 (oneroof 10 / llama.cpp 20)" in lines
    assert "  2 x 16, 8 bits, prefill: 2.00 (oneroof 5 / llama.cpp 10)" in lines
    assert "left out: ctranslate2 refuse: runs no qwen2" in lines
    assert "stopped: openvino raise: RuntimeError: no more memory" in lines
    assert "stopped on the way" not in caught.err
    stored = list(read(files[0]))
    assert {one.config["threads"] for one in stored} == {1}
    rows = list(csv.DictReader(files[1].open()))
    assert [row["batch"] + row["in"] for row in rows] == ["18"] * 5 + ["116"] * 6 + ["216"] * 5
    assert {row["model"] for row in rows} == {folder}
    assert files[2].read_bytes().startswith(b"\x89PNG")
    kept = [path.name for path in (tmp_path / "work").rglob("*") if path.is_dir()]
    assert "llama.cpp-10" in kept and "weights-0" not in kept  # the model has weights of its own


@pytest.mark.usefixtures("standins")
def test_weights_are_drawn_once_where_a_model_has_none(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    words = ("--models", str(bare), *SMALL, "--work", str(tmp_path / "work"), "--peers", "llama.cpp")
    assert bench(*words, "--json") == 0
    (weights,) = (tmp_path / "work").rglob("weights-0")
    written = (weights / "model.safetensors").stat()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in weights.iterdir()}
    assert bench(*words) == 0
    assert (weights / "model.safetensors").stat() == written
    assert len([*(tmp_path / "work").rglob("conversions")]) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {one["name"] for one in told} >= {"prefill throughput", "decode throughput", "peak memory"}


def test_oneroof_itself_runs_in_its_process(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--models", folder, "--prompts", "8", "--batch-sizes", "2", "--tokens", "4", "--rounds", "1")
    assert bench(*words, "--peers", "oneroof", "--precisions", "fp32", "--csv", str(tmp_path / "a.csv")) == 0
    (row,) = csv.DictReader((tmp_path / "a.csv").open())
    assert (row["peer"], row["form"], row["bits"]) == ("oneroof", "float32", "32")
    assert float(row["decode tokens/s"]) > 0 and float(row["peak MB"]) > 50


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_what_there_is_so_far_is_told_where_a_run_stops(
    folder: str,
    error: type[BaseException],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = Contest._once, 0

    def once(self: Contest, *words: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return real(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Contest, "_once", once)
    assert bench("--models", folder, *SMALL, "--precisions", "int8", "--peers", "oneroof,llama.cpp") == status
    caught = capsys.readouterr()
    assert "stopped on the way; turns so far: 2" in caught.err
    assert "  1 x 16, 8 bits, decode: 2.00 (oneroof 5 / llama.cpp 10)" in caught.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--peers", "vllm"], "--peers 'vllm' was given; oneroof, llama.cpp"),
        (["--peers", ","], "--peers '' was given"),
        (["--precisions", "int3"], "--precisions 'int3' was given; fp32, bf16, f16, int8, int4 are allowed"),
        (["--peers", "ctranslate2", "--precisions", "int4"], "none of ctranslate2 has int4"),
        (["--models", "no-such"], "the model no-such was given"),
        (["--models", "no-such"], "qwen2.5-0.5b, qwen3-0.6b, qwen3-moe-0.7b, ernie-moe-0.6b"),
        (["--models", "."], "has no config.json"),
        (["--prompts", "0"], "--prompts '0' was given"),
        (["--prompts", "128"], "has 2 lists for 1 cases"),
        (["--prompts", "40000", "--batch-sizes", "1"], "32768 are allowed; shorten them"),
        (["--tokens", "1"], "--tokens 1 was given; 2 or more is allowed"),
        (["--rounds", "0"], "--rounds 0 was given; 1 or more is allowed"),
        (["--threads", "0"], "--threads 0 was given; 1 or more is allowed"),
        (["--time-limit", "0"], "--time-limit 0 was given; more than 0 s is allowed"),
        (["--python", "/no/python"], "--python /no/python was given"),
        (["--python", "vllm=python"], "--python 'vllm' was given"),
        (["--work", "/proc/none"], "--work /proc/none cannot be made"),
        (["--plot", "a.gif"], ".png, .svg, .pdf are allowed; try a.png"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_made(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "prepare", None)  # calling it would be a failure of ours
    assert bench(*words) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    (line,) = caught.err.splitlines()
    assert line.startswith("oneroof: ") and said in line


@pytest.mark.usefixtures("standins")
def test_a_peer_has_the_python_that_is_named_for_it(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "python"
    asked.write_text(f'#!/bin/sh\necho asked >> {tmp_path}/said\nexec {sys.executable} "$@"\n')
    asked.chmod(0o755)
    words = (
        "--models",
        folder,
        *SMALL,
        "--rounds",
        "1",
        "--precisions",
        "int8",
        "--peers",
        "oneroof,llama.cpp",
    )
    assert bench(*words, "--python", f"llama.cpp={asked}") == 0
    assert (tmp_path / "said").read_text() == "asked\n" * 3  # to look, to convert, for its turn
    assert "llama.cpp 10" in capsys.readouterr().out
