"""`--switch NAME=VALUE`: variables for a model's chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence

from oneroof.cli.lines import check_unicode
from oneroof.errors import UserError


def read_switches(words: Sequence[str]) -> dict[str, object]:
    """Each NAME=VALUE, where VALUE is JSON if it reads as such, else text; UserError for another form."""
    found: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UserError(f"--switch {word} was given; NAME=VALUE is allowed; try enable_thinking=false")
        check_unicode(value, f"--switch {name}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):  # the second, of brackets without end
            found[name] = value
    return found
