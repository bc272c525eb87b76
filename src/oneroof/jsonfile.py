"""A JSON object from a file: what is there, or one line that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

from oneroof.errors import UserError


def read_object(path: Path) -> dict[str, object]:
    """The object in `path`, ``{}`` where there is no such file. Raises UserError on anything else."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); a JSON object is allowed; fetch it again"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; a JSON object is allowed; fetch it again")
    return value
