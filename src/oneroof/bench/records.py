"""Rows as the house's records: one a number; three, the median, the least and the most, where rounds vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from oneroof.bench.measure import Row, Spread
from oneroof.bench.table import averages, batches
from oneroof.report import Record

Facts = Mapping[str, str | int | float | bool]


def records(rows: Sequence[Row], facts: Facts, device: str) -> Iterator[Record]:
    """Every number of `rows`, and the averages of each batch size; `facts` are the options that count."""
    for row in rows:
        shape = {**facts, "batch": row.batch, "input": row.case.prompt, "output": row.case.tokens}
        yield from _row(row, shape, device)
    for batch in batches(rows):
        group = [row for row in rows if row.batch == batch]
        cases = " ".join(str(row.case) for row in group)
        shape = {**facts, "batch": batch, "cases": cases}
        names = ("non-first token throughput average", "e2e throughput average")
        for name, value in zip(names, averages(group), strict=True):
            if value is not None:
                yield Record(name=name, value=value, unit="tokens/s", config=shape, device=device)


def _row(row: Row, shape: Facts, device: str) -> Iterator[Record]:
    def one(name: str, value: float, unit: str, **more: str) -> Record:
        return Record(name=name, value=value, unit=unit, config={**shape, **more}, device=device)

    each = 1 / row.batch
    spreads: list[tuple[str, Spread | None, float, str]] = [
        ("total time", row.total, 1.0, "s"),
        ("prefill all time", row.prefill, 1e3, "ms"),
        ("prefill average time", row.prefill, 1e3 * each, "ms"),
        ("non-first token time", row.step, 1e3, "ms"),
    ]
    for name, spread, scale, unit in spreads:
        if spread is not None:
            for statistic in ("median", "least", "most"):
                value = {"median": spread.median, "least": spread.least, "most": spread.most}[statistic]
                yield one(name, value * scale, unit, statistic=statistic)
    numbers = [
        ("non-first token throughput", row.step_rate, "tokens/s"),
        ("e2e throughput", row.rate, "tokens/s"),
        ("bytes read by a step", row.read, "bytes"),
        ("bandwidth", row.bandwidth, "bytes/s"),
        ("floor of the non-first token time", row.floor * 1e3, "ms"),
        ("floor reached", row.reached, ""),
        ("Python's share", row.outside, ""),
    ]
    yield from (one(name, value, unit) for name, value, unit in numbers if value is not None)
