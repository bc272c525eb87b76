"""docs/commands.md says what the commands' dataclasses say."""

from __future__ import annotations

from pathlib import Path

from oneroof.cli.document import commands_page
from oneroof.cli.main import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_of_commands_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == commands_page(), "`make docs` writes it"


def test_every_command_has_its_section() -> None:
    page = commands_page()
    assert all(f"\n## oneroof {name}" in page for name in COMMANDS)
