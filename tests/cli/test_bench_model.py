"""`oneroof bench model`: what it prints and writes, what it refuses, and what an interrupted run leaves."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from oneroof.bench import model as room
from oneroof.bench.measure import Round
from oneroof.cli.main import main
from oneroof.report import read

SMALL = ("--cases", "[[16,4],[30,3]]", "--batch-sizes", "1,3", "--rounds", "2", "--dtype", "float32")


@pytest.fixture(autouse=True)
def small_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory's rate is not what is tested here."""
    monkeypatch.setattr("oneroof.bench.floor._BLOCK", 1 << 22)


@pytest.fixture
def folder(checkpoint: Callable[..., Path]) -> str:
    return str(checkpoint("qwen2"))


def bench(*words: str) -> int:
    return main(["bench", "model", *words])


def rows_of(printed: str) -> list[list[str]]:
    """The table's rows, in words."""
    lines = printed.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    return [line.split() for line in lines[rule + 1 : lines.index("", rule)]]


def test_the_table_has_a_row_for_each_case_and_batch_size(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(folder, *SMALL) == 0
    caught = capsys.readouterr()
    rows = rows_of(caught.out)
    assert [row[:3] for row in rows if row[1] != "mean"] == [
        [batch, *case] for batch in ("1", "3") for case in (("16", "4"), ("30", "3"))
    ]
    assert [row[0] for row in rows if row[1] == "mean"] == ["1", "3"]
    assert max(len(line) for line in caught.out.splitlines()) <= 100
    assert caught.err.count("tokens/s)") == 4  # a line a row, while it works
    assert "float32" in caught.out and "paged engine, medians of 2 rounds" in caught.out


def test_records_csv_and_picture_tell_the_same(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    files = [tmp_path / name for name in ("a/records.jsonl", "a/table.csv", "a/picture.png")]
    words = [w for o, f in zip(("--output", "--csv", "--plot"), files, strict=True) for w in (o, str(f))]
    assert bench(folder, *SMALL, "--json", *words) == 0
    printed = capsys.readouterr().out.splitlines()
    stored = list(read(files[0]))
    assert [json.loads(line)["value"] for line in printed] == [one.value for one in stored]
    config = stored[0].config
    assert (config["dtype"], config["engine"], config["rounds"], config["page_size"]) == (
        *("float32", "paged", 2),
        16,
    )
    assert "max_batch" not in config and "max_model_len" not in config
    lines = list(csv.DictReader(files[1].open()))
    times = [one.value for one in stored if one.name == "total time" and one.config["statistic"] == "median"]
    assert [float(line["Total time(s)"]) for line in lines] == pytest.approx(times, rel=1e-5)
    assert {line["Model"] for line in lines} == {Path(folder).name}
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_the_plain_engine_can_be_measured(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(folder, *SMALL, "--engine", "plain") == 0
    assert "plain engine" in capsys.readouterr().out


def test_a_search_prints_each_probe_and_the_answer(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(llm: object, texts: Sequence[object], tokens: int, *, counted: bool) -> Round:
        return Round(total=1.0, prefill=0.5, step=len(texts) / 1e3, outside=0.1)

    monkeypatch.setattr(room, "measure", measured)
    words = ("--cases", "16,4", "--time-limit", "5.5", "--batch-range", "1,9", "--dtype", "float32")
    assert bench(folder, *words) == 0
    caught = capsys.readouterr()
    assert caught.out.splitlines()[-1] == "16+4: at most 5.5 ms a later token: batch 5 (5 ms)"
    probes = [line for line in caught.err.splitlines() if "ms a token" in line]
    assert [line.rsplit("; ")[-1] for line in probes] == ["quick enough", "too slow", "too slow"]
    assert bench(folder, *words, "--json") == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["name"], answer["value"], answer["config"]["limit ms"]) == ("largest batch", 5, 5.5)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_what_there_is_so_far_is_told_where_a_run_stops(
    folder: str,
    error: type[BaseException],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = 0
    real = room.measure

    def measured(llm: object, texts: object, tokens: int, *, counted: bool) -> Round:
        nonlocal calls
        calls += 1
        if calls == 8:  # within the third row
            raise error
        return real(llm, texts, tokens, counted=counted)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "measure", measured)
    assert bench(folder, *SMALL, "--csv", str(tmp_path / "a.csv")) == status
    caught = capsys.readouterr()
    assert "stopped on the way; rows so far: 2" in caught.err
    assert [row[:2] for row in rows_of(caught.out)] == [["1", "16"], ["1", "30"], ["1", "mean"]]
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "[[5]]"], "pairs of tokens in and tokens out"),
        (["--batch-sizes", "0"], "whole numbers of 1 or more"),
        (["--cases", "[[100,100]]"], "the case 100+100 has 200 tokens; 128 are allowed"),
        (["--max-model-len", "20", "--cases", "16,8"], "16+8 has 24 tokens; 20 are allowed"),
        (["--rounds", "0"], "--rounds 0 was given; 1 or more is allowed"),
        (["--warmup", "-1"], "--warmup -1 was given; 0 or more is allowed"),
        (["--time-limit", "0"], "more than 0 ms is allowed"),
        (["--time-limit", "nan"], "more than 0 ms is allowed"),
        (["--time-limit", "inf"], "more than 0 ms is allowed"),
        (["--csv", "a.txt", "--output", "./a.txt"], "--output, --csv and --plot name one file"),
        (["--batch-range", "1,2"], "it is allowed with --time-limit"),
        (["--time-limit", "9", "--batch-sizes", "4"], "--batch-range is allowed there"),
        (["--time-limit", "9", "--cases", "4,1"], "writes 1 token; --time-limit allows 2 or more"),
        (["--max-batch", "3"], "--batch-sizes is allowed here"),
        (["--plot", "a.gif"], ".png, .svg, .pdf are allowed; try a.png"),
        (["--csv", "/proc/none/a.csv"], "/proc/none/a.csv cannot be written"),
        (["--output", "."], "cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_the_weights_are_read(
    folder: str,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("oneroof.engine.llm.load", None)  # calling it would be a failure of ours
    assert bench(folder, *words) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    (line,) = caught.err.splitlines()
    assert line.startswith("oneroof: ") and said in line


def test_a_cache_too_small_for_the_batch_is_told(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--cases", "60,4", "--batch-sizes", "2,8", "--rounds", "1", "--dtype", "float32")
    assert bench(folder, *words, "--kv-memory", "0.0002") == 2  # pages of 16 positions and 16 KB each
    caught = capsys.readouterr()
    assert "batch 8 of 64 tokens each takes 32 pages of 16; 11 fit into the memory" in caught.err
    assert [row[:2] for row in rows_of(caught.out)] == [["2", "60"]]


def test_files_are_written_also_where_nobody_reads_the_output(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(text: str, *, flush: bool = False) -> None:
        raise KeyError("the reader")

    monkeypatch.setattr("oneroof.cli.outputs.print", gone, raising=False)
    files = [tmp_path / "a.jsonl", tmp_path / "a.csv"]
    assert bench(folder, *SMALL, "--output", str(files[0]), "--csv", str(files[1])) == 1
    assert all(file.read_text() for file in files)


def test_the_table_is_printed_also_where_a_file_fails(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(folder, *SMALL, "--csv", "/dev/full") == 2
    caught = capsys.readouterr()
    assert len(rows_of(caught.out)) == 6
    assert "/dev/full cannot be written (No space left on device)" in caught.err.splitlines()[-1]


def test_a_picture_without_matplotlib_is_refused(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    assert bench(folder, "--plot", "a.png") == 2
    assert "try pip install 'oneroof[plot]'" in capsys.readouterr().err


def test_a_check_that_a_file_can_be_written_leaves_nothing_behind(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(folder, "--csv", str(tmp_path / "a.csv"), "--rounds", "1", "--tp", "7") == 2
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
