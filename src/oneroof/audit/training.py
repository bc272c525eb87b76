"""What training takes at a rank, on paper: AdamW over 16-bit weights, with and without recomputed layers.

Bytes of a parameter: its weight and its gradient in the model's number format, and float32 for the master
copy and both moments. Engines side by side (dp) each have all of that, unless the optimizer's states are
dealt out among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from oneroof.audit.memory import ITEMSIZE, Storage
from oneroof.audit.plan import Ask, grids
from oneroof.audit.speed import distinct
from oneroof.config import ModelConfig
from oneroof.layout import Grid, Share, share_of
from oneroof.models.sizes import parameters

_STATES = 3 * ITEMSIZE["float32"]  # master, first and second moment
_FLOAT = ITEMSIZE["float32"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Bytes of the heaviest rank of a layout."""

    dp: int
    grid: Grid
    weights: int
    gradients: int
    states: int
    dealt_states: int  # where each of dp engines has a part of them
    activations: int  # kept for the way back, of all micro-batches that are under way
    recomputed: int  # the same where a layer keeps its input alone, and is run once more
    fits: str  # "yes", "recompute", "dealt", "both" or "no": what is needed for it

    def bytes(self, *, recompute: bool, dealt: bool) -> int:
        """In all."""
        states = self.dealt_states if dealt else self.states
        return self.weights + self.gradients + states + (self.recomputed if recompute else self.activations)


def training(ask: Ask) -> tuple[Trained, ...]:
    """Of every layout of these devices, those that fit with the least effort first.

    `ask.batch` texts of `ask.context` tokens are one micro-batch of each engine.
    """
    found = [_trained(ask, dp, grid) for dp, grid in grids(ask)]
    return tuple(sorted(found, key=lambda t: (EFFORTS.index(t.fits), t.grid.ranks, t.grid.pp, t.grid.ep)))


EFFORTS = ("yes", "recompute", "dealt", "both", "no")


def _trained(ask: Ask, dp: int, grid: Grid) -> Trained:
    made = [_of_rank(ask, dp, grid, share) for share, _ in distinct(_shares(ask.config, grid))]
    return max(made, key=lambda trained: trained.bytes(recompute=trained.fits != "yes", dealt=False))


def _shares(config: ModelConfig, grid: Grid) -> tuple[Share, ...]:
    return tuple(share_of(config, grid, rank) for rank in range(grid.ranks))


def _of_rank(ask: Ask, dp: int, grid: Grid, share: Share) -> Trained:
    config, itemsize = ask.config, ask.storage.itemsize
    count = parameters(config, share)
    states = count * (_STATES if itemsize < _FLOAT else 2 * _FLOAT)
    tokens = ask.batch * ask.context
    under_way = min(
        grid.pp, grid.pp - share.rank // grid.tp
    )  # micro-batches of a stage, one forward one back
    each = [layer_keeps(config, share, ask.storage, sparse=sparse) for sparse in _kinds(config, share)]
    ends = tokens * _ends(config, share, ask.storage)
    inputs = len(share.layers) * 2 * config.dim * itemsize
    kept = under_way * tokens * sum(each) + ends
    recomputed = under_way * tokens * inputs + tokens * max(each) + ends
    trained = Trained(
        dp=dp,
        grid=grid,
        weights=count * itemsize,
        gradients=count * itemsize,
        states=states,
        dealt_states=-(-states // dp),
        activations=kept,
        recomputed=recomputed,
        fits="no",
    )
    ways = zip(EFFORTS, ((False, False), (True, False), (False, True), (True, True)), strict=False)
    fits = (n for n, (r, d) in ways if trained.bytes(recompute=r, dealt=d) <= ask.memory)
    return replace(trained, fits=next(fits, "no"))


def layer_keeps(config: ModelConfig, share: Share, storage: Storage, *, sparse: bool) -> int:
    """Bytes of a token that a layer keeps for its way back: what autograd saves of the plain layers.

    Of each norm two float32 copies and its output; queries, keys and values before the rotation and after it;
    what attention gives; gate and up, the gate's silu, and their product; of a mixture as much for each
    visit.
    """
    q, kv = len(share.heads) * config.head_dim, len(share.kv_heads) * config.head_dim
    heads = len(share.heads) + len(share.kv_heads)
    normed = 2 * config.dim + (q + kv) * config.qk_norm
    scales = 2 + heads * config.qk_norm + len(share.heads)  # of norms and of attention
    fixed = (2 * normed + scales) * _FLOAT
    numbers = 2 * config.dim + 3 * q + 3 * kv
    if not sparse:
        return fixed + (numbers + 4 * len(share.width)) * storage.itemsize
    experts = config.experts
    assert experts is not None
    visits = experts.top_k * len(share.experts) / experts.count
    numbers += round(visits * (2 * config.dim + 4 * len(share.expert_width)) + 4 * len(share.shared_width))
    numbers += config.dim * experts.shared_gate
    return fixed + numbers * storage.itemsize + 2 * experts.count * _FLOAT


def _kinds(config: ModelConfig, share: Share) -> Iterator[bool]:
    yield from config.sparse_layers[share.layers.start : share.layers.stop]


def _ends(config: ModelConfig, share: Share, storage: Storage) -> int:
    """Of a token, outside the layers: the last norm's two ends, float32 logits and their softmax."""
    if not share.last:
        return 0
    return 2 * config.dim * storage.itemsize + 2 * len(share.vocabulary) * _FLOAT
