"""Errors that a user can act on."""

from __future__ import annotations

from oneroof.errors import UserError


def test_a_message_is_one_line() -> None:
    assert str(UserError("found  3;\n  4 is allowed;\ttry 4")) == "found 3; 4 is allowed; try 4"
