"""The machine's rates, by the native kernels and without them."""

from __future__ import annotations

import pytest

from oneroof.bench.peers import probes


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneroof.bench.floor._BLOCK", 1 << 22)
    monkeypatch.setattr(probes, "_SIDE", 64)


def test_the_native_rates_are_taken_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "streamed", lambda device: 3e9)
    monkeypatch.setattr(probes, "multiply_add_rate", lambda: 5e9)
    assert probes.read() == probes.Reading(3e9, 5e9)


def test_torch_gives_them_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneroof.bench.floor.read_rate", lambda: None)
    monkeypatch.setattr(probes, "multiply_add_rate", lambda: None)
    found = probes.read()
    assert 1e7 < found.bandwidth < 1e13 and 1e6 < found.arithmetic < 1e14
