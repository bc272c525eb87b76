"""The door: which status and which words each kind of end has."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from oneroof import __version__
from oneroof.cli import main as door
from oneroof.cli.main import COMMANDS, load_command, main
from oneroof.errors import UserError


@dataclass(frozen=True)
class Odd:
    """Ends as it is told."""

    end: str

    def run(self) -> int:
        """One of several ends."""
        ends: dict[str, BaseException] = {
            "ours": KeyError("lost"),
            "user": UserError("found; allowed; try"),
            "stop": KeyboardInterrupt(),
            "pipe": BrokenPipeError(),
        }
        if self.end in ends:
            raise ends[self.end]
        return int(self.end)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "load_command", lambda _: Odd)
    monkeypatch.delenv("ONEROOF_DEBUG", raising=False)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        ("0", 0, ""),
        ("3", 3, ""),
        ("user", 2, "oneroof: found; allowed; try\n"),
        ("stop", 130, "\noneroof: interrupted\n"),
    ],
)
def test_each_end_has_its_status(
    capsys: pytest.CaptureFixture[str], end: str, status: int, says: str
) -> None:
    assert main(["odd", end]) == status
    assert capsys.readouterr().err == says


@pytest.mark.usefixtures("odd")
def test_a_failure_of_ours_is_one_line_unless_more_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["odd", "ours"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("oneroof: odd failed, by a fault of ours: 'lost' (KeyError in test_main.py line ")
    assert said.count("\n") == 1
    assert main(["odd", "ours", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("ONEROOF_DEBUG", "1")
    assert main(["odd", "ours"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_every_command_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        line = next(row for row in text.splitlines() if row.startswith(f"  {name} "))
        assert (load_command(name).__doc__ or "").split("\n")[0] in line


@pytest.fixture
def two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of two words beside those of one; the second word of one is like the first of another."""
    monkeypatch.setitem(COMMANDS, "weigh bread", "oneroof.cli.doctor:Doctor")
    monkeypatch.setitem(COMMANDS, "weigh doctor", "oneroof.cli.convert:Convert")


@pytest.mark.usefixtures("two_words")
@pytest.mark.parametrize("words", [["weigh"], ["weigh", "--help"], ["weigh", "-h"], ["weigh", "help"]])
def test_half_a_name_lists_what_begins_with_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: oneroof weigh COMMAND [options]\n")
    listed = [line.split("  ")[1] for line in out.splitlines() if line.startswith("  ")]
    assert listed == ["weigh bread", "weigh doctor"]
    assert "What this machine is" in out


@pytest.mark.usefixtures("two_words")
def test_a_name_of_two_words_is_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weigh", "bread", "--help"]) == 0
    assert "usage: oneroof weigh bread [options]" in capsys.readouterr().out
    assert main(["weigh", "bread", "--jso"]) == 2
    assert (
        "--jso is no option of weigh bread; --help lists those allowed; try --json" in capsys.readouterr().err
    )
    assert main(["weigh", "doctor"]) == 2
    assert "weigh doctor has no MODEL" in capsys.readouterr().err
    assert main(["weigh", "bread", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")


@pytest.mark.usefixtures("two_words")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["weigh", "braed"],
            "'weigh braed' is no command; weigh bread, weigh doctor are allowed; try oneroof weigh bread",
        ),
        (["weigh", "x"], "try oneroof weigh --help"),
        (["weigh", "--json"], "'weigh --json' is no command"),
        (["wiegh", "bread"], "'wiegh' is no command; generate, "),
        (["wiegh", "bread"], "try oneroof weigh"),
        (["doctor", "bread"], "'bread' is left over"),
        (["bread"], "try oneroof --help"),
    ],
)
def test_an_unknown_word_of_two_is_told_with_the_nearest(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_no_words_at_all_are_a_question_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: oneroof COMMAND")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"oneroof {__version__}\n"


def test_an_unknown_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate"]) == 2
    assert capsys.readouterr().err.endswith("try oneroof generate\n")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_and_every_option_is_explained(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from oneroof.cli.flags import flags

    assert main([*name.split(), "--help"]) == 0
    assert f"usage: oneroof {name} " in capsys.readouterr().out
    assert all(flag.help for flag in flags(load_command(name)))


def test_a_reader_that_has_gone_is_no_failure() -> None:
    program = "import sys; from oneroof.cli.main import main; sys.exit(main(['--help']))"
    ran = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ran.stdout is not None and ran.stderr is not None
    ran.stdout.close()
    assert ran.stderr.read() == b""
    assert ran.wait() == 141


SWALLOWED = """
import os, signal, sys
from dataclasses import dataclass
from oneroof.cli import main as door

@dataclass(frozen=True)
class Deaf:
    def run(self):
        from oneroof.cli.interruption import check_interrupted
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print("swallowed")
        check_interrupted()
        print("went on")
        return 0

door.load_command = lambda _: Deaf
sys.exit(door.main(["deaf"]))
"""


def test_an_interruption_that_an_import_swallows_still_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(SWALLOWED)
    words = [sys.executable, str(tmp_path / "deaf.py")]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (130, "swallowed\n")
    assert ran.stderr == "\noneroof: interrupted\n"


def test_the_signal_is_as_before_when_a_command_has_ended() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["doctor"]])
def test_an_output_that_is_full_is_told_in_one_line(words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "oneroof", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert ran.returncode == 2
    assert ran.stderr.startswith("oneroof: standard output cannot be written (No space left on device); ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_failure(closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m oneroof doctor {closed}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "" if " >&-" in f" {closed}" else "versions" in ran.stdout


def test_the_module_runs_as_the_command_does(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "oneroof", "--version"]
    ran = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout == f"oneroof {__version__}\n"
