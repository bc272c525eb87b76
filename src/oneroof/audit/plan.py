"""Will it fit and how fast: every layout of some devices on paper, which one to take, or what is missing.

From a `config.json` alone, without torch. Ranks are dp engines of pp stages of tp ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from oneroof.audit.memory import Storage, activations, by_part, cache, kv_token
from oneroof.audit.speed import Rates, Step, distinct, step
from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.layout import Grid, Share, check, share_of
from oneroof.quant.forms import FORMS

_AS_GOOD = 0.98  # of the best speed: nobody could tell them apart


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is to be planned."""

    config: ModelConfig
    storage: Storage
    devices: int
    memory: float  # bytes of each
    context: int  # tokens of each text
    batch: int  # texts at once, over all engines
    rates: Rates
    at_once: int = 2048  # most tokens of a step
    page: int = 16  # positions
    tp: int | None = None  # None: whatever fits
    pp: int | None = None
    ep: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Bytes of one rank, and how many are like it."""

    parts: dict[str, int]  # of the weights
    cache: int
    activations: int
    kv_token: int
    alike: int

    @property
    def weights(self) -> int:
        """All parts of them."""
        return sum(self.parts.values())

    @property
    def bytes(self) -> int:
        """In all."""
        return self.weights + self.cache + self.activations


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to share out the devices."""

    dp: int
    grid: Grid
    ranks: tuple[Rank, ...]  # of one engine, one of each kind
    fits: bool
    decode: float | None  # tokens a second of all texts
    prefill: float | None
    step: Step | None  # of the decode

    @property
    def heaviest(self) -> Rank:
        """The rank that takes the most."""
        return max(self.ranks, key=lambda rank: rank.bytes)

    def __str__(self) -> str:
        words = [f"dp {self.dp}"] * (self.dp > 1) + [str(self.grid)] * (self.grid.ranks > 1)
        return " ".join(words) or "one rank"


@dataclass(frozen=True)
class Plan:
    """All layouts, the best first; which to take and why, or what is missing and what would do."""

    layouts: tuple[Layout, ...]
    chosen: Layout | None
    reason: str
    remedies: tuple[str, ...]


def plan(ask: Ask) -> Plan:
    """Raises UserError where no layout of these devices can be, whatever their memory."""
    layouts = sorted(_layouts(ask), key=_order)
    fitting = [layout for layout in layouts if layout.fits]
    if fitting:
        chosen = _chosen(fitting)
        layouts.remove(chosen)
        layouts.insert(0, chosen)
        return Plan(tuple(layouts), chosen, _why(ask, chosen, fitting, layouts), ())
    closest = min(layouts, key=lambda layout: layout.heaviest.bytes)
    rank = closest.heaviest
    reason = (
        f"nothing fits: at the least ({closest}) a rank takes {_gb(rank.bytes)}, of which weights are "
        f"{_gb(rank.weights)}, the cache {_gb(rank.cache)} and activations {_gb(rank.activations)}; "
        f"of {_gb(ask.memory)} a device, {_gb(rank.bytes - ask.memory)} are missing"
    )
    return Plan(tuple(layouts), None, reason, tuple(_remedies(ask)))


def grids(ask: Ask) -> Iterator[tuple[int, Grid]]:
    """(dp, grid) of every layout that this model can be cut for; UserError where there is none."""
    fixed = (ask.tp, ask.pp, ask.ep)
    check(ask.config, Grid(tp=ask.tp or ask.ep or 1, pp=ask.pp or 1, ep=ask.ep or 1))
    found = False
    for tp in _divisors(ask.devices):
        for pp in _divisors(ask.devices // tp):
            for ep in _divisors(tp) if ask.config.experts is not None else (1,):
                grid = Grid(tp=tp, pp=pp, ep=ep)
                sizes = zip(fixed, (tp, pp, ep), strict=True)
                if all(asked in (None, size) for asked, size in sizes) and _can(ask.config, grid):
                    found = True
                    yield ask.devices // grid.ranks, grid
    if not found:
        named = zip(("--tp", "--pp", "--ep"), fixed, strict=True)
        given = " ".join(f"{name} {size}" for name, size in named if size is not None)
        raise UserError(
            f"{ask.devices} devices were given with {given}; multiples of tp x pp are allowed, and divisors "
            "of tp as ep; leave one of them out"
        )


def _can(config: ModelConfig, grid: Grid) -> bool:
    try:
        check(config, grid)
    except UserError:
        return False
    return True


def _layouts(ask: Ask) -> Iterator[Layout]:
    for dp, grid in grids(ask):
        shares = tuple(share_of(ask.config, grid, rank, group=_group(ask)) for rank in range(grid.ranks))
        yield _layout(ask, dp, grid, shares)


def _layout(ask: Ask, dp: int, grid: Grid, shares: tuple[Share, ...]) -> Layout:
    config, storage = ask.config, ask.storage
    texts = -(-ask.batch // dp)
    ranks = tuple(_rank(ask, share, texts, alike) for share, alike in distinct(shares))
    fits = all(rank.bytes <= ask.memory for rank in ranks)
    behind = float(ask.context)
    told = step(
        *(config, grid, shares, storage, ask.rates),
        tokens=texts,
        texts=texts,
        positions=behind,
        seen=behind,
    )
    chunks = -(-ask.context // ask.at_once)
    read = step(
        *(config, grid, shares, storage, ask.rates),
        tokens=-(-ask.context // chunks),
        texts=1,
        positions=behind / 2,
        seen=behind / 2,
    )
    return Layout(
        dp=dp,
        grid=grid,
        ranks=ranks,
        fits=fits,
        decode=None if told is None else ask.batch / told.seconds,
        prefill=None if read is None else min(dp, ask.batch) * ask.context / (chunks * read.seconds),
        step=told,
    )


def _rank(ask: Ask, share: Share, texts: int, alike: int) -> Rank:
    config, storage = ask.config, ask.storage
    tokens = max(texts, min(ask.at_once, texts * ask.context))
    return Rank(
        parts=by_part(config, share, storage),
        cache=cache(config, share, storage, texts, ask.context, ask.page),
        activations=activations(config, share, storage, tokens, texts),
        kv_token=kv_token(config, share, storage),
        alike=alike,
    )


def _order(layout: Layout) -> tuple[bool, float, int]:
    """Those that fit first, then by speed, then by how little they cut."""
    return not layout.fits, -(layout.decode or 0.0), layout.grid.ranks


def _chosen(fitting: list[Layout]) -> Layout:
    """The fastest, or what is as good as that and simpler."""
    best = max(layout.decode or 0.0 for layout in fitting)
    close = [layout for layout in fitting if (layout.decode or 0.0) >= _AS_GOOD * best]
    return min(close, key=lambda layout: (layout.grid.ep, layout.grid.ranks, layout.grid.pp))


def _why(ask: Ask, chosen: Layout, fitting: list[Layout], layouts: list[Layout]) -> str:
    many = f"{len(fitting)} of {len(layouts)} layouts fit" if len(layouts) > 1 else "it fits"
    left = ask.memory - chosen.heaviest.bytes
    room = f"{_gb(left)} of {_gb(ask.memory)} a device are left"
    if chosen.decode is None or chosen.step is None:
        least = "it cuts the model the least; " if len(fitting) > 1 else ""
        return f"{many}; {least}{room}; speeds need --bandwidth and --arithmetic"
    limit = f"a step of {chosen.step.seconds * 1e3:.3g} ms waits most for {chosen.step.limit}"
    best = "none writes more tokens/s; " if len(fitting) > 1 else ""
    return f"{many}; {best}{limit}; {room}"


def _remedies(ask: Ask) -> Iterator[str]:
    """What would do, each by itself."""
    if ask.devices < 512 and not (ask.tp and ask.pp):
        for devices in _more(ask.devices):
            if found := _fit(replace(ask, devices=devices)):
                yield f"--devices {devices} ({found})"
                break
    if ask.storage.quantization == "none":
        for word in (word for word in FORMS if word.endswith("a16")):
            if found := _fit(replace(ask, storage=replace(ask.storage, quantization=word))):
                yield f"--quantization {word} ({found})"
                break
    if ask.storage.kv == "float" and (found := _fit(replace(ask, storage=replace(ask.storage, kv="kv8")))):
        yield f"--kv kv8 ({found})"
    if context := _most(ask, "context"):
        yield f"--context {context}"
    if batch := _most(ask, "batch"):
        yield f"--batch {batch}"
    least = min(layout.heaviest.bytes for layout in _layouts(_unhurried(ask)))
    yield f"--device-memory {least / 1e9 + 0.05:.1f}"


def _more(devices: int) -> Iterator[int]:
    while devices < 512:
        devices *= 2
        yield devices


def _most(ask: Ask, name: str) -> int:
    """The largest `context` or `batch` below the asked one that fits; 0 where none does."""
    low, high = 0, getattr(ask, name) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _fit(replace(ask, **{name: middle})):
            low = middle
        else:
            high = middle - 1
    return low


def _fit(ask: Ask) -> Layout | None:
    """A layout that fits, the one that cuts the least."""
    try:
        found = [layout for layout in _layouts(_unhurried(ask)) if layout.fits]
    except UserError:
        return None
    return min(found, key=lambda layout: (layout.grid.ranks, layout.grid.pp), default=None)


def _unhurried(ask: Ask) -> Ask:
    return replace(ask, rates=Rates(bandwidth=None, arithmetic=None, link=None))


def _group(ask: Ask) -> int:
    return FORMS[ask.storage.quantization].linear.group


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
