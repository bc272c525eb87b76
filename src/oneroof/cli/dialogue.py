"""Lines in, answers out: how `oneroof chat` reads, obeys and writes.

In a terminal lines are edited, and Ctrl-C ends an answer; in a pipe there are no marks, and it ends the run.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType

from oneroof import log
from oneroof.cli.flags import nearest
from oneroof.cli.lines import check_text
from oneroof.cli.talk import Talk
from oneroof.errors import UserError

_HELP = """\
/reset         forget what was said; the system message stays
/system TEXT   set the system message; without TEXT show it; with - take it away
/help          show this
/exit          end; so does Ctrl-D
//...          a message that begins with /
Ctrl-C ends an answer; what was written of it stays. At the prompt, twice ends the chat."""
_COMMANDS = ("/reset", "/system", "/help", "/exit")
_MARK = "> "


class Screen:
    """Standard output, on which an answer stands as it is written; notes go beside it."""

    def __init__(self) -> None:
        self._within = False  # an answer, whose last line has no end yet

    def write(self, text: str) -> None:
        """More of the answer."""
        sys.stdout.write(text)
        sys.stdout.flush()
        self._within = True

    def end(self) -> None:
        """The answer is over, if there is one."""
        if self._within:
            self._within = False
            sys.stdout.write("\n")
            sys.stdout.flush()

    def tell(self, note: str) -> None:
        """A note, below what is written."""
        self.end()
        log.info(note)


def converse(talk: Talk, screen: Screen, *, terminal: bool) -> int:
    """Answer lines from standard input until /exit or its end; the command's status."""
    status = 0
    for number, line in enumerate(_typed() if terminal else _piped(), start=1):
        if line.strip() == "/exit":
            break
        try:
            _serve(talk, line, screen, terminal=terminal)
        except UserError as error:  # only this line is lost
            screen.end()
            log.warning(str(error) if terminal else f"line {number}: {error}")
            status = 0 if terminal else 2
    return status


def _typed() -> Iterator[str]:
    """Lines from the terminal, with editing and a history where Python has readline."""
    with suppress(ImportError):
        importlib.import_module("readline")  # from here on `input` edits
    log.info("a line is a message; /help shows what else it can be; Ctrl-D ends")
    interrupted = False
    while True:
        try:
            yield _read_line()
        except EOFError:
            print(file=sys.stderr)
            return
        except UnicodeDecodeError:
            log.warning("the line is not UTF-8; only text in UTF-8 is allowed; check the terminal's encoding")
        except KeyboardInterrupt:
            print(file=sys.stderr)
            begun = "readline" in sys.modules and sys.modules["readline"].get_line_buffer()
            if interrupted and not begun:
                raise
            if not begun:  # else the line that was begun is dropped, as in a shell
                log.info("Ctrl-C again, Ctrl-D or /exit ends the chat")
            interrupted = not begun
        else:
            interrupted = False


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(_MARK)
    print(_MARK, end="", file=sys.stderr, flush=True)  # standard output is for the answers alone
    return input()


def _piped() -> Iterator[str]:
    """Lines of standard input as they come; bytes that are no UTF-8 become lone surrogates."""
    for line in sys.stdin.buffer:
        yield line.decode(errors="surrogateescape").rstrip("\r\n")


def _serve(talk: Talk, line: str, screen: Screen, *, terminal: bool) -> None:
    """Obey or answer `line`; UserError, and nothing has changed, where that cannot be."""
    if line.startswith("/") and not line.startswith("//"):
        _obey(talk, line)
    elif line.strip():
        text = line.removeprefix("/") if line.startswith("//") else line
        check_text(text, "the message")
        with stoppable() if terminal else nullcontext(lambda: False) as stopped:
            for piece in talk.ask(text, stopped=stopped):
                screen.write(piece)
    screen.end()


def _obey(talk: Talk, line: str) -> None:
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word not in _COMMANDS:
        close = nearest(word, list(_COMMANDS)) or "/help"
        raise UserError(
            f"{word} is no command; {', '.join(_COMMANDS)} are allowed; try {close}, or // to say it"
        )
    if rest and word != "/system":
        raise UserError(f"{word} takes no text; the word alone is allowed; try {word}")
    if word == "/help":
        print(_HELP, file=sys.stderr)
    elif word == "/reset":
        talk.reset()
        log.info("what was said is forgotten")
    elif rest:
        check_text(rest, "the system message")
        talk.instruct(None if rest == "-" else rest)
        log.info("the system message is taken away" if rest == "-" else "the system message is set")
    else:
        log.info("there is no system message" if talk.system is None else f"system: {talk.system}")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, so that no work is torn in the middle; the second one interrupts."""
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)
