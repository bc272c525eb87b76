"""The command `plan` as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from oneroof.cli.main import main

STATED = ["--device", "npu", "--device-memory", "64", "--bandwidth", "1200", "--arithmetic", "200"]


def test_the_demo_is_planned_for_this_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("demo: 5.") and "\ntake one rank: it fits;" in said
    assert max(map(len, said.splitlines())) <= 110


def test_json_tells_every_rank(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", "demo", *STATED, "--devices", "4", "--train", "--json", "--output", str(file)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(file.read_text(encoding="utf-8"))
    assert said["recommended"].keys() == {"dp", "pp", "tp", "ep"} and said["remedies"] == []
    for layout in said["layouts"]:
        assert layout["dp"] * layout["pp"] * layout["tp"] == 4
        assert sum(rank["alike"] for rank in layout["ranks"]) == layout["pp"] * layout["tp"]
        for rank in layout["ranks"]:
            assert sum(rank["parts"].values()) == rank["weights"]
            assert rank["bytes"] == rank["weights"] + rank["cache"] + rank["activations"]
    assert said["parameters"]["total"] == sum(
        count for part, count in said["parameters"].items() if part not in ("total", "active")
    )
    assert len(said["training"]) == len(said["layouts"])


def test_what_does_not_fit_is_told_with_what_would(capsys: pytest.CaptureFixture[str], shared: Path) -> None:
    model = str(shared / "data" / "configs" / "Qwen2.5-72B")
    assert main(["plan", model, *STATED, "--devices", "2"]) == 0
    said = capsys.readouterr().out
    assert "nothing fits" in said and "--devices 4" in said and "--quantization w8a16" in said
    assert main(["plan", model, *STATED, "--devices", "4"]) == 0
    assert "take tp 4" in capsys.readouterr().out


def test_published_models_are_planned(capsys: pytest.CaptureFixture[str], shared: Path) -> None:
    for folder in sorted((shared / "data" / "configs").iterdir()):
        if (folder / "config.json").exists():
            assert main(["plan", str(folder), *STATED, "--devices", "16", "--link", "50", "--json"]) == 0
            said = json.loads(capsys.readouterr().out)
            assert said["recommended"], folder
            speeds = [layout["decode_tokens_per_s"] for layout in said["layouts"] if layout["fits"]]
            assert speeds[1:] == sorted(speeds[1:], reverse=True) and speeds[0] >= 0.98 * max(speeds)


@pytest.mark.parametrize(
    "words",
    [
        ["--devices", "0"],
        ["--devices", "5000"],
        ["--batch", "0"],
        ["--context", "100000"],
        ["--device-memory", "-1"],
        ["--bandwidth", "nan"],
        ["--link", "0"],
        ["--device", "npu"],
        ["--tp", "5"],
        ["--tp", "2", "--devices", "3"],
        ["--ep", "3", "--tp", "4"],
        ["--quantization", "w2"],
        ["--page-size", "x"],
        ["--output", "/proc/none/plan.json"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    given = ["plan", "demo", *([] if "--device" in words else STATED), *words]
    if "--device-memory" in words:
        given = ["plan", "demo", *words]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"oneroof: [^\n]+;[^\n]+;[^\n]+\n", said), said


def test_a_folder_without_config_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
