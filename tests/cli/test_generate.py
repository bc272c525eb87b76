"""`oneroof generate`: what it prints, what it refuses, and that kill -9 loses nothing that was finished."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oneroof.cli.main import main
from oneroof.cli.records import record
from oneroof.engine.request import Completion, Logprob, Output

Made = list[dict[str, object]]
Generate = Callable[..., Made]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def folder(checkpoint: Callable[..., Path]) -> str:
    return str(checkpoint("qwen2"))


@pytest.fixture
def generate(folder: str, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Run the command with --json; its records."""

    def run(*words: str) -> Made:
        status = main(["generate", folder, "--json", "--dtype", "float32", *words])
        caught = capsys.readouterr()
        assert status == 0, caught.err
        assert "tokens/s" in caught.err or "--output" in words
        return [json.loads(line) for line in caught.out.splitlines()]

    return run


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that ends with status 2."""
    assert main(["generate", *words]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    line = caught.err.splitlines()[-1]
    assert line.startswith("oneroof: ")
    assert "Traceback" not in caught.err
    return line


def test_records_have_the_fixed_names(generate: Generate) -> None:
    one, two = generate("--prompt", "hello", "--prompt", "other", "--max-tokens", "5", "--ignore-eos")
    names = ("index", "prompt", "text", "token_ids", "completion_tokens", "finish_reason", "prompt_tokens")
    assert set(one) == set(two) == set(names)
    assert (one["index"], one["prompt"], two["index"], two["prompt"]) == (0, "hello", 1, "other")
    assert (one["completion_tokens"], one["finish_reason"]) == (5, "length")
    assert isinstance(one["token_ids"], list)
    assert len(one["token_ids"]) == 5


def test_what_was_asked_for_besides_is_there(generate: Generate) -> None:
    (one,) = generate(
        "--prompt", "hello", "--max-tokens", "3", "--logprobs", "2", "--prompt-logprobs", "1", "--n", "2"
    )
    completions, ids = one["completions"], one["token_ids"]
    assert isinstance(completions, list)
    assert isinstance(ids, list)
    assert [len(one["logprobs"]), len(completions)] == [len(ids), 2]  # type: ignore[arg-type]
    assert completions[0]["token_ids"] == ids
    assert one["prompt_logprobs"][0] is None  # type: ignore[index]
    place = one["logprobs"][0]  # type: ignore[index]
    assert place["token_id"] == ids[0]
    assert [share["rank"] for share in place["top"]][:2] == [1, 2]


def test_plain_text_is_streamed_for_one_prompt_and_headed_for_several(
    folder: str, generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = generate("--prompt", "hello", "--max-tokens", "8")
    common = ["generate", folder, "--dtype", "float32", "--max-tokens", "8", "--prompt", "hello"]
    assert main(common) == 0
    assert capsys.readouterr().out == f"{one['text']}\n"
    assert main([*common, "--prompt", "hello\nagain"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"[0] hello\n{one['text']}\n[1] hello again\n")


def test_prompts_come_from_files_and_from_standard_input(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("hello\nother\n")
    objects = tmp_path / "prompts.jsonl"
    talk = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "ignore_eos": True}
    objects.write_text(f"{json.dumps({'prompt': 'hello', 'temperature': 0})}\n{json.dumps(talk)}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    typed = generate("--prompt", "-", "--prompts-file", str(lines), "--max-tokens", "4")
    assert [one["prompt"] for one in typed] == ["hello", "hello", "other"]
    told = generate("--prompts-file", str(objects), "--max-tokens", "4")
    assert (
        told[0]["token_ids"]
        == generate("--prompt", "hello", "--temperature", "0", "--max-tokens", "4")[0]["token_ids"]
    )
    assert (told[1]["prompt"], told[1]["completion_tokens"]) == (talk["messages"], 2)


def test_chat_goes_through_the_template(generate: Generate, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    file.write_text(json.dumps({"messages": talk}))
    (asked,) = generate("--chat", "--system", "Be brief.", "--prompt", "hello", "--max-tokens", "6")
    (told,) = generate("--prompts-file", str(file), "--max-tokens", "6")
    (plain,) = generate("--prompt", "hello", "--max-tokens", "6")
    assert (asked["token_ids"], asked["prompt_tokens"]) == (told["token_ids"], told["prompt_tokens"])
    assert asked["prompt_tokens"] != plain["prompt_tokens"]


def test_the_seed_of_a_prompt_is_the_commands_and_its_number(generate: Generate) -> None:
    hot = ("--temperature", "2", "--top-k", "0", "--top-p", "1", "--max-tokens", "12", "--ignore-eos")
    both = generate("--prompt", "a", "--prompt", "b", "--seed", "5", *hot)
    (alone,) = generate("--prompt", "b", "--seed", "6", *hot)
    (other,) = generate("--prompt", "b", "--seed", "7", *hot)
    assert both[1]["token_ids"] == alone["token_ids"] != other["token_ids"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no prompt"),
        (["--prompt", ""], "prompt 0 is empty"),
        (["--prompt", "\udcff"], "prompt 0 is not UTF-8"),
        (["--prompt", "a" * 500], "at most 127 are allowed"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "a", "--temperature", "nan"], "temperature is nan"),
        (["--prompt", "a", "--top-p", "0"], "--top-p is 0"),
        (["--prompt", "a", "--n", "0"], "--n is 0"),
        (
            ["--prompt", "a", "--max-tokens", "0"],
            "0; a whole number at least 1 is allowed; leave it out",
        ),
        (
            ["--prompt", "a", "--logprobs", "-1", "--json"],
            "-1; a whole number at least 0 is allowed; leave it out",
        ),
        (["--prompt", "a", "--logprobs", "2"], "--logprobs is told in JSON alone"),
        (["--prompt", "a", "--prompt-logprobs", "2"], "--prompt-logprobs is told in JSON alone"),
        (["--prompt", "a", "--chat", "--system", "a\udcff"], "--system is not UTF-8"),
        (["--prompt", "a", "--chat", "--switch", "b=\udcff"], "--switch b is not UTF-8"),
        (["hello"], "'hello' is left over; MODEL is allowed; try --prompt 'hello'"),
        (["--prompt", "a", "--output", "/dev/full"], "/dev/full is no regular file"),
        (["--prompt", "a", "--stop", ""], "stop is"),
        (["--prompt", "a", "--stop-token-ids", "9999"], "9999"),
        (["--prompt", "a", "--system", "b"], "--system is for --chat"),
        (["--prompt", "a", "--switch", "x"], "--switch x"),
        (["--prompt", "a", "--switch", "enable_thinking=false"], "no prompt goes through it"),
        (["--prompt", "a", "--max-model-len", "9999"], "--max-model-len 9999"),
        (["--prompts-file", "/nowhere/prompts.txt"], "/nowhere/prompts.txt cannot be read"),
        (["--prompt", "a", "--output", "/nowhere/out.jsonl"], "/nowhere/out.jsonl cannot be written"),
    ],
)
def test_one_line_says_what_is_wrong(
    folder: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in refused(capsys, folder, "--dtype", "float32", *words)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "either prompt or messages"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
        ('{"prompt": ""}', "is empty"),
        ('{"prompt": 5}', "no text"),
        ('{"messages": "hi"}', "of another form"),
        ('{"messages": []}', "is empty"),
        ('{"messages": [{"role": "user"}]}', "line 2: message 1 has no content; a string is allowed"),
        ('{"messages": [{"role": "user", "content": 5}]}', "line 2: message 1 has a content that is no text"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 2: message 1 is not UTF-8"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "line 2: the chat template"),
        (f'{{"prompt": "{"a b " * 200}"}}', "line 2 has "),
        ("[" * 100_000, "no JSON"),
        ('{"prompt": "a", "max_new_tokens": 5}', "max_new_tokens"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature is 'hot'"),
        ('{"prompt": "a", "adapter": "poet"}', "poet"),
    ],
)
def test_a_wrong_line_of_a_file_is_named(
    folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "good"}}\n{line}\n{{"prompt": "good"}}\n')
    told = refused(capsys, folder, "--prompts-file", str(file), "--dtype", "float32")
    assert said in told
    assert "line 2" in told or "prompt 1" in told or "adapter" in told


def test_an_unwritable_journal_is_refused_before_the_model_is_looked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = refused(capsys, "/no/such/model", "--prompt", "a", "--output", str(tmp_path))
    assert "cannot be written" in told


def test_a_journal_of_other_weights_is_refused(
    folder: str, generate: Generate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    words = [
        "--prompt",
        "a",
        "--dtype",
        "float32",
        "--max-tokens",
        "2",
        "--output",
        str(tmp_path / "out.jsonl"),
    ]
    assert main(["generate", str(model), *words]) == 0
    capsys.readouterr()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # the same name, another file
    assert "another model" in refused(capsys, str(model), *words)


def test_numbers_that_json_has_not_are_null() -> None:
    share = Logprob(logprob=float("nan"), rank=1, text="a")
    text = Completion(
        text="a", token_ids=(5,), finish_reason="error", stop_reason=None, logprobs=({5: share},)
    )
    output = Output(index=0, prompt="b", prompt_token_ids=(1,), completions=(text,), prompt_logprobs=None)
    made = record(0, "b", output)
    assert json.loads(json.dumps(made, allow_nan=False))["logprobs"][0]["logprob"] is None


def test_a_journal_that_is_complete_is_told_again_without_the_model(
    folder: str, generate: Generate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    words = ["--prompt", "a", "--prompt", "b", "--max-tokens", "4", "--output", str(path)]
    first = generate(*words)
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == first
    before = path.read_bytes()
    assert generate(*words) == first
    assert path.read_bytes() == before
    other = refused(capsys, folder, "--json", "--dtype", "float32", *words, "--temperature", "0.5")
    assert "another model, options or prompts" in other


def test_a_journal_does_not_ask_how_fast_its_results_were_made(
    folder: str, generate: Generate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--prompt", "a", "--max-tokens", "4", "--output", str(tmp_path / "out.jsonl")]
    first = generate(*words)
    assert generate(*words, "--engine", "plain", "--max-batch", "2", "--page-size", "4") == first
    told = refused(capsys, folder, "--json", "--dtype", "float32", *words, "--max-model-len", "100")
    assert "another model, options or prompts" in told


def test_a_journal_brings_what_was_printed_when_it_was_made(
    folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--prompt", "hello", "--max-tokens", "8", "--dtype", "float32"]
    command = ["generate", folder, *words, "--output", str(tmp_path / "out.jsonl")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert "hello" not in printed


def test_an_empty_file_is_told_as_such(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("")
    assert "prompts.txt is empty; a line for each text is allowed" in refused(
        capsys, "demo", "--prompts-file", str(file)
    )


def test_json_stays_json_where_the_terminal_lacks_letters(folder: str) -> None:
    words = [folder, "--prompt", "你😀", "--max-tokens", "1", "--dtype", "float32"]
    command = [sys.executable, "-m", "oneroof", "generate", *words]
    narrow = {**ENV, "PYTHONIOENCODING": "ascii"}
    made = subprocess.run([*command, "--json"], env=narrow, capture_output=True, check=True).stdout
    assert json.loads(made)["prompt"] == "你😀"
    plain = subprocess.run([*command, "--prompt", "a"], env=narrow, capture_output=True, check=True).stdout
    assert plain.startswith(b"[0] \\u4f60\\U0001f600\n")


def test_the_engines_write_the_same(generate: Generate) -> None:
    words = ["--prompt", "hello", "--prompt", "hello there", "--max-tokens", "12", "--ignore-eos"]
    assert generate(*words) == generate(*words, "--engine", "plain")


def test_a_killed_run_is_continued_and_ends_as_if_it_had_not_been(folder: str, tmp_path: Path) -> None:
    prompts, whole, torn = tmp_path / "prompts.txt", tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    prompts.write_text("".join(f"prompt number {i}\n" for i in range(60)))

    def command(path: Path) -> list[str]:
        words = ["--prompts-file", str(prompts), "--max-tokens", "60", "--ignore-eos", "--max-batch", "2"]
        sampling = [
            "--temperature",
            "1.3",
            "--seed",
            "4",
            "--output",
            str(path),
            "--json",
            "--dtype",
            "float32",
        ]
        return [sys.executable, "-m", "oneroof", "generate", folder, *words, *sampling]

    expected = subprocess.run(command(whole), env=ENV, capture_output=True, check=True).stdout
    with subprocess.Popen(
        command(torn), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        while len(lines(torn)) < 6 and run.poll() is None:
            time.sleep(0.002)
        run.kill()
    assert 6 <= len(lines(torn)) < 61
    with torn.open("ab") as file:
        file.write(b'{"index": 59, "text": "to')  # as if it had been killed within a line
    resumed = subprocess.run(command(torn), env=ENV, capture_output=True, check=True)
    assert resumed.stdout == expected
    assert sorted(lines(torn)[1:]) == sorted(lines(whole)[1:])
    assert lines(torn)[0] == lines(whole)[0]


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []
