"""`oneroof score`: a reranker's scores as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from oneroof import LLM
from oneroof.cli.main import main

Rows = list[dict[str, object]]
Score = Callable[..., Rows]
QUERY = "who sang"
DOCUMENTS = ["the king sang", "the dog jumps", "你好"]


@pytest.fixture(scope="session")
def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3", max_position_embeddings=1024)


@pytest.fixture
def score(folder: Path, capsys: pytest.CaptureFixture[str]) -> Score:
    def run(*words: str) -> Rows:
        status = main(["score", str(folder), "--dtype", "float32", *words])
        caught = capsys.readouterr()
        assert status == 0, caught.err
        return [json.loads(line) for line in caught.out.splitlines()]

    return run


def given(*documents: str) -> list[str]:
    return [word for document in documents for word in ("--document", document)]


def test_records_are_those_of_the_library(folder: Path, score: Score) -> None:
    rows = score("--query", QUERY, *given(*DOCUMENTS))
    told = score("--query", QUERY, *given(*DOCUMENTS), "--instruction", "Find songs")
    with LLM(folder, dtype="float32", device="cpu") as llm:
        expected = llm.score(QUERY, DOCUMENTS)
        expected_told = llm.score(QUERY, DOCUMENTS, instruction="Find songs")
    assert [list(row) for row in rows] == [["index", "query", "document", "score"]] * 3
    assert [(row["index"], row["query"], row["document"]) for row in rows] == [
        (i, QUERY, document) for i, document in enumerate(DOCUMENTS)
    ]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert [row["score"] for row in told] == pytest.approx(expected_told, abs=1e-5)
    assert expected != expected_told


def test_documents_of_a_file_may_bring_their_own_query(score: Score, tmp_path: Path) -> None:
    lines, objects = tmp_path / "documents.txt", tmp_path / "documents.jsonl"
    lines.write_text("the king sang\nthe dog jumps\n")
    pairs = [(QUERY, "the king sang"), ("who jumps", "the dog jumps"), (QUERY, "the dog jumps")]
    first, second, third = pairs
    objects.write_text(
        f"{json.dumps({'document': first[1]})}\n{json.dumps({'query': second[0], 'document': second[1]})}\n"
        f"{json.dumps({'document': third[1]})}\n"
    )
    rows = score("--query", QUERY, "--documents-file", str(objects))
    assert [(row["query"], row["document"]) for row in rows] == pairs
    plain = score("--query", QUERY, "--documents-file", str(lines))
    own = score("--query", "who jumps", *given("the dog jumps"))
    assert rows[0]["score"] == pytest.approx(plain[0]["score"], abs=1e-5)
    assert rows[1]["score"] == pytest.approx(own[0]["score"], abs=1e-5)
    assert rows[2]["score"] == pytest.approx(plain[1]["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--query", "a"], "there is no document"),
        (["--document", "a"], "document 0 has no query; --query is needed"),
        (["--query", "", "--document", "a"], "the query of document 0 is empty"),
        (["--query", "a", "--document", ""], "document 0 is empty"),
        (["--query", "a", "--document", "b", "--document", "fox " * 1500], "document 1 has "),
        (["--query", "fox " * 1500, "--document", "b"], "document 0 has "),
    ],
)
def test_one_line_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["score", str(folder), "--dtype", "float32", *words]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert said in caught.err.splitlines()[-1]


def test_a_model_that_is_no_reranker_is_told(
    checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(checkpoint("ernie4_5")), "--query", "a", "--document", "b"]) == 2
    assert "rerankers need" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_goes_on_from_its_journal(score: Score, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    words = ["--query", QUERY, *given(*DOCUMENTS), "--output", str(path)]
    whole = score(*words)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert [row["index"] for row in score(*words)] == [0, 1, 2]
    again = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in whole], abs=1e-5)
