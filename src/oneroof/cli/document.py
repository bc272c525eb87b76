"""The page docs/commands.md, written from the commands' dataclasses: `python -m oneroof.cli.document`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING

from oneroof.cli.flags import Flag, flags
from oneroof.cli.main import COMMANDS, load_command

_HEAD = """# Commands

Written by `make docs` from the commands' own dataclasses; a test holds it up to date.

A flag may also stand in a YAML file, by the same name without its dashes (`max-batch: 4` or `max_batch: 4`),
read with `--config FILE`; a flag wins over the file. `--no-NAME` switches off what is on by default or by the
file. `--debug` shows where in the code a failure happened. Results go to standard output, everything else to
standard error.

Status 0 is success, 2 what the user can mend (one line: what was found, what is allowed, what to try), 3 a
check whose limits were passed, 1 a failure of ours, 130 an interruption.
"""


def commands_page() -> str:
    """The page, in Markdown, with a final newline."""
    return _HEAD + "".join(_section(name) for name in COMMANDS)


def _section(name: str) -> str:
    command = load_command(name)
    listed = flags(command)
    words = " ".join(flag.name for flag in listed if flag.positional)
    text = f"\n## oneroof {name} {words}".rstrip() + f"\n\n{inspect.getdoc(command)}\n"
    for group in dict.fromkeys(flag.group for flag in listed):
        rows = "".join(_row(flag) for flag in listed if flag.group == group)
        title = f"{group}:\n\n" if group else ""
        text += f"\n{title}| option | default | meaning |\n|---|---|---|\n{rows}"
    return text


def _row(flag: Flag) -> str:
    kind = "" if flag.positional else flag.values
    shape = f"`{flag.name}{' ' + kind if kind else ''}`".replace("|", "\\|")
    notes = " Repeats." if flag.many else ""
    default = "(required)" if flag.default is MISSING else flag.shown_default
    return f"| {shape} | {default} | {flag.help}{notes} |\n"


if __name__ == "__main__":
    print(commands_page(), end="")
