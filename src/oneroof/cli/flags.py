"""A command's dataclass read as flags: names, types, defaults and help, written once where a field stands.

A field before the `KW_ONLY` mark is positional, one behind it is a flag; a field whose type is a dataclass
gives dotted flags (`--lora.rank`); the string literal behind a field is its help. Values come as words and
leave typed.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from oneroof.errors import UserError

C = TypeVar("C")


@dataclass(frozen=True)
class Flag:
    """One value that a command takes."""

    path: str  # field names from the command inwards: "lora.rank"
    kinds: tuple[object, ...]  # int, float, str, bool, Path or literal words; several: the first that fits
    many: bool  # repeats; a tuple of values
    empty: bool  # None is allowed
    positional: bool
    default: object  # MISSING where it must be given
    help: str
    group: str  # of the class that declares it: its docstring's first sentence; "" for the command's own

    @property
    def name(self) -> str:
        """As it is typed: `--max-batch`, or `MODEL` where it is positional."""
        return self.path.upper() if self.positional else "--" + self.path.replace("_", "-")

    @property
    def values(self) -> str:
        """What stands behind the name in a help text: `auto|cpu`, `N`, `TEXT`; nothing for a switch."""
        if self.kinds == (bool,):
            return ""
        words = [str(kind) if isinstance(kind, str) else _PLACES.get(kind, "VALUE") for kind in self.kinds]
        return "|".join(words)

    @property
    def shown_default(self) -> str:
        """The default as one would type it; nothing where it is absence."""
        absent = any(self.default is nothing for nothing in (MISSING, None, False)) or self.default in (
            (),
            "",
        )
        return "" if absent else "on" if self.default is True else str(self.default)


@dataclass(frozen=True)
class Given:
    """What the user gave for a flag, not yet typed."""

    words: tuple[str, ...] | None  # None: nothing at all (YAML's null)
    where: str  # "--max-batch", "run.yaml line 3: max_batch"


def flags(command: type) -> tuple[Flag, ...]:
    """All that the dataclass `command` takes: positions, own flags, then the inherited, class by class."""
    rank = {_title(owner): place for place, owner in enumerate(command.__mro__) if is_dataclass(owner)}
    return tuple(sorted(_flags(command, "", ""), key=lambda f: (not f.positional, rank.get(f.group, 0))))


def build(command: type[C], given: Mapping[str, Given], *, name: str) -> C:
    """An instance of `command` from what was given by path; `name` is the command's own, for messages.

    Raises UserError where a value is missing or is not of the flag's type.
    """
    listed = flags(command)
    for flag in listed:
        if flag.default is MISSING and flag.path not in given:
            wanted = " ".join(f.name for f in listed if f.positional and f.default is MISSING)
            hint = wanted.replace("MODEL", "demo", 1) if flag.positional else f"{flag.name} {flag.values}"
            asked = text_flag(listed) if flag.positional else None
            hint += f' {asked.name} "Once upon a time"' if asked else ""
            raise UserError(f"{name} has no {flag.name}; {flag.help.rstrip('.')}; try oneroof {name} {hint}")
    values = {flag.path: _typed(flag, given[flag.path]) for flag in listed if flag.path in given}
    return _construct(command, values, "")


def text_flag(listed: Iterable[Flag]) -> Flag | None:
    """The flag for what is often written as a word without one: the text to work on."""
    return next((flag for flag in listed if flag.path in ("prompt", "text")), None)


def nearest(word: str, allowed: list[str]) -> str:
    """The allowed word that looks most like `word`, or nothing."""
    return next(iter(difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)), "")


_PLACES: dict[object, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_SWITCH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _flags(command: type, prefix: str, group: str) -> list[Flag]:
    types, helps, found = get_type_hints(command), _helps(command), list[Flag]()
    for field in fields(command):
        path, hint = prefix + field.name, types[field.name]
        text, owner = helps.get(field.name, ("", command))
        if isinstance(hint, type) and is_dataclass(hint):
            found += _flags(hint, path + ".", text or _title(hint))
            continue
        many = get_origin(hint) is tuple
        kinds = _kinds(get_args(hint)[0] if many else hint)
        found.append(
            Flag(
                path=path,
                kinds=tuple(kind for kind in kinds if kind is not NoneType),
                many=many,
                empty=NoneType in kinds,
                positional=not (field.kw_only or prefix),
                default=_default(field),
                help=text,
                group=group or ("" if owner is command or not field.kw_only else _title(owner)),
            )
        )
    return found


def _kinds(hint: object) -> tuple[object, ...]:
    """The types and literal words that make up a field's type."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    return get_args(hint) if get_origin(hint) is Literal else (hint,)


def _default(field: Field[object]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _helps(command: type) -> dict[str, tuple[str, type]]:
    """For each field: the string behind it and the class that says it."""
    found: dict[str, tuple[str, type]] = {}
    for owner in reversed([c for c in command.__mro__ if is_dataclass(c)]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, behind in zip(body, [*body[1:], None], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                said = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
                text = inspect.cleandoc(str(behind.value.value)) if said else ""  # type: ignore[union-attr]
                found[field.target.id] = (" ".join(text.split()), owner)
    return found


def _title(owner: type) -> str:
    return (inspect.getdoc(owner) or owner.__name__).split("\n")[0].split(". ")[0].rstrip(".")


def _typed(flag: Flag, given: Given) -> object:
    if given.words is None:
        if not flag.empty:
            raise UserError(
                f"{given.where} is empty; {_allowed(flag)} is allowed; give a value or leave it out"
            )
        return None
    if not flag.many and len(given.words) != 1:
        raise UserError(f"{given.where} has {len(given.words)} values; one is allowed; leave the others out")
    values = tuple(_fit(flag, word, given.where) for word in given.words)
    return values if flag.many else values[0]


def _fit(flag: Flag, word: str, where: str) -> object:
    for kind in flag.kinds:
        if isinstance(kind, str):
            if word == kind:
                return word
            continue
        try:
            return _READERS[kind](word)
        except (ValueError, KeyError):
            continue
    choices = [kind for kind in flag.kinds if isinstance(kind, str)]
    if len(choices) == len(flag.kinds) == 1:
        raise UserError(f"{where} is given {word!r}; this version serves {choices[0]} alone; leave it out")
    hint = nearest(word, choices) or flag.shown_default or f"oneroof COMMAND --help for {flag.name}"
    raise UserError(f"{where} is given {word!r}; {_allowed(flag)} is allowed; try {hint}")


_READERS: dict[object, Callable[[str], object]] = {
    int: int,
    float: float,
    str: str,
    Path: Path,
    bool: lambda word: _SWITCH[word.lower()],
}


def _allowed(flag: Flag) -> str:
    says: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        bool: "true or false",
    }
    return " or ".join(says.get(kind, str(kind)) for kind in flag.kinds)


def _construct(command: type[C], values: Mapping[str, object], prefix: str) -> C:
    chosen: dict[str, object] = {}
    types = get_type_hints(command)
    for field in fields(command):  # type: ignore[arg-type]
        path, hint = prefix + field.name, types[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            chosen[field.name] = _construct(hint, values, path + ".")
        elif path in values:
            chosen[field.name] = values[path]
    return command(**chosen)
