"""`oneroof chat` in a terminal, with the keys that a user presses there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oneroof.cli.dialogue import stoppable

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
INTERRUPT, END = "\x03", "\x04"  # Ctrl-C, Ctrl-D


class Terminal:
    """A chat in a terminal of its own: keys in, screen out."""

    def __init__(self, folder: Path, *words: str, out: int | None = None) -> None:
        self.screen = ""
        self._keys, side = pty.openpty()
        command = [sys.executable, "-m", "oneroof", "chat", str(folder), "--dtype", "float32", *words]
        self.process = subprocess.Popen(
            command,
            stdin=side,
            stdout=side if out is None else out,
            stderr=side,
            env=ENV,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # whose Ctrl-C is for this process
        )
        os.close(side)

    def press(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def until(self, text: str, *, times: int = 1) -> None:
        """Wait until `text` has come so many times."""
        self._wait(lambda: self.screen.count(text) >= times, f"{text!r}")

    def prompt(self, times: int = 1) -> None:
        """Wait for so many prompts in all, and until it waits for keys."""
        self.until("> ", times=times)
        self.rest()

    def rest(self) -> None:
        """Wait until it waits for keys."""
        state = Path(f"/proc/{self.process.pid}/stat")
        self._wait(lambda: state.read_text().rpartition(")")[2].split()[0] == "S", "rest")

    def grow(self, by: int) -> None:
        """Wait until there are so many more characters."""
        length = len(self.screen) + by
        self._wait(lambda: len(self.screen) >= length, f"{by} more characters")

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, f"no {what} in {self.screen!r}"
            if select.select([self._keys], [], [], 0.1)[0]:
                self.screen += os.read(self._keys, 65536).decode(errors="replace")

    def status(self) -> int:
        """Wait until it has ended."""
        try:
            self._wait(lambda: False, "end")
        except OSError:  # the other side is closed
            return self.process.wait(timeout=30)
        raise AssertionError("it waits for ever")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keys)


Start = Callable[..., Terminal]


@pytest.fixture
def chat(checkpoint: Callable[..., Path]) -> Iterator[Start]:
    """Begin a chat and wait for its prompt."""
    opened: list[Terminal] = []
    folder = checkpoint("qwen2", max_position_embeddings=20000)

    def start(*words: str, out: int | None = None) -> Terminal:
        terminal = Terminal(folder, *words, out=out)
        opened.append(terminal)
        terminal.prompt()
        return terminal

    yield start
    for terminal in opened:
        terminal.close()


def test_an_interrupt_ends_the_answer_and_not_the_chat(chat: Start) -> None:
    terminal = chat("--ignore-eos", "--max-tokens", "10000")
    terminal.press("hello\n")
    terminal.grow(200)  # it writes
    terminal.press(INTERRUPT)
    terminal.prompt(2)
    terminal.press("/nothing\n")
    terminal.until("/nothing is no command")
    terminal.prompt(3)  # before that, the terminal keeps the key to itself
    terminal.press(END)
    assert terminal.status() == 0
    assert "tokens/s" in terminal.screen
    assert "interrupted" not in terminal.screen and "cut after" not in terminal.screen


def test_two_interrupts_at_the_prompt_end_the_chat_and_one_drops_a_line(chat: Start) -> None:
    terminal = chat()
    terminal.press(INTERRUPT)
    terminal.until("Ctrl-C again, Ctrl-D or /exit ends the chat")
    terminal.prompt(2)
    terminal.press("half a li")
    terminal.until("half a li")
    terminal.rest()
    terminal.press(INTERRUPT)  # the second in a row, but there was a line to drop
    terminal.prompt(3)
    terminal.press("/system\n")
    terminal.until("there is no system message")
    terminal.prompt(4)
    terminal.press(INTERRUPT)
    terminal.prompt(5)
    terminal.press(INTERRUPT)
    assert terminal.status() == 130
    assert terminal.screen.rstrip().endswith("oneroof: interrupted")


def test_answers_alone_go_to_a_file(chat: Start, tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    with path.open("wb") as file:
        terminal = chat("--max-tokens", "8", "--ignore-eos", "--temperature", "0", out=file.fileno())
        terminal.press("hello\n")
        terminal.until("cut after 8 tokens")
        terminal.press("/exit\n")
        assert terminal.status() == 0
    text = path.read_bytes().decode()  # whole characters
    assert text.strip() and text.endswith("\n")
    assert "> " not in text and "oneroof" not in text
    assert text.strip() not in terminal.screen


def test_the_second_interrupt_of_an_answer_is_one() -> None:
    with stoppable() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
