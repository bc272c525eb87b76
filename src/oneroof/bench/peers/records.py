"""A comparison as the house's records: one a number, with the peer and the cell that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator

from oneroof.bench.measure import Spread
from oneroof.bench.peers.results import Result, Row
from oneroof.bench.records import Facts
from oneroof.report import Record


def records(result: Result, facts: Facts, device: str) -> Iterator[Record]:
    """Every number of a model: rates, shares, loads and ratios; `facts` are the options that count."""

    def one(name: str, value: float, unit: str, **more: str | int | float) -> Record:
        config = {**facts, "model": result.model, **more}
        return Record(name=name, value=value, unit=unit, config=config, device=device)

    def three(name: str, rates: Spread, unit: str, **more: str | int | float) -> Iterator[Record]:
        values = {"median": rates.median, "least": rates.least, "most": rates.most}
        yield from (one(name, value, unit, **more, statistic=kind) for kind, value in values.items())

    for turn in result.turns:
        named = _named(str(turn.variant.peer.name), turn.variant.form, result.versions[turn.variant])
        yield one("bandwidth", turn.reading.bandwidth, "bytes/s", **named)
        yield one("multiply-add rate", turn.reading.arithmetic, "operations/s", **named)
    for footing in result.footings():
        named = _named(footing.variant.peer.name, footing.variant.form, footing.version)
        yield from three("load time", footing.loaded, "s", **named)
        yield one("peak memory", footing.peak, "bytes", **named)
    for row in result.rows():
        shape = {**_named(row.variant.peer.name, row.variant.form, row.version), **_shape(row)}
        yield from three("prefill throughput", row.prefill, "tokens/s", **shape)
        yield from three("decode throughput", row.decode, "tokens/s", **shape)
        yield one("decode throughput at the floor", row.floor, "tokens/s", **shape)
        yield one("floor reached", row.decode.median / row.floor, "", **shape)
        yield one("peak reached in prefill", row.prefill.median / row.summit, "", **shape)
        yield one("processors that others took", row.foreign, "", **shape)
    for ratio in result.ratios():
        width = "any" if ratio.bits is None else ratio.bits
        sides = {"ours": str(ratio.ours.variant), "peer": str(ratio.peer.variant)}
        cell = {"batch": ratio.cell.batch, "input": ratio.cell.case.prompt, "output": ratio.cell.case.tokens}
        yield one(f"{ratio.quantity} over the best peer", ratio.value, "", **cell, **sides, bits=width)


def _named(peer: str, form: str, version: str) -> dict[str, str | int | float]:
    return {"peer": peer, "form": form, "version": version}


def _shape(row: Row) -> dict[str, str | int | float]:
    case = row.cell.case
    return {
        "bits": row.variant.bits,
        "batch": row.cell.batch,
        "input": case.prompt,
        "output": case.tokens,
    }
