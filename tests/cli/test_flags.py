"""A dataclass as flags: names, types, help and groups, and values that do or do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from commands import Cook, Rank

from oneroof.cli.flags import Given, build, flags, nearest
from oneroof.cli.generate import Generate
from oneroof.errors import UserError


def given(**words: str | tuple[str, ...] | None) -> dict[str, Given]:
    """Values by path, `__` for a dot."""
    named = {path.replace("__", "."): value for path, value in words.items()}
    return {
        path: Given((value,) if isinstance(value, str) else value, "--" + path)
        for path, value in named.items()
    }


def made(**words: str | tuple[str, ...] | None) -> Cook:
    return build(Cook, given(**{"model": "m", "dish": ("a",), "heat": "low"} | words), name="cook")


def test_positions_come_first_then_own_flags_then_inherited_ones() -> None:
    names = [flag.name for flag in flags(Cook)]
    own = ["--heat", "--salt", "--quiet", "--note", "--book", "--lora.rank", "--lora.dropout"]
    assert names == ["MODEL", "DISH", *own, "--threads", "--layers"]


def test_help_and_group_come_from_the_class_that_declares_the_field() -> None:
    told = {flag.path: (flag.help, flag.group) for flag in flags(Cook)}
    assert told["heat"] == ("How hot.", "")
    assert told["threads"] == ("Cores, one each.", "What all of them take")
    assert told["lora.rank"] == ("Its rank.", "How an adapter is shaped")
    assert told["salt"] == ("", "")


def test_values_and_defaults_as_they_are_typed() -> None:
    told = {flag.path: (flag.values, flag.shown_default) for flag in flags(Cook)}
    assert told["threads"] == ("N|auto", "auto")
    assert told["heat"] == ("low|high", "")
    assert told["book"] == ("PATH", "book")
    assert told["quiet"] == ("", "")


def test_words_become_typed_values() -> None:
    dish = made(
        dish=("a", "b"), salt="1e-3", quiet="yes", threads="4", layers="2", book="x/y", lora__rank="16"
    )
    assert dish == Cook(
        "m",
        ("a", "b"),
        heat="low",
        salt=0.001,
        quiet=True,
        threads=4,
        layers=2,
        book=Path("x/y"),
        lora=Rank(16),
    )
    assert made(threads="auto", layers=None).layers is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"threads": "2.5"}, "--threads is given '2.5'; a whole number or auto is allowed; try auto"),
        ({"layers": "two"}, "a whole number is allowed"),
        ({"salt": "much"}, "--salt is given 'much'; a number is allowed; try 0.5"),
        ({"heat": "hihg"}, "low or high is allowed; try high"),
        ({"quiet": "maybe"}, "true or false is allowed"),
        ({"salt": None}, "--salt is empty"),
        ({"salt": ("1", "2")}, "--salt has 2 values"),
    ],
)
def test_a_value_that_does_not_fit_is_told(words: dict[str, str | None], says: str) -> None:
    with pytest.raises(UserError) as told:
        made(**words)
    assert says in str(told.value)


def test_a_switch_that_is_on_by_default_says_on() -> None:
    assert [flag.shown_default for flag in flags(Lamp)] == ["on", ""]


def test_a_command_for_texts_is_shown_with_one() -> None:
    with pytest.raises(UserError, match='try oneroof generate demo --prompt "Once upon a time"'):
        build(Generate, {}, name="generate")


def test_what_must_be_given_is_told() -> None:
    with pytest.raises(UserError, match="cook has no MODEL; A folder; try oneroof cook demo DISH"):
        build(Cook, given(dish=("a",), heat="low"), name="cook")
    with pytest.raises(UserError, match=r"cook has no --heat; How hot; try oneroof cook --heat low\|high"):
        build(Cook, given(model="m", dish=("a",)), name="cook")


def test_the_nearest_word_is_found_or_nothing() -> None:
    assert nearest("--promt", ["--prompt", "--seed"]) == "--prompt"
    assert nearest("--xyz", ["--prompt", "--seed"]) == ""


def test_a_choice_of_one_says_that_there_will_be_more() -> None:
    with pytest.raises(UserError, match="--kind is given 'b'; this version serves a alone; leave it out"):
        build(Single, {"kind": Given(("b",), "--kind")}, name="single")
    assert build(Single, {"kind": Given(("a",), "--kind")}, name="single") == Single(kind="a")


@dataclass(frozen=True, kw_only=True)
class Lamp:
    """A lamp."""

    light: bool = True
    """Shine."""

    warm: bool = False
    """In red."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """One kind so far."""

    kind: Literal["a"] = "a"
    """The kind."""
