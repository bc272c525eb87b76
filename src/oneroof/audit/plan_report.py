"""A plan told: as aligned text for a reader, and as one object for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from oneroof.audit.memory import PARTS, by_part, kv_token, pieces, reads
from oneroof.audit.plan import Ask, Layout, Plan
from oneroof.audit.training import Trained
from oneroof.layout import ALONE, share_of
from oneroof.models.sizes import sizes

_MOST = 12  # layouts in a text
_WIDTH = 100  # of a text

Cells = tuple[str, ...]


def as_object(name: str, ask: Ask, found: Plan, trained: Sequence[Trained]) -> dict[str, object]:
    """Plain JSON data; bytes, seconds and tokens a second."""
    counted = sizes(ask.config)
    whole = share_of(ask.config, ALONE, 0)
    told: dict[str, object] = {
        "model": name,
        "parameters": {"total": counted.parameters, "active": counted.active, **_parameters(ask)},
        "bytes": by_part(ask.config, whole, ask.storage),
        "kv_bytes_per_token": kv_token(ask.config, whole, ask.storage),
        "decode_reads": _reads(ask),
        "asked": {
            **asdict(ask.storage),
            "devices": ask.devices,
            "device_bytes": round(ask.memory),
            "context": ask.context,
            "batch": ask.batch,
            "max_batch_tokens": ask.at_once,
            "page_size": ask.page,
        },
        "rates": asdict(ask.rates),
        "layouts": [_layout(layout) for layout in found.layouts],
        "recommended": None if found.chosen is None else _sizes(found.chosen),
        "reason": found.reason,
        "remedies": list(found.remedies),
    }
    if trained:
        told["training"] = [_trained(one) for one in trained]
    return told


def as_text(name: str, ask: Ask, found: Plan, trained: Sequence[Trained]) -> str:
    """What the model is, the layouts, which to take; no line of it longer than a screen's."""
    counted, config, storage = sizes(ask.config), ask.config, ask.storage
    whole = share_of(config, ALONE, 0)
    form = storage.dtype + (f", {storage.quantization}" if storage.quantization != "none" else "")
    head = f"{name}: {_count(counted.parameters)} parameters, {_count(counted.active)} at work for a token"
    read = _reads(ask)
    texts = f"{ask.batch} text{'s' * (ask.batch > 1)} of {ask.context} tokens"
    devices = f"{ask.devices} device{'s' * (ask.devices > 1)} of {_giga(ask.memory)} GB"
    lines = [
        f"{head}; {form}",
        *_table([("", "parameters", "GB"), *_parts(ask)], left=1),
        f"a token's keys and values take {kv_token(config, whole, storage) / 1e3:.4g} kB; a step for {texts}",
        f"reads {_giga(read['weights'])} GB of weights and {_giga(read['cache'])} GB of keys and values",
        "",
        f"{texts} on {devices}",
    ]
    lines += _layouts(ask, found)
    said = f"take {found.chosen}: {found.reason}" if found.chosen else found.reason
    lines += ["", *textwrap.wrap(said, _WIDTH, break_on_hyphens=False)]
    if found.remedies:
        lines += ["any of these would do:", *(f"  {remedy}" for remedy in found.remedies)]
    if trained:
        lines += ["", *_training(ask, trained)]
    return "\n".join(lines)


def _parts(ask: Ask) -> list[Cells]:
    counts = _parameters(ask)
    held = by_part(ask.config, share_of(ask.config, ALONE, 0), ask.storage)
    rows = [(part, _count(counts[part]), _giga(held[part])) for part in PARTS if part in held]
    return [*rows, ("all", _count(sum(counts.values())), _giga(sum(held.values())))]


def _layouts(ask: Ask, found: Plan) -> list[str]:
    rows: list[Cells] = [
        ("", "fits", "weights", "cache", "activ.", "a rank", "kv a token", "decode", "prefill", "waits for"),
        ("", "", "GB", "GB", "GB", "GB", "kB", "tokens/s", "tokens/s", ""),
    ]
    for layout in found.layouts[:_MOST]:
        rank, step = layout.heaviest, layout.step
        rows.append(
            (
                str(layout),
                "yes" if layout.fits else "no",
                _giga(rank.weights),
                _giga(rank.cache),
                _giga(rank.activations),
                _giga(rank.bytes),
                f"{rank.kv_token / 1e3:.4g}",
                _rate(layout.decode),
                _rate(layout.prefill),
                "-" if step is None else step.limit,
            )
        )
    lines = _table(rows, left=1)
    if more := len(found.layouts) - _MOST:
        lines += [f"and {more} more, which --json lists"] * (more > 0)
    rates = ask.rates
    if rates.bandwidth is not None and rates.arithmetic is not None:
        link = "no time but latency" if rates.link is None else f"{rates.link / 1e9:.3g} GB/s"
        lines.append(
            f"a device: {rates.bandwidth / 1e9:.3g} GB/s, {rates.arithmetic / 1e12:.3g} TFLOP/s, links {link}"
        )
    return lines


def _training(ask: Ask, trained: Sequence[Trained]) -> list[str]:
    rows: list[Cells] = [
        ("training", "weights", "gradients", "states", "/ dp", "activ.", "recomputed", "fits with"),
        ("", "GB", "GB", "GB", "GB", "GB", "GB", ""),
    ]
    words = {"yes": "nothing", "dealt": "states over dp", "both": "recompute, states over dp", "no": "-"}
    for one in trained[:_MOST]:
        numbers = (
            *(one.weights, one.gradients, one.states, one.dealt_states),
            *(one.activations, one.recomputed),
        )
        rows.append((_named(one), *map(_giga, numbers), words.get(one.fits, one.fits)))
    lines = _table(rows, left=1)
    if all(one.fits == "no" for one in trained):
        least = min(trained, key=lambda one: one.bytes(recompute=True, dealt=True))
        lines.append(
            f"none fits: with recompute and states over dp, a rank of {_named(least)} takes "
            f"{_giga(least.bytes(recompute=True, dealt=True))} GB; {_giga(ask.memory)} GB are there"
        )
    note = f"micro-batches of {ask.batch} x {ask.context} tokens; AdamW: float32 master and two moments"
    return [*lines, note]


def _named(one: Trained) -> str:
    words = [f"dp {one.dp}"] * (one.dp > 1) + [str(one.grid)] * (one.grid.ranks > 1)
    return " ".join(words) or "one rank"


def _table(rows: Sequence[Cells], *, left: int) -> list[str]:
    """Aligned columns: the first ones at the left, the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _parameters(ask: Ask) -> dict[str, int]:
    found = dict.fromkeys(PARTS, 0)
    for piece in pieces(ask.config, share_of(ask.config, ALONE, 0)):
        found[piece.part] += piece.parameters
    return found


def _reads(ask: Ask) -> dict[str, float]:
    """Of one decode step of all texts, were they in one engine on one rank."""
    whole, behind = share_of(ask.config, ALONE, 0), float(ask.context)
    read = reads(
        *(ask.config, whole, ask.storage),
        tokens=ask.batch,
        texts=ask.batch,
        positions=behind,
        seen=behind,
    )
    return {"weights": read.weights, "cache": read.cache}


def _layout(layout: Layout) -> dict[str, object]:
    return {
        **_sizes(layout),
        "fits": layout.fits,
        "decode_tokens_per_s": layout.decode,
        "prefill_tokens_per_s": layout.prefill,
        "step": None if layout.step is None else {**asdict(layout.step), "seconds": layout.step.seconds},
        "ranks": [
            {
                "alike": rank.alike,
                "bytes": rank.bytes,
                "weights": rank.weights,
                "parts": rank.parts,
                "cache": rank.cache,
                "kv_bytes_per_token": rank.kv_token,
                "activations": rank.activations,
            }
            for rank in layout.ranks
        ],
    }


def _sizes(layout: Layout | Trained) -> dict[str, object]:
    grid = layout.grid
    return {"dp": layout.dp, "pp": grid.pp, "tp": grid.tp, "ep": grid.ep}


def _trained(one: Trained) -> dict[str, object]:
    numbers = {name: value for name, value in asdict(one).items() if name not in ("dp", "grid")}
    return {**_sizes(one), **numbers}


def _count(number: int) -> str:
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.4g}{word}"
    return str(number)


def _giga(size: float) -> str:
    return f"{size / 1e9:.3g}" if size >= 1e6 else f"{size / 1e9:.1g}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
