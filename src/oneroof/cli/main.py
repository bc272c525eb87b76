"""The door: `oneroof COMMAND ...`, each command imported when it is asked for, every failure told in its way.

Status 0 is success, 2 what the user can mend, 1 a failure of ours, 130 an interruption; a check may return 3.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from oneroof import __version__, log
from oneroof.errors import UserError

COMMANDS = {
    "generate": "oneroof.cli.generate:Generate",
    "convert": "oneroof.cli.convert:Convert",
    "doctor": "oneroof.cli.doctor:Doctor",
}

_TITLE = "The whole life of a Qwen or ERNIE-4.5 model under one roof."


class Command(Protocol):
    """A frozen dataclass whose fields are its options."""

    def run(self) -> int:
        """Do it, and return the exit status."""
        ...


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` (this process's by default, without its name) and return its status."""
    try:
        status = _run(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
        return status
    except UserError as error:
        _say(f"oneroof: {error}")
        return 2
    except KeyboardInterrupt:
        _say("\noneroof: interrupted")
        return 130
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter's last flush complains
        return 141


def load_command(name: str) -> type[Command]:
    """The dataclass of the command `name`; UserError for a name that is none."""
    if name not in COMMANDS:
        from oneroof.cli.flags import nearest

        close = nearest(name, list(COMMANDS))
        hint = f"oneroof {close}" if close else "oneroof --help"
        raise UserError(f"{name!r} is no command; {', '.join(COMMANDS)} are allowed; try {hint}")
    module, _, attribute = COMMANDS[name].partition(":")
    found: type[Command] = getattr(importlib.import_module(module), attribute)
    return found


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    if words[0] == "--version":
        print(f"oneroof {__version__}")
        return 0
    command = load_command(words[0])

    from oneroof.cli.parse import parse  # after the name is known to be good: argparse and YAML cost 20 ms

    log.start()
    try:
        parsed = parse(words[0], command, words[1:])
    except SystemExit:  # --help was printed
        return 0
    debug = parsed.debug or os.environ.get("ONEROOF_DEBUG", "0") not in ("", "0")
    try:
        return parsed.command.run()
    except (UserError, BrokenPipeError):
        if debug:
            traceback.print_exc()
        raise
    except Exception as error:  # ours, whatever it is: the last frame is enough unless more is asked for
        _say(_ours(words[0], error, debug))
        return 1


def _ours(name: str, error: Exception, debug: bool) -> str:
    if debug:
        return "".join(traceback.format_exception(error)).rstrip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split()) or "no message"
    place = f"{type(error).__name__} in {Path(frame.filename).name} line {frame.lineno}"
    return f"oneroof: {name} failed, by a fault of ours: {said} ({place}); --debug shows all of it"


def _overview() -> str:
    rows = "".join(f"  {name:<12}{_summary(target)}\n" for name, target in COMMANDS.items())
    return (
        f"usage: oneroof COMMAND [options]\n\n{_TITLE}\n\n"
        f"commands:\n{rows}\n"
        "oneroof COMMAND --help lists a command's options; oneroof --version names the release.\n"
        "MODEL is a folder in Hugging Face layout, a hub id, or demo: a small model that comes along.\n"
    )


def _summary(target: str) -> str:
    """The first line of a command's docstring, read from its source: nothing is imported for it."""
    module, _, attribute = target.partition(":")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return ""
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    texts = [ast.get_docstring(n) for n in tree.body if isinstance(n, ast.ClassDef) and n.name == attribute]
    return (texts[0] or "").split("\n")[0] if texts else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
