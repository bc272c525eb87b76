"""The door: `oneroof COMMAND ...`, each command imported when it is asked for, every failure told in its way.

A command's name is one word or two (`bench model`); the first of two alone lists those that begin with it.
Status 0 is success, 2 what the user can mend, 1 a failure of ours, 130 an interruption; a check may return 3.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from oneroof import __version__, log
from oneroof.cli.interruption import Interruption, check_interrupted
from oneroof.errors import RankLost, UserError

COMMANDS = {
    "generate": "oneroof.cli.generate:Generate",
    "chat": "oneroof.cli.chat:Chat",
    "serve": "oneroof.cli.serve:Serve",
    "embed": "oneroof.cli.embed:Embed",
    "score": "oneroof.cli.score:Score",
    "bench model": "oneroof.cli.bench_model:BenchModel",
    "bench kernels": "oneroof.cli.bench_kernels:BenchKernels",
    "bench peers": "oneroof.cli.bench_peers:BenchPeers",
    "convert": "oneroof.cli.convert:Convert",
    "shard": "oneroof.cli.shard:Shard",
    "merge": "oneroof.cli.merge:Merge",
    "plan": "oneroof.cli.plan:Plan",
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
    _open_streams()
    try:
        with _interruptible():
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
        _drop_output()
        return 141
    except OSError as error:  # of standard output: `_run` tells all others
        _drop_output()
        _say(
            f"oneroof: standard output cannot be written ({error.strerror}); a file or pipe with room is "
            "allowed; try another"
        )
        return 2


def load_command(name: str) -> type[Command]:
    """The dataclass of the command `name`; UserError for a name that is none."""
    if name not in COMMANDS:
        raise _no_command(name)
    module, _, attribute = COMMANDS[name].partition(":")
    found: type[Command] = getattr(importlib.import_module(module), attribute)
    return found


_HELP = ("-h", "--help", "help")


def _run(words: list[str]) -> int:
    if not words or words[0] in _HELP:
        sys.stdout.write(_overview())
        return 0
    if words[0] == "--version":
        print(f"oneroof {__version__}")
        return 0
    several = _beginning_with(words[0])
    if several and (len(words) == 1 or words[1] in _HELP):
        sys.stdout.write(_list(words[0], several))
        return 0
    name, rest = (" ".join(words[:2]), words[2:]) if several else (words[0], words[1:])
    command = load_command(name)

    from oneroof.cli.parse import parse  # after the name is known to be good: argparse and YAML cost 20 ms

    log.start()
    try:
        parsed = parse(name, command, rest)
    except SystemExit:  # --help was printed
        return 0
    debug = parsed.debug or os.environ.get("ONEROOF_DEBUG", "0") not in ("", "0")
    try:
        return parsed.command.run()
    except (UserError, BrokenPipeError):
        if debug:
            traceback.print_exc()
        raise
    except RankLost as error:
        _say(f"oneroof: {error}")
        return 1
    except Exception as error:  # ours, whatever it is: the last frame is enough unless more is asked for
        if isinstance(error, ImportError):
            check_interrupted()  # an interrupted import may call itself a failed one
        if isinstance(error, OSError) and error.filename is None:  # of a write, perhaps: to which file?
            print(flush=True)  # raises again, past this, where it was standard output
        log.debug("".join(traceback.format_exception(error)).rstrip())
        _say(_ours(name, error, debug))
        return 1


def _open_streams() -> None:
    """Standard streams for all that follows: a closed one takes and gives nothing, and no letter is too much.

    Descriptors 0 to 2 are filled first, or the next file to be opened would be taken for a stream.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    nowhere = Path(os.devnull)
    sys.stdin = sys.stdin or nowhere.open(encoding="utf-8")
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is left to write goes nowhere, or the interpreter's last flush would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C interrupts what happens inside, and is remembered; not where a program has its own way."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, Interruption())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _beginning_with(word: str) -> list[str]:
    """The commands of two words whose first is `word`."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]


def _no_command(name: str) -> UserError:
    from oneroof.cli.flags import nearest

    first, _, second = name.partition(" ")
    allowed = _beginning_with(first) or list(COMMANDS)
    if second:
        close = nearest(second, [other.partition(" ")[2] for other in allowed])
        hint = f"{first} {close or '--help'}"
    else:
        hint = nearest(first, [other.partition(" ")[0] for other in allowed]) or "--help"
    verb = "are" if len(allowed) > 1 else "is"
    return UserError(f"{name!r} is no command; {', '.join(allowed)} {verb} allowed; try oneroof {hint}")


def _ours(name: str, error: Exception, debug: bool) -> str:
    if debug:
        return "".join(traceback.format_exception(error)).rstrip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split()) or "no message"
    place = f"{type(error).__name__} in {Path(frame.filename).name} line {frame.lineno}"
    return f"oneroof: {name} failed, by a fault of ours: {said} ({place}); --debug shows all of it"


def _overview() -> str:
    return (
        f"usage: oneroof COMMAND [options]\n\n{_TITLE}\n\n"
        f"commands:\n{_rows(COMMANDS)}\n"
        "oneroof COMMAND --help lists a command's options; oneroof --version names the release.\n"
        "MODEL is a folder in Hugging Face layout, a hub id, or demo: a small model that comes along.\n"
    )


def _list(first: str, names: Iterable[str]) -> str:
    """What `oneroof FIRST` shows, where that is half a command's name."""
    return (
        f"usage: oneroof {first} COMMAND [options]\n\ncommands:\n{_rows(names)}\n"
        f"oneroof {first} COMMAND --help lists a command's options.\n"
    )


def _rows(names: Iterable[str]) -> str:
    width = max(map(len, COMMANDS)) + 2
    return "".join(f"  {name:<{width}}{_summary(COMMANDS[name])}\n" for name in names)


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
    log.debug(f"the last words: {text.strip()}")  # for a log file; standard error has them from the next line
    print(text, file=sys.stderr, flush=True)
