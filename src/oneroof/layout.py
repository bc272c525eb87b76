"""How a decoder is cut for ranks, as pure data: what a rank holds of it, and of every tensor which slice.

Ranks = pp x tp, pp slowest; `ep` regroups a stage's tp ranks: experts are dealt over ep groups, each expert's
width is cut tp / ep ways. Shares may be unequal and nothing is padded. Names are ours, as in `names.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from oneroof.config import ModelConfig
from oneroof.errors import UserError


@dataclass(frozen=True)
class Span:
    """``start .. stop - 1``."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def times(self, factor: int) -> Span:
        """Of what has `factor` places for each of these."""
        return Span(self.start * factor, self.stop * factor)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How many ranks an engine has, and how they share out its model."""

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @staticmethod
    def of(tp: int, pp: int, ep: int) -> Grid:
        """The grid that these options mean: `ep` alone implies as many tensor parallel ranks."""
        return Grid(tp=ep if tp == 1 else tp, pp=pp, ep=ep)

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.pp * self.tp

    @property
    def driver(self) -> int:
        """The rank that schedules and chooses tokens: the first of the last stage, where logits arise."""
        return (self.pp - 1) * self.tp

    def __str__(self) -> str:
        named = {"tp": self.tp, "pp": self.pp, "ep": self.ep}
        return " ".join(f"{name} {size}" for name, size in named.items() if size > 1) or "one rank"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank holds of a decoder."""

    rank: int
    layers: Span
    first: bool  # its stage reads tokens
    last: bool  # its stage makes logits
    leads: bool  # what is added once, such as the bias behind a sum over ranks, is added here
    heads: Span
    kv_heads: Span
    width: Span  # of a dense MLP
    shared_width: Span
    experts: Span
    expert_width: Span
    vocabulary: Span


@dataclass(frozen=True)
class Cut:
    """A slice of a tensor along one of its axes, which has `whole` places; axis -1: the tensor as it is."""

    axis: int
    start: int = 0
    stop: int = 0
    whole: int = 0

    @property
    def uncut(self) -> bool:
        """It is the whole tensor."""
        return self.axis < 0 or (self.start, self.stop) == (0, self.whole)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of the slice, from that of the tensor."""
        if self.axis < 0:
            return whole
        return (*whole[: self.axis], self.stop - self.start, *whole[self.axis + 1 :])


UNCUT = Cut(-1)
ALONE = Grid()


def even(count: int, parts: int, index: int) -> Span:
    """The `index`-th of `parts` shares of `count` places, as even as can be."""
    return Span(count * index // parts, count * (index + 1) // parts)


def share_of(config: ModelConfig, grid: Grid, rank: int, *, group: int = 0) -> Share:
    """What `rank` holds. Widths that a sum goes over are cut at multiples of `group`, where they have enough.

    Raises UserError as `check` does.
    """
    check(config, grid)
    stage, lane = divmod(rank, grid.tp)
    heads, kv_heads = _heads(config, grid.tp, lane)
    each = grid.tp // grid.ep  # ranks of a group of experts
    experts = config.experts
    return Share(
        rank=rank,
        layers=_layers(config, grid.pp, stage),
        first=stage == 0,
        last=stage == grid.pp - 1,
        leads=lane == 0,
        heads=heads,
        kv_heads=kv_heads,
        width=_width(config.width, grid.tp, lane, group),
        shared_width=_width(experts.shared_width if experts else 0, grid.tp, lane, group),
        experts=even(experts.count if experts else 0, grid.ep, lane // each),
        expert_width=_width(experts.width if experts else 0, each, lane % each, group),
        vocabulary=_vocabulary(config.vocabulary, grid.tp, lane),
    )


def check(config: ModelConfig, grid: Grid) -> None:
    """UserError for a grid that this model cannot be cut for, with the sizes that it can be."""
    experts = config.experts
    if grid.pp > config.depth:
        raise UserError(f"pp is {grid.pp}; 1 to {config.depth} are allowed: the model has so many layers")
    if grid.ep > 1:
        if experts is None:
            raise UserError(f"ep is {grid.ep}; 1 is allowed: the model has no experts; leave it out")
        if grid.tp % grid.ep or grid.ep > experts.count:
            can = [n for n in range(1, grid.tp + 1) if grid.tp % n == 0 and n <= experts.count]
            raise UserError(f"ep is {grid.ep}; {_listed(can)} are allowed with tp {grid.tp}; choose one")
    if not _fits(config, grid.tp, grid.ep):
        can = [n for n in range(1, max(grid.tp, config.heads) + 1) if _fits(config, n, min(n, grid.ep))]
        raise UserError(
            f"tp is {grid.tp}; {_listed(can)} can be: {config.heads} query heads and {config.kv_heads} "
            "key-value heads have a share on every rank; choose one of them, or use pp"
        )


def cut_of(config: ModelConfig, share: Share, name: str) -> Cut | None:
    """Which slice of our tensor `name` a rank holds; None where none. One that nobody holds is not cut."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return _outside(config, share, name)
    if int(match["layer"]) >= config.depth:
        return UNCUT
    if not share.layers.start <= int(match["layer"]) < share.layers.stop:
        return None
    inside = match["rest"]
    for pattern, axis, field in _CUTS:
        found = pattern.fullmatch(inside)
        if found is None:
            continue
        expert = found.groupdict().get("expert")
        if expert is not None and not share.experts.start <= int(expert) < share.experts.stop:
            known = config.experts is not None and int(expert) < config.experts.count
            return None if known else UNCUT
        if field == _ONCE:
            return UNCUT if share.leads else None
        span, whole = _spans(config, share)[field]
        return Cut(axis, span.start, span.stop, whole)
    return UNCUT


def _outside(config: ModelConfig, share: Share, name: str) -> Cut | None:
    rows = Cut(0, share.vocabulary.start, share.vocabulary.stop, config.vocabulary)
    if name == TABLE:
        return rows if share.first or (share.last and config.tied_head) else None
    if name == HEAD:
        return rows if share.last else None
    return UNCUT if share.last else None  # the final norm


def _spans(config: ModelConfig, share: Share) -> dict[str, tuple[Span, int]]:
    dim, experts = config.head_dim, config.experts
    return {
        "heads": (share.heads.times(dim), config.heads * dim),
        "kv_heads": (share.kv_heads.times(dim), config.kv_heads * dim),
        "width": (share.width, config.width),
        "shared_width": (share.shared_width, experts.shared_width if experts else 0),
        "expert_width": (share.expert_width, experts.width if experts else 0),
    }


def _layers(config: ModelConfig, stages: int, stage: int) -> Span:
    """Layers by what a step reads of them; the last stage has the head besides, which counts as some."""
    if stages == 1:
        return Span(0, config.depth)
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    width = config.width
    if config.experts is not None and any(config.sparse_layers):
        width = config.experts.top_k * config.experts.width + config.experts.shared_width
    load = config.depth + config.vocabulary / (2 * q + 2 * kv + 3 * width)

    def end(stages_before: int) -> int:
        wanted = round(load * stages_before / stages)
        return max(stages_before, min(wanted, config.depth - (stages - stages_before)))

    return Span(end(stage), config.depth if stage == stages - 1 else end(stage + 1))


def _heads(config: ModelConfig, tp: int, lane: int) -> tuple[Span, Span]:
    """Query and key-value heads. Of the latter each rank has its own, or several have the same one and deal
    out its query heads.
    """
    kv, group = config.kv_heads, config.heads // config.kv_heads
    if tp <= kv:
        span = even(kv, tp, lane)
        return span.times(group), span
    head = next(k for k in range(kv) if lane < tp * (k + 1) // kv)
    ranks = even(tp, kv, head)
    mine = even(group, len(ranks), len(ranks) - 1 - (lane - ranks.start))  # the larger shares come first
    first = head * group + group - mine.stop
    return Span(first, first + len(mine)), Span(head, head + 1)


def _width(count: int, parts: int, index: int, group: int) -> Span:
    if group and count % group == 0 and count // group >= parts:
        return even(count // group, parts, index).times(group)
    return even(count, parts, index)


def _vocabulary(count: int, parts: int, index: int) -> Span:
    """Equal shares but for the last ones: what is gathered from ranks is padded to the first one's."""
    each = -(-count // parts)
    return Span(min(count, index * each), min(count, (index + 1) * each))


def _fits(config: ModelConfig, tp: int, ep: int) -> bool:
    """Whether every rank has a share of everything."""
    experts = config.experts
    if experts is not None and (
        tp % ep or experts.width < tp // ep or (experts.shared_width and experts.shared_width < tp)
    ):
        return False
    rows = -(-config.vocabulary // tp)
    dense = all(config.sparse_layers) or config.width >= tp
    replicas = -(-tp // config.kv_heads)
    return replicas <= config.heads // config.kv_heads and dense and rows * (tp - 1) < config.vocabulary


def _listed(sizes: list[int]) -> str:
    if len(sizes) > 8 and sizes == list(range(1, len(sizes) + 1)):
        return f"1 to {len(sizes)}"
    return ", ".join(map(str, sizes))


TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_ONCE = "once"


def _rows() -> Iterator[tuple[re.Pattern[str], int, str]]:
    """(name within a layer, axis, what it is cut by); what is not here every rank of the stage has."""
    for pattern, axis, field in (
        (r"self_attn\.q_proj\.(weight|bias)", 0, "heads"),
        (r"self_attn\.[kv]_proj\.(weight|bias)", 0, "kv_heads"),
        (r"self_attn\.o_proj\.weight", 1, "heads"),
        (r"self_attn\.o_proj\.bias", 0, _ONCE),
        (r"mlp\.(gate|up)_proj\.(weight|bias)", 0, "width"),
        (r"mlp\.down_proj\.weight", 1, "width"),
        (r"mlp\.down_proj\.bias", 0, _ONCE),
        (r"mlp\.shared_expert\.(gate|up)_proj\.(weight|bias)", 0, "shared_width"),
        (r"mlp\.shared_expert\.down_proj\.weight", 1, "shared_width"),
        (r"mlp\.shared_expert\.down_proj\.bias", 0, _ONCE),
        (r"mlp\.experts\.(?P<expert>\d+)\.(gate|up)_proj\.weight", 0, "expert_width"),
        (r"mlp\.experts\.(?P<expert>\d+)\.down_proj\.weight", 1, "expert_width"),
    ):
        yield re.compile(pattern), axis, field


_CUTS = tuple(_rows())
