"""Rank processes that are started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oneroof.comm.crew import Crew
from oneroof.engine.ranks import MODULE


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    made = Crew(MODULE)
    yield made
    made.close()
