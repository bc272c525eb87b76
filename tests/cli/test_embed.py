"""`oneroof embed`: vectors as JSON lines, and a journal that an interrupted run goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from oneroof import LLM
from oneroof.cli.embed import shortened
from oneroof.cli.main import main

Rows = list[dict[str, object]]
Embed = Callable[..., Rows]
TEXTS = ["the quick brown fox", "你好 世界", "the king sang"]


@pytest.fixture(scope="session")
def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_embedding")


@pytest.fixture
def embed(folder: Path, capsys: pytest.CaptureFixture[str]) -> Embed:
    def run(*words: str) -> Rows:
        status = main(["embed", str(folder), "--dtype", "float32", *words])
        caught = capsys.readouterr()
        assert status == 0, caught.err
        return [json.loads(line) for line in caught.out.splitlines()]

    return run


def given(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--text", text)]


def test_records_are_those_of_the_library(folder: Path, embed: Embed) -> None:
    rows = embed(*given(*TEXTS))
    with LLM(folder, dtype="float32", device="cpu") as llm:
        expected = llm.embed(TEXTS)
    assert [(row["index"], row["text"]) for row in rows] == list(enumerate(TEXTS))
    assert all(set(row) == {"index", "text", "embedding"} for row in rows)
    for row, vector in zip(rows, expected, strict=True):
        assert row["embedding"] == pytest.approx(vector, abs=1e-6)


def test_the_engines_give_the_same(embed: Embed) -> None:
    for one, other in zip(embed(*given(*TEXTS)), embed(*given(*TEXTS), "--engine", "plain"), strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-5)


def test_instructions_and_prompts_are_handed_on(folder: Path, embed: Embed) -> None:
    with LLM(folder, dtype="float32", device="cpu") as llm:
        told, named = llm.embed("fox", instruction="Find it"), llm.embed("fox", prompt="query")
    assert embed("--text", "fox", "--instruction", "Find it")[0]["embedding"] == pytest.approx(
        told[0], abs=1e-6
    )
    assert embed("--text", "fox", "--prompt-name", "query")[0]["embedding"] == pytest.approx(
        named[0], abs=1e-6
    )
    assert told != named


def test_fewer_dimensions_are_the_first_ones_brought_to_length_1(embed: Embed) -> None:
    (whole,), (cut,) = embed("--text", "fox"), embed("--text", "fox", "--dimensions", "5")
    long, short = whole["embedding"], cut["embedding"]
    assert isinstance(long, list) and isinstance(short, list)
    assert len(short) == 5
    assert math.hypot(*short) == pytest.approx(1.0, abs=1e-6)
    scale = math.hypot(*long[:5])
    assert short == pytest.approx([value / scale for value in long[:5]], abs=1e-6)


def test_a_vector_of_nothing_stays_one() -> None:
    assert shortened([0.0, 0.0, 1.0], 2) == [0.0, 0.0]
    assert shortened([0.1234567890123], None) == [0.123456789]


def test_texts_come_from_files_and_from_standard_input(
    embed: Embed, tmp_path: Path, pipe: Callable[[bytes], None]
) -> None:
    lines, objects = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    lines.write_bytes("\ufefffox\r\nthe dog\n".encode())  # as Windows writes it
    objects.write_text('{"text": "fox"}\n{"text": "two\\nlines"}\n')
    pipe(b"fox\n")
    rows = embed("--text", "-", "--texts-file", str(lines))
    assert [row["text"] for row in rows] == ["fox", "fox", "the dog"]
    assert rows[0]["embedding"] == pytest.approx(rows[1]["embedding"], abs=1e-5)
    assert [row["text"] for row in embed("--texts-file", str(objects))] == ["fox", "two\nlines"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no text"),
        (["--text", ""], "text 0 is empty"),
        (["--text", "\udcff"], "text 0 is not UTF-8"),
        (["--texts-file", "/nowhere"], "/nowhere cannot be read"),
        (["--text", "a", "--instruction", "b", "--prompt-name", "c"], "one of them is allowed"),
        (["--text", "a", "--prompt-name", "c"], "prompt 'c' is unknown"),
        (["--text", "a", "--dimensions", "0"], "--dimensions 0 was given; 1 or more"),
        (["--text", "a", "--dimensions", "65"], "--dimensions 65 was given; 1 to 64 are allowed"),
        (["--text", "a", "--text", "fox " * 200], " tokens; at most 128 are allowed; cut it into parts"),
        (["--text", "a", "--output", "/nowhere/out.jsonl"], "/nowhere/out.jsonl cannot be written"),
    ],
)
def test_one_line_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["embed", str(folder), "--dtype", "float32", *words]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert said in caught.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no JSON"),
        ('["fox"]', "no JSON object; one with text is allowed"),
        ("{}", "has no text"),
        ('{"text": 5}', "has a text that is no text"),
        ('{"text": "a", "prompt": "b"}', "has 'prompt'; text is allowed"),
        ('{"text": ""}', "is empty"),
        ('{"text": "%s"}' % ("fox " * 200), " tokens; at most 128 are allowed"),
    ],
)
def test_a_wrong_line_of_a_file_is_named_before_any_is_worked_on(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "texts.jsonl"
    good = json.dumps({"text": "x" * 50})
    file.write_text("\n".join([*[good] * 1000, line, good]))
    assert main(["embed", str(folder), "--dtype", "float32", "--texts-file", str(file)]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert f"{file} line 1001 " in caught.err
    assert said in caught.err.splitlines()[-1]


def test_a_run_goes_on_from_its_journal(
    folder: Path, embed: Embed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    words = [*given(*TEXTS), "--output", str(path)]
    whole = embed(*words)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # it was killed within the second record
    assert embed(*words) == whole
    assert path.read_bytes().splitlines(keepends=True) == lines
    assert embed(*words, "--max-batch-tokens", "7") == whole  # nothing is left to do, and speed is no fact
    assert main(["embed", str(folder), "--dtype", "float32", *words, "--dimensions", "5"]) == 2
    assert "another model, options or prompts" in capsys.readouterr().err
