"""`oneroof chat` through a pipe: one line a turn, and a bad line loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from oneroof.cli.main import main

Pipe = Callable[[bytes], None]
GREEDY = ("--dtype", "float32", "--temperature", "0", "--max-tokens", "6", "--ignore-eos")
FOX = "the quick brown fox"


@pytest.fixture(scope="session")
def folder(checkpoint: Callable[..., Path]) -> str:
    return str(checkpoint("qwen2", max_position_embeddings=512))


@pytest.fixture
def chat(folder: str, pipe: Pipe, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command with these lines: status, standard output, standard error."""

    def run(lines: str | bytes, *words: str) -> tuple[int, str, str]:
        pipe(lines if isinstance(lines, bytes) else lines.encode())
        status = main(["chat", folder, *GREEDY, *words])
        caught = capsys.readouterr()
        return status, caught.out, caught.err

    return run


@pytest.fixture
def answer(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `generate` answers to a conversation: texts of user and assistant in turn."""

    def run(*texts: str, system: str | None = None) -> str:
        head = [] if system is None else [{"role": "system", "content": system}]
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        file = tmp_path / "talk.jsonl"
        file.write_text(json.dumps({"messages": [*head, *turns]}))
        assert main(["generate", folder, *GREEDY, "--prompts-file", str(file), "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["text"])

    return run


Chat = Callable[..., tuple[int, str, str]]
Answer = Callable[..., str]


def test_each_line_is_answered_with_what_was_said_before_it(chat: Chat, answer: Answer) -> None:
    first = answer(FOX)
    second = answer(FOX, first, "the dog")
    status, out, err = chat(f"{FOX}\n\n  \nthe dog")  # empty lines are no messages; the last needs no end
    assert (status, out) == (0, f"{first}\n{second}\n")
    assert "> " not in out + err
    assert "cut after 6 tokens; --max-tokens allows more" in err


def test_windows_line_ends_are_no_part_of_a_message(chat: Chat, answer: Answer) -> None:
    assert chat(f"{FOX}\r\n")[1] == answer(FOX) + "\n"


def test_a_bad_line_is_told_with_its_number_and_loses_nothing(chat: Chat) -> None:
    good = chat(f"{FOX}\nthe dog\n")
    bad = f"{FOX}\n/rest\n/reset now\n/help x\n".encode() + b"\xff\n" + b"the dog\n"
    status, out, err = chat(bad)
    assert (status, out) == (2, good[1])
    assert "line 2: /rest is no command; /reset, /system, /help, /exit are allowed; try /reset" in err
    assert "line 3: /reset takes no text" in err
    assert "line 4: /help takes no text" in err
    assert "line 5: the message is not UTF-8" in err


def test_a_message_may_begin_with_a_slash(chat: Chat, answer: Answer) -> None:
    assert chat("//exit\n")[1] == answer("/exit") + "\n"


def test_what_was_said_is_forgotten_when_asked(chat: Chat, answer: Answer) -> None:
    first = answer("the dog", system="Be brief.")
    status, out, _ = chat("the dog\n/reset\nthe dog\n/exit\nthe dog\n", "--system", "Be brief.")
    assert (status, out) == (0, f"{first}\n{first}\n")


def test_the_system_message_is_set_shown_and_taken_away(chat: Chat, answer: Answer) -> None:
    texts = [answer(FOX, system="Be long."), answer(FOX), answer(FOX, system="Be brief.")]
    assert len(set(texts)) == 3
    lines = ["/system", FOX, "/reset", "/system -", "/system", FOX, "/reset", "/system   Be brief. ", FOX]
    status, out, err = chat("\n".join(lines), "--system", "Be long.")
    assert (status, out.splitlines()) == (0, texts)
    said = [line for line in err.splitlines() if "system" in line]
    assert said[:4] == [
        "oneroof: system: Be long.",
        "oneroof: the system message is taken away",
        "oneroof: there is no system message",
        "oneroof: the system message is set",
    ]


def test_help_says_what_a_line_can_be(chat: Chat) -> None:
    status, out, err = chat("/help\n")
    assert (status, out) == (0, "")
    assert all(word in err for word in ("/reset", "/system TEXT", "/exit", "//"))


def test_old_turns_that_are_left_out_are_told(chat: Chat) -> None:
    status, _, err = chat(f"{FOX}\n" * 4, "--max-model-len", "120")
    assert status == 0
    assert "oneroof: the context of 120 tokens is full: the oldest 2 messages are left out\n" in err


def test_a_turn_longer_than_the_context_is_one_line_and_the_conversation_goes_on(
    chat: Chat, answer: Answer
) -> None:
    first = answer(FOX)
    second = answer(FOX, first, "the dog")
    status, out, err = chat(f"{FOX}\n{'fox ' * 600}\nthe dog\n")
    assert (status, out) == (2, f"{first}\n{second}\n")
    told = [line for line in err.splitlines() if line.startswith("oneroof: line 2:")]
    assert len(told) == 1
    assert "this message takes" in told[0]
    assert "at most 511 are allowed in a context of 512" in told[0]


def test_a_system_message_that_does_not_fit_is_not_set(chat: Chat, answer: Answer) -> None:
    status, out, err = chat(f"/system {'fox ' * 600}\n{FOX}\n")
    assert (status, out) == (2, answer(FOX) + "\n")
    assert "line 1: this message and the system message take" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--switch", "thinking"], "--switch thinking was given"),
        (["--switch", "messages=1"], "'messages' is no template switch"),
        (["--stop-token-ids", "9999"], "stop_token_ids has 9999"),
        (["--system", "fox " * 600], "this message and the system message take"),
        (["--n", "2"], "--n is no option of chat"),
    ],
)
def test_what_can_never_be_is_refused_before_a_line_is_read(chat: Chat, words: list[str], said: str) -> None:
    status, out, err = chat(f"{FOX}\n", *words)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("qwen3_embedding", {}, "embeddings are allowed, text is not"),
        ("qwen3", {"tokenizer": "none"}, "has no tokenizer"),
    ],
)
def test_a_model_that_cannot_talk_is_refused_at_once(
    checkpoint: Callable[..., Path],
    pipe: Pipe,
    capsys: pytest.CaptureFixture[str],
    family: str,
    options: dict[str, str],
    said: str,
) -> None:
    pipe(b"hello\nagain\n")
    assert main(["chat", str(checkpoint(family, **options)), "--dtype", "float32"]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
