"""One server for all tests of a file that leave it as they found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from served import Served, serving


@pytest.fixture(scope="session")
def model(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3", max_position_embeddings=1024)


@pytest.fixture(scope="package")
def server(model: Path) -> Iterator[Served]:
    with serving(model) as found:
        yield found
        assert found.idle()
