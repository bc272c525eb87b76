"""The command line joined with a file of options."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Cook

from oneroof.cli.parse import help_text, parse
from oneroof.errors import UserError

WORDS = ("m", "soup", "--heat", "low")


def test_flags_and_positions_may_be_mixed() -> None:
    dish = parse("cook", Cook, ["--heat", "high", "m", "--salt=2", "soup", "--quiet", "bread"]).command
    assert dish == Cook("m", ("soup", "bread"), heat="high", salt=2.0, quiet=True)


def test_a_flag_that_repeats_keeps_its_order() -> None:
    assert parse("cook", Cook, [*WORDS, "--note", "b", "--note=--a"]).command.note == ("b", "--a")


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: file\ndish: [a, b]\nheat: low\nquiet: true\nnote: [a]\nlora: {rank: 2, dropout: 0.5}\n"
    )
    dish = parse(
        "cook", Cook, ["--config", str(path), "--no-quiet", "--note", "x", "--lora.rank", "3"]
    ).command
    assert (dish.model, dish.dish, dish.quiet, dish.note) == ("file", ("a", "b"), False, ("x",))
    assert (dish.lora.rank, dish.lora.dropout) == (3, 0.5)


def test_debug_is_handed_on() -> None:
    assert not parse("cook", Cook, WORDS).debug
    assert parse("cook", Cook, [*WORDS, "--debug"]).debug


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--slat", "1"), "--slat is no option of cook; --help lists those allowed; try --salt"),
        (("--xyz=3",), "--xyz is no option of cook; --help lists those allowed; see oneroof cook --help"),
        (("--salt",), "--salt: expected one argument; see oneroof cook --help"),
        (("--note", "-a -b", "--salt", "x"), "--salt is given 'x'"),
        (("--sal", "1"), "--sal is no option of cook"),
    ],
)
def test_a_wrong_word_is_told(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as told:
        parse("cook", Cook, [*WORDS, *words])
    assert says in str(told.value)


def test_help_lists_every_flag_under_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text("cook", Cook)
    assert text.startswith("usage: oneroof cook MODEL DISH ... [options]\n\nCook something.")
    assert "--heat low|high" in text and "How hot. (required)" in text
    assert text.index("--heat") < text.index("What all of them take:") < text.index("--threads N|auto")
    with pytest.raises(SystemExit):
        parse("cook", Cook, ["--help"])
    assert capsys.readouterr().out == text
