"""The options that every command which loads a model shares."""

from __future__ import annotations

import pytest

from oneroof.cli.options import ModelOptions
from oneroof.errors import UserError


@pytest.mark.parametrize("name", ["threads", "max_batch", "max_model_len", "layers"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} 0 was given; 1 or more is allowed"):
        ModelOptions("demo", **{name: 0})  # type: ignore[arg-type]
    assert ModelOptions("demo", **{name: 1})  # type: ignore[arg-type]
