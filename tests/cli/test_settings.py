"""A YAML file of options: nested names, words as they stand, and each mistake told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Cook

from oneroof.cli.flags import build, flags
from oneroof.cli.settings import read_settings
from oneroof.errors import UserError


def read(folder: Path, text: str) -> Cook:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return build(Cook, read_settings(path, flags(Cook)), name="cook")


GOOD = """
model: 1.10   # stays a word
dish: [soup, no]
heat: low
salt: 1e-3
quiet: on
layers: null
note: one
lora:
  rank: 4
  dropout: 0
"""


def test_a_file_gives_what_its_flags_say(tmp_path: Path) -> None:
    dish = read(tmp_path, GOOD)
    assert (dish.model, dish.dish, dish.note) == ("1.10", ("soup", "no"), ("one",))
    assert (dish.salt, dish.quiet, dish.layers) == (0.001, True, None)
    assert (dish.lora.rank, dish.lora.dropout) == (4, 0.0)


def test_names_may_have_dashes_and_dots(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lora.rank: 3\nlora: {drop-out: 1}\n")
    with pytest.raises(
        UserError, match=r"run.yaml line 2: lora.drop_out is no option .* did you mean lora.dropout"
    ):
        read_settings(path, flags(Cook))
    path.write_text("lora.rank: 3\n")
    assert read_settings(path, flags(Cook))["lora.rank"].words == ("3",)


@pytest.mark.parametrize(
    ("written", "word"),
    [("[[8,4],[16,4]]", "[[8,4],[16,4]]"), ("[1, 2]", "[1,2]"), ("\n- [1]\n- 2\n", "[[1],2]"), ("7", "7")],
)
def test_a_list_of_numbers_is_the_text_of_a_flag_that_takes_one(
    tmp_path: Path, written: str, word: str
) -> None:
    assert read(tmp_path, f"dish: d\nheat: low\nmodel: {written}").model == word


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert read_settings(tmp_path / "run.yaml", flags(Cook)) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("heta: low", "run.yaml line 1: heta is no option of this command"),
        ("heat: low\nheat: high", "run.yaml line 2: heat is given twice"),
        ("salt: {a: 1}", "run.yaml line 1: salt is nested"),
        ("note: [[a]]", "run.yaml line 1: note is nested"),
        ("lora: 3", "run.yaml line 1: lora holds no names"),
        ("model: [[a]]", "run.yaml line 1: model is nested; a value or a list of values is allowed; put"),
        ("model: [a, b]\ndish: d\nheat: low", "run.yaml line 1: model has 2 values"),
        ("[a, b]: 3", "run.yaml line 1: a name is a list or a mapping"),
        ("model: " + "[" * 100_000, "is not YAML"),
        ("- a", "run.yaml line 1: the file holds no names"),
        ("a: [", "is not YAML"),
        ("model: m\ndish: d\nheat: low\nsalt: x", "run.yaml line 4: salt is given 'x'"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as told:
        read(tmp_path, text)
    assert says in str(told.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml", flags(Cook))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read"):
        read_settings(tmp_path / "bytes.yaml", flags(Cook))
