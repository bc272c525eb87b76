"""How fast a rank is on paper: what a step reads and computes, over what its device gives, and its links.

Of ranks side by side the slowest counts, stages take turns. How reading and computing go together, and what
is between kernels, was fitted to the table "Among peers, interleaved" of docs/log.md, 2026-11-27, second
part: a model of half a billion on two cores, bfloat16 and four schemes, batches of 1 and 8. Decode is within
8% there, prefill within 5% but for one cell of ten.
"""

from __future__ import annotations

from dataclasses import dataclass

from oneroof.audit.memory import ITEMSIZE, Reads, Storage, reads
from oneroof.config import ModelConfig
from oneroof.layout import Grid, Share

LATENCY = 10e-6  # seconds of a message, or of a sum over ranks, however small it is
BETWEEN = 0.13e-3  # seconds of a layer that are neither reading nor products, on a CPU
_TOGETHER = 2.5  # (reading^p + computing^p)^(1/p): they overlap, the more the less alike they are


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one device reaches in a second, or nothing where that is not known."""

    bandwidth: float | None  # bytes of its memory
    arithmetic: float | None  # multiplications and additions of products, counted apart
    link: float | None  # bytes to another rank; None: only the latency counts
    head: float | None = None  # arithmetic of the output head, where that is another

    def shared(self, ranks: int) -> Rates:
        """Of each of `ranks` on one machine."""
        rates = (self.bandwidth, self.arithmetic, self.link, self.head)
        bandwidth, arithmetic, link, head = (None if r is None else r / ranks for r in rates)
        return Rates(bandwidth=bandwidth, arithmetic=arithmetic, link=link, head=head)


@dataclass(frozen=True)
class Step:
    """Seconds of one step, by what it waits for."""

    memory: float
    arithmetic: float
    links: float
    between: float

    @property
    def seconds(self) -> float:
        """In all."""
        p = _TOGETHER
        both: float = (self.memory**p + self.arithmetic**p) ** (1 / p)
        return both + self.links + self.between

    @property
    def limit(self) -> str:
        """What takes the most of it."""
        named = {
            "memory": self.memory,
            "arithmetic": self.arithmetic,
            "links": self.links,
            "what is between kernels": self.between,
        }
        return max(named, key=lambda name: named[name])


def step(
    config: ModelConfig,
    grid: Grid,
    shares: tuple[Share, ...],
    storage: Storage,
    rates: Rates,
    *,
    tokens: int,
    texts: int,
    positions: float,
    seen: float,
) -> Step | None:
    """Of an engine of `grid`; the letters are those of `reads`. None where the device's rates are unknown."""
    if rates.bandwidth is None or rates.arithmetic is None:
        return None
    memory = arithmetic = 0.0
    for stage in range(grid.pp):
        times = [
            _alone(
                reads(config, share, storage, tokens=tokens, texts=texts, positions=positions, seen=seen),
                rates.bandwidth,
                rates.arithmetic,
                rates.head or rates.arithmetic,
            )
            for share, _ in distinct(shares[stage * grid.tp : (stage + 1) * grid.tp])
        ]
        slowest = max(times, key=max)
        memory, arithmetic = memory + slowest[0], arithmetic + slowest[1]
    links = _links(config, grid, storage, rates.link, tokens, texts)
    return Step(memory, arithmetic, links, BETWEEN * config.depth)


def _alone(needed: Reads, bandwidth: float, arithmetic: float, head: float) -> tuple[float, float]:
    computed = (needed.products + needed.scores) / arithmetic + needed.head / head
    return (needed.weights + needed.cache) / bandwidth, computed


def distinct(shares: tuple[Share, ...]) -> list[tuple[Share, int]]:
    """One of each kind, and how many there are: shares of the same lengths take the same bytes and times."""
    kinds: dict[object, list[Share]] = {}
    for share in shares:
        spans = (share.heads, share.kv_heads, share.width, share.shared_width, share.expert_width)
        lengths = tuple(map(len, (*spans, share.experts, share.vocabulary)))
        kinds.setdefault((share.layers.start, share.leads, lengths), []).append(share)
    return [(alike[0], len(alike)) for alike in kinds.values()]


def _links(
    config: ModelConfig, grid: Grid, storage: Storage, link: float | None, tokens: int, texts: int
) -> float:
    """A sum over a stage's ranks behind each attention and MLP and for the table's rows, logits gathered; and
    between stages the two tensors that a layer hands on.
    """
    row = tokens * config.dim * storage.itemsize
    seconds = 0.0
    if grid.tp > 1:
        part = (grid.tp - 1) / grid.tp
        sums = 2 * config.depth + 1
        gathered = texts * config.vocabulary * ITEMSIZE["float32"] * part
        seconds += (sums + 1) * LATENCY + _seconds(sums * 2 * row * part + gathered, link)
    if grid.pp > 1:
        seconds += (grid.pp - 1) * (LATENCY + _seconds(2 * row, link))
    return seconds


def _seconds(size: float, link: float | None) -> float:
    return 0.0 if link is None else size / link
