"""Kernels are tested in every instruction set that works here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oneroof.ops.cpu import library


@pytest.fixture(scope="module", params=library.VARIANTS)
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
