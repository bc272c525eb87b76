"""Kernels are tested in each instruction set that works here; between the least and the best: slow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oneroof.ops.cpu import library


def _best() -> str:
    found = library.native()
    return found.variant if found is not None else "avx2"


_SETS = [
    name if name in ("avx2", _best()) else pytest.param(name, marks=pytest.mark.slow)
    for name in library.VARIANTS
]


@pytest.fixture(scope="module", params=_SETS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serves while the tests of a file run."""
    found = library.native()
    name: str = request.param
    if found is None:
        pytest.skip(f"no native kernels: {library.status()['at work']}")
    if found.lib.oneroof_select(name.encode()) != 0 or library.status().get(name) != library.WORKS:
        found.lib.oneroof_select(found.variant.encode())
        pytest.skip(f"{name} is {library.status().get(name)}")
    yield name
    found.lib.oneroof_select(found.variant.encode())
