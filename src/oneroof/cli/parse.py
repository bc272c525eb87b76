"""From a command's words on the command line (and its `--config` file) to an instance of its dataclass.

argparse cuts the words apart; types, defaults and help come from the fields. A flag wins over the file.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from oneroof.cli.flags import Flag, Given, build, flags, nearest, text_flag
from oneroof.cli.settings import read_settings
from oneroof.errors import UserError

C = TypeVar("C")


@dataclass(frozen=True)
class Parsed(Generic[C]):
    """A command with its options, and how its failures are to be shown."""

    command: C
    debug: bool


def parse(name: str, command: type[C], words: Sequence[str]) -> Parsed[C]:
    """The command `name` with the options in `words`.

    Raises UserError for what does not fit, and SystemExit(0) after `--help` was printed.
    """
    listed = flags(command)
    found, rest = _parser(name, command, listed).parse_known_intermixed_args(list(words))
    if rest:
        raise UserError(_unknown(name, rest, listed))
    values = vars(found)
    settings = read_settings(Path(values["config"]), listed) if values["config"] else {}
    typed = {
        flag.path: _given(flag, values[flag.path]) for flag in listed if values[flag.path] not in (None, [])
    }
    return Parsed(build(command, settings | typed, name=name), values["debug"])


def help_text(name: str, command: type) -> str:
    """What `oneroof NAME --help` prints."""
    return _parser(name, command, flags(command)).format_help()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        dashes = "; --OPTION=VALUE where the value begins with a dash" if "expected" in message else ""
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help{dashes}")


def _parser(name: str, command: type, listed: Sequence[Flag]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"oneroof {name}",
        usage=" ".join(
            [f"oneroof {name}", *(_place(flag) for flag in listed if flag.positional), "[options]"]
        ),
        description=inspect.getdoc(command),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
        allow_abbrev=False,
        add_help=False,
    )
    titles = dict.fromkeys(flag.group or "options" for flag in listed if not flag.positional) | {
        "every command": None
    }
    arguments = parser.add_argument_group("arguments")
    groups = {title: parser.add_argument_group(title) for title in titles}
    for flag in listed:
        if flag.positional:
            how = "*" if flag.many else "?"
            arguments.add_argument(flag.path, nargs=how, metavar=flag.name, help=_help(flag))
        elif flag.kinds == (bool,):
            group, no = groups[flag.group or "options"], flag.name.replace("--", "--no-", 1)
            group.add_argument(
                flag.name, dest=flag.path, action="store_const", const="true", help=_help(flag)
            )
            hidden = "Switch that off." if flag.default else argparse.SUPPRESS
            group.add_argument(no, dest=flag.path, action="store_const", const="false", help=hidden)
        else:
            action = "append" if flag.many else "store"
            group = groups[flag.group or "options"]
            group.add_argument(
                flag.name, dest=flag.path, action=action, metavar=flag.values, help=_help(flag)
            )
    always = groups["every command"]
    always.add_argument(
        "--config", metavar="FILE", help="Options from a YAML file, by the same names; a flag wins."
    )
    always.add_argument("--debug", action="store_true", help="Show where in the code a failure happened.")
    always.add_argument("-h", "--help", action="help", help="Show this text.")
    return parser


def _help(flag: Flag) -> str:
    notes = ["repeats"] * (flag.many and not flag.positional)
    notes += ["required"] * (flag.default is MISSING and not flag.positional)
    notes += [f"default: {flag.shown_default}"] * bool(flag.shown_default)
    return (flag.help + (f" ({'; '.join(notes)})" if notes else "")).replace("%", "%%")


def _place(flag: Flag) -> str:
    word = flag.name + (" ..." if flag.many else "")
    return word if flag.default is MISSING else f"[{word}]"


def _given(flag: Flag, value: object) -> Given:
    words = tuple(value) if isinstance(value, list) else (str(value),)
    return Given(words, flag.name)


def _unknown(name: str, rest: Sequence[str], listed: Sequence[Flag]) -> str:
    word = next((w for w in rest if w.startswith("-")), "")
    if not word:
        wanted = " ".join(_place(flag) for flag in listed if flag.positional) or "no words without --"
        asked = text_flag(listed)
        hint = f"try {asked.name} {rest[0]!r}" if asked else "quote a text that has spaces"
        return f"{rest[0]!r} is left over; {wanted} is allowed; {hint}"
    close = nearest(word.split("=")[0], [flag.name for flag in listed] + ["--config", "--debug", "--help"])
    hint = f"try {close}" if close else f"see oneroof {name} --help"
    return f"{word.split('=')[0]} is no option of {name}; --help lists those allowed; {hint}"
