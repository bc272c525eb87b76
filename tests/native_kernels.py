"""What tests of the native CPU kernels share: whether they are there, and a number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from oneroof.ops.cpu import library

with_kernels = pytest.mark.skipif(
    library.native() is None, reason=f"no native kernels: {library.status()['at work']}"
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads in the pool meanwhile."""
    found = library.native()
    assert found is not None
    before = found.lib.oneroof_threads()
    found.lib.oneroof_set_threads(count)
    try:
        yield
    finally:
        found.lib.oneroof_set_threads(before)
