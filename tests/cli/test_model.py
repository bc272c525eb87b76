"""The one way from options to a model: its threads, its log file, its trace, its last words."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from oneroof import log
from oneroof.cli import model as opening
from oneroof.cli.main import main
from oneroof.cli.model import check_lengths, load_llm, opened
from oneroof.cli.options import ModelOptions
from oneroof.engine.llm import LLM
from oneroof.engine.request import SamplingParams
from oneroof.errors import UserError
from oneroof.load import load

BESIDE = {"model", "adapter", "profile"}  # what LLM is not told
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="session")
def folder(checkpoint: Callable[..., Path]) -> str:
    return str(checkpoint("qwen2"))


def test_every_option_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        def __init__(self, model: str, **named: object) -> None:
            super().__init__()
            self.named = {"model": model, **named}

    def raising(model: str, **named: object) -> None:
        raise SeenError(model, **named)

    monkeypatch.setattr(opening, "LLM", raising)
    options = ModelOptions("here", dtype="float16", max_batch=3, kv_memory=0.5, seed=9, engine="plain")
    with pytest.raises(SeenError) as seen:
        load_llm(options)
    wanted = {field.name: getattr(options, field.name) for field in fields(options)}
    given = {name: value for name, value in seen.value.named.items() if name != "progress"}
    assert given == {name: value for name, value in wanted.items() if name not in BESIDE - {"model"}}


def test_what_this_version_does_not_serve_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--tp", "2", "--engine", "plain"], "--tp is 2, and engine is 'plain'; 1 is allowed there"),
        (["--quantization", "w3a3"], "none or w8a16 or w8a8-dynamic or w4a16 or w4a8-dynamic is"),
        (["--kv", "fa8"], "float or kv8 is allowed"),
        (["--execution", "graph"], "this version serves eager alone"),
        (["--adapter", "poet=here"], "--adapter poet=here was given; this version serves no adapters"),
    ):
        assert main(["generate", "/no/such/model", "--prompt", "a", *words]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_what_was_loaded_before_is_taken(folder: str) -> None:
    loaded = load(folder, device="cpu", dtype="float32")
    with load_llm(ModelOptions("/no/such/model", max_model_len=64), loaded) as llm:
        assert llm.loaded is loaded
        assert llm.context == 64


def test_the_last_words_tell_the_work_and_what_the_cache_did(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.start()
    options = ModelOptions(folder, dtype="float32", page_size=4, kv_memory=40 * 1024 / 1e9)  # few pages
    prompt = list(range(100, 109))
    with opened(options) as llm:
        llm.generate([prompt], GREEDY)
        llm.generate([prompt], GREEDY)
        llm.generate([[200 + i] * 4 for i in range(3)], replace(GREEDY, max_tokens=20))
        stats = llm.stats()
    line = capsys.readouterr().err.splitlines()[-1]
    assert stats.cached_tokens > 0 and stats.preemptions > 0
    assert re.fullmatch(
        r"oneroof: read \d+ tokens at [\d.]+ tokens/s, wrote 76 \(after the first at [\d.]+ tokens/s\), "
        rf"{stats.cached_tokens} tokens of prompts were cached, {stats.preemptions} preemptions",
        line,
    )


def test_nothing_is_told_of_no_work(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.start()
    for engine in ("paged", "plain"):
        with opened(ModelOptions(folder, dtype="float32", engine=engine)):  # type: ignore[arg-type]
            assert "oneroof: dtype" not in capsys.readouterr().err
    with opened(ModelOptions(folder, dtype="float32")) as llm:
        llm.generate("a", GREEDY)
        llm.close()  # as one does who has taken the weights
    assert "tokens/s" not in capsys.readouterr().err


def test_threads_are_bound_unless_it_is_switched_off(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[int] = []
    monkeypatch.setattr(opening, "bind_threads", lambda threads: f"{bound.append(threads)}")
    words = ["generate", folder, "--prompt", "a", "--max-tokens", "1", "--dtype", "float32", "--threads", "1"]
    assert main([*words, "--no-bind-cpu"]) == 0
    assert bound == []
    assert main(words) == 0
    assert bound == [1]


def test_a_log_goes_into_a_folder_with_all_details(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "new" / "logs"
    words = ["--prompt", "a", "--max-tokens", "2", "--dtype", "float32", "--log-dir", str(logs)]
    assert main(["generate", folder, *words]) == 0
    seen = [line.removeprefix("oneroof: ") for line in capsys.readouterr().err.splitlines()]
    assert main(["generate", folder, *words, "--max-model-len", "9999"]) == 2
    written = (logs / "rank0.log").read_text().splitlines()
    assert [path.name for path in logs.iterdir()] == ["rank0.log"]
    assert all(any(line.endswith(f" INFO {one}") for line in written) for one in seen)
    assert any("DEBUG threads" in line for line in written)
    assert "Generate(model=" in written[0]
    assert "--max-model-len 9999 was asked" in written[-1]
    assert main(["generate", folder, "--prompt", "a", "--max-tokens", "2", "--dtype", "float32"]) == 0
    assert len((logs / "rank0.log").read_text().splitlines()) == len(written)  # only where it was asked for


def test_a_failure_of_ours_is_in_the_log_as_a_whole(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(LLM, "stream", fails)
    words = ["--prompt", "a", "--dtype", "float32", "--log-dir", str(tmp_path)]
    assert main(["generate", folder, *words]) == 1
    assert "Traceback" in (tmp_path / "rank0.log").read_text()


def test_a_trace_is_written_also_of_a_run_that_fails(folder: str, tmp_path: Path) -> None:
    options = ModelOptions(folder, dtype="float32", profile=tmp_path / "new" / "traces")
    with pytest.raises(KeyError), opened(options) as llm:
        llm.generate("a", GREEDY)
        raise KeyError("lost")
    (path,) = (tmp_path / "new" / "traces").iterdir()
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert path.name.endswith("-rank0.json")
    assert any(str(name).startswith("aten::") for name in names)


@pytest.mark.parametrize("option", ["profile", "log_dir"])
def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_looked_for(
    tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("")
    options = ModelOptions("/no/such/model", **{option: tmp_path / "file" / "below"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be written"), opened(options):
        raise AssertionError("it was opened")


def test_only_texts_that_could_be_too_long_are_counted() -> None:
    counted: list[str] = []

    def tokens(text: str) -> int:
        counted.append(text)
        return 5 + len(text) // 2

    texts = [("one", "a" * 70, tokens), ("two", "a" * 90, tokens), ("three", "好" * 27, tokens)]
    check_lengths(texts, 100)
    assert counted == [".", "a" * 90, "好" * 27]
    with pytest.raises(UserError, match="four has 102 tokens; at most 100 are allowed"):
        check_lengths([*texts, ("four", "a" * 194, tokens)], 100)


@pytest.fixture(autouse=True)
def _no_file_of_another_test() -> None:
    assert not [h for h in logging.getLogger("oneroof").handlers if isinstance(h, logging.FileHandler)]
