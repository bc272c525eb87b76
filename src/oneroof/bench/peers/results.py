"""What a model's turns amount to: medians with ranges, shares of what the machine gives, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from oneroof.bench.floor import traffic
from oneroof.bench.measure import Spread, spread
from oneroof.bench.peers.contest import Cell, Turn
from oneroof.bench.peers.roster import Variant
from oneroof.config import ModelConfig
from oneroof.models.sizes import sizes

STORED_BITS = {32: 32.0, 16: 16.0, 8: 8.0, 4: 4.5}  # of a weight; 4: with a 16-bit scale for each 32
_CACHE_BYTES = {32: 4, 16: 2, 8: 2, 4: 2}  # of a key or value


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant in one cell."""

    variant: Variant
    version: str
    cell: Cell
    prefill: Spread  # tokens a second
    decode: Spread  # tokens a second of all texts together
    floor: float  # tokens a second, if a step took no longer than reading its weights, keys and values
    summit: float  # prefill tokens a second, if the weights' products ran at the probe's rate
    foreign: float  # processors that others took, at most


@dataclass(frozen=True)
class Footing:
    """What a variant takes before it writes."""

    variant: Variant
    version: str
    loaded: Spread  # seconds
    peak: float  # bytes


@dataclass(frozen=True)
class Ratio:
    """oneroof's best over the best peer's, in a cell; `bits` None: whatever the precision."""

    cell: Cell
    bits: int | None
    quantity: str  # prefill, decode
    ours: Row
    peer: Row
    value: float


@dataclass
class Result:
    """A model's turns so far, and who had none."""

    model: str
    config: ModelConfig
    versions: dict[Variant, str] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    skipped: dict[Variant, str] = field(default_factory=dict)  # why it had no turn

    @property
    def failures(self) -> dict[Variant, str]:
        """Who began and did not end, and why."""
        return {turn.variant: turn.failure for turn in self.turns if turn.failure}

    def rows(self) -> list[Row]:
        """By cell, then by precision from the widest on, then as the peers were named."""
        cells = dict.fromkeys(cell for turn in self.turns for cell in turn.timings)
        ordered = sorted(cells, key=lambda cell: (cell.batch, cell.case.prompt))
        return [row for cell in ordered for variant in self._variants() for row in self._row(variant, cell)]

    def footings(self) -> list[Footing]:
        """One for each variant that was loaded."""
        return [footing for variant in self._variants() for footing in self._footing(variant)]

    def ratios(self) -> list[Ratio]:
        """Where both sides were measured: by width of the weights, and of any."""
        rows = self.rows()
        cells = dict.fromkeys(row.cell for row in rows)
        return [
            ratio
            for cell in cells
            for bits in (*sorted(STORED_BITS, reverse=True), None)
            for quantity in ("prefill", "decode")
            for ratio in _ratio([row for row in rows if row.cell == cell], cell, bits, quantity)
        ]

    def _variants(self) -> list[Variant]:
        return [variant for variant in self.versions if any(turn.variant == variant for turn in self.turns)]

    def _row(self, variant: Variant, cell: Cell) -> Iterator[Row]:
        turns = [turn for turn in self.turns if turn.variant == variant and cell in turn.timings]
        if not turns:
            return
        timings = [turn.timings[cell] for turn in turns]
        read, made = step_bytes(self.config, variant.bits, cell), prefill_work(self.config, cell)
        tokens = cell.prompts
        yield Row(
            variant=variant,
            version=self.versions[variant],
            cell=cell,
            prefill=spread([tokens / one.prefill for one in timings]),
            decode=spread([cell.batch / one.step for one in timings]),
            floor=cell.batch * statistics.median(turn.reading.bandwidth for turn in turns) / read,
            summit=tokens * statistics.median(turn.reading.arithmetic for turn in turns) / made,
            foreign=max(one.foreign for one in timings),
        )

    def _footing(self, variant: Variant) -> Iterator[Footing]:
        turns = [turn for turn in self.turns if turn.variant == variant]
        loaded = [turn.loaded for turn in turns if turn.loaded is not None]
        if loaded:
            peak = max((turn.peak or 0.0) for turn in turns)
            yield Footing(variant, self.versions[variant], spread(loaded), peak)


def step_bytes(config: ModelConfig, bits: int, cell: Cell) -> float:
    """What a later token of every text has to read: weights of so many bits, and keys and values."""
    behind = cell.case.prompt + cell.case.tokens / 2
    values = traffic(config, 1, cell.batch, behind)
    return values.weights * STORED_BITS[bits] / 8 + values.cache * _CACHE_BYTES[bits]


def prefill_work(config: ModelConfig, cell: Cell) -> float:
    """Multiplications and additions of the weights in a prefill, the head for a text's last token alone."""
    head = config.vocabulary * config.dim
    body = sizes(config).active - head
    return 2.0 * cell.batch * (body * cell.case.prompt + head)


def _ratio(rows: Sequence[Row], cell: Cell, bits: int | None, quantity: str) -> Iterator[Ratio]:
    def rate(row: Row) -> float:
        return (row.prefill if quantity == "prefill" else row.decode).median

    alike = [row for row in rows if bits in (None, row.variant.bits)]
    ours = [row for row in alike if row.variant.ours]
    peers = [row for row in alike if not row.variant.ours]
    if ours and peers:
        mine, theirs = max(ours, key=rate), max(peers, key=rate)
        yield Ratio(cell, bits, quantity, mine, theirs, rate(mine) / rate(theirs))
