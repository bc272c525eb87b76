"""The bytes of a rank on paper: its weights part by part, its cache, and what a step needs beside them.

A walk over a share's weights as the decoder builds them, without torch; tests hold it to what is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from oneroof.config import ModelConfig
from oneroof.layout import Share
from oneroof.models.sizes import visited
from oneroof.quant.forms import FORMS, LANES, PLAIN, Forms

PARTS = ("embedding", "attention", "mlp", "experts", "router", "norms", "head")
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

_MIXED_AT_ONCE = 64 << 20  # bytes that the native mixture has on the way at most

_Role = Literal["linear", "experts", "head", "table", "router", "float32 router", "vector", "float32"]


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How numbers are kept."""

    dtype: str  # of the model
    quantization: str = "none"
    kv: str = "float"
    panels: bool = True  # weights lie as the native CPU kernels read them, else in rows

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the model."""
        return ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Piece:
    """`count` weights alike of [rows, dim]; a vector has one row."""

    part: str
    role: _Role
    rows: int
    dim: int
    count: int = 1
    panelled: bool = True  # unless the native kernels decline its width: then it lies in rows

    @property
    def parameters(self) -> int:
        """Numbers in all."""
        return self.rows * self.dim * self.count

    def bytes(self, storage: Storage) -> int:
        """As `quant.schemes.apply` has them kept."""
        return self.count * _bytes(self, storage, FORMS[storage.quantization])


def _bytes(piece: Piece, storage: Storage, forms: Forms) -> int:
    rows, dim, role, dtype = piece.rows, piece.dim, piece.role, storage.dtype
    panels = storage.panels and piece.panelled
    if role == "vector":
        return rows * dim * storage.itemsize
    if role == "float32":
        return rows * dim * ITEMSIZE["float32"]
    if role == "table":
        return PLAIN.bytes(rows, dim, dtype, panels=False)
    if role in ("router", "float32 router"):
        return PLAIN.bytes(rows, dim, dtype if role == "router" else "float32", panels=panels)
    if role == "head":
        return forms.head.bytes(rows, dim, dtype, panels=panels)
    form = PLAIN if role == "linear" and rows < LANES else forms.linear.within(dim)
    return form.bytes(rows, dim, dtype, panels=panels)


def pieces(config: ModelConfig, share: Share) -> Iterator[Piece]:
    """Whatever `share` holds of a decoder."""
    rows, dim = len(share.vocabulary), config.dim
    both = share.first and share.last and config.tied_head
    if share.first:
        yield Piece("embedding", "head" if both else "table", rows, dim)
    layers = config.sparse_layers[share.layers.start : share.layers.stop]
    yield from _attention(config, share, len(layers))
    yield Piece("norms", "vector", 2 * len(layers) + share.last, dim)
    if dense := len(layers) - sum(layers):
        yield from _mlp(config, share, "mlp", len(share.width), dense)
    if sparse := sum(layers):
        yield from _moe(config, share, sparse)
    if share.last and not both:
        yield Piece("head", "head", rows, dim)


def by_part(config: ModelConfig, share: Share, storage: Storage) -> dict[str, int]:
    """Bytes of a rank's weights by `PARTS`, those that it has."""
    found = dict.fromkeys(PARTS, 0)
    for piece in pieces(config, share):
        found[piece.part] += piece.bytes(storage)
    return {part: size for part, size in found.items() if size}


def _attention(config: ModelConfig, share: Share, layers: int) -> Iterator[Piece]:
    q, kv = len(share.heads) * config.head_dim, len(share.kv_heads) * config.head_dim
    yield Piece("attention", "linear", q + 2 * kv, config.dim, layers)
    yield Piece("attention", "linear", config.dim, q, layers)
    if config.qkv_bias:
        yield Piece("attention", "vector", 1, q + 2 * kv, layers)
    if config.output_bias and share.leads:
        yield Piece("attention", "vector", 1, config.dim, layers)
    if config.qk_norm:
        yield Piece("norms", "vector", 2, config.head_dim, layers)


def _mlp(config: ModelConfig, share: Share, part: str, width: int, layers: int) -> Iterator[Piece]:
    yield Piece(part, "linear", 2 * width, config.dim, layers)
    yield Piece(part, "linear", config.dim, width, layers)
    if config.mlp_bias:
        yield Piece(part, "vector", 1, 2 * width + config.dim * share.leads, layers)


def _moe(config: ModelConfig, share: Share, layers: int) -> Iterator[Piece]:
    experts = config.experts
    assert experts is not None
    count, width = len(share.experts) * layers, len(share.expert_width)
    yield Piece("experts", "experts", 2 * width, config.dim, count, panelled=width % LANES == 0)
    yield Piece("experts", "experts", config.dim, width, count, panelled=width % LANES == 0)
    router: _Role = "float32 router" if experts.router_float32 else "router"
    yield Piece("router", router, experts.count, config.dim, layers)
    if experts.choice_bias:
        yield Piece("router", "float32", 1, experts.count, layers)
    if experts.shared_width:
        yield from _mlp(config, share, "mlp", len(share.shared_width), layers)
        if experts.shared_gate:
            yield Piece("router", "linear", 1, config.dim, layers)


def kv_token(config: ModelConfig, share: Share, storage: Storage) -> int:
    """Bytes of one position of one text in a rank's cache."""
    numbers = config.head_dim * storage.itemsize
    head = config.head_dim + ITEMSIZE["float32"] if storage.kv == "kv8" else numbers
    return 2 * len(share.layers) * len(share.kv_heads) * head


def cache(config: ModelConfig, share: Share, storage: Storage, texts: int, positions: int, page: int) -> int:
    """Bytes of the pages of so many texts of so many positions each, and of the null page."""
    return (texts * -(-positions // page) + 1) * page * kv_token(config, share, storage)


def activations(config: ModelConfig, share: Share, storage: Storage, tokens: int, texts: int) -> int:
    """Most bytes that a step of `tokens` has alive at once beside weights and cache; `texts` of them choose.

    As `Decoder` keeps them: the embedding, a layer's two inputs and their two successors, then what attention
    or the MLP makes on the way. Logits come after the layers.
    """
    q, kv = len(share.heads) * config.head_dim, len(share.kv_heads) * config.head_dim
    dim, rows, itemsize = config.dim, q + 2 * kv, storage.itemsize
    inside = max(rows + q + dim, 3 * dim)  # the output's product; the next norm
    if not storage.panels:  # the rotation is not in place, and in float32
        inside = max(inside, rows + 2 * (q + kv) * ITEMSIZE["float32"] // itemsize)
    halves = 1 if storage.panels else 3  # gate and up are there beside their product
    if not all(config.sparse_layers):
        inside = max(inside, dim + halves * len(share.width))
    angles = 2 * config.head_dim * ITEMSIZE["float32"]
    routing = 0
    if config.experts is not None and any(config.sparse_layers):
        inside = max(inside, 2 * dim + halves * len(share.shared_width))
        routing = 2 * config.experts.count * ITEMSIZE["float32"]
    layers = tokens * ((5 * dim + inside) * itemsize + angles + routing)
    logits = texts * config.vocabulary * ITEMSIZE["float32"] if share.last else 0
    return max(layers, tokens * dim * itemsize + logits) + _scratch(config, share, storage, tokens)


def _scratch(config: ModelConfig, share: Share, storage: Storage, tokens: int) -> int:
    """What kernels keep between calls: inputs made int8 or 16-bit, and the way through a rank's experts, of
    which the native ones take so many tokens at once.
    """
    size = 0
    if storage.panels and storage.quantization != "none":
        widest = max(config.dim, len(share.heads) * config.head_dim, len(share.width))
        size = tokens * widest * (1 if storage.quantization.endswith("-dynamic") else 2)
    experts = config.experts
    if experts is None or not any(config.sparse_layers):
        return size
    visits = tokens * min(experts.top_k, len(share.experts))
    width = len(share.expert_width)
    if storage.panels:
        return size + min(visits * (2 * config.dim + width) * ITEMSIZE["float32"], _MIXED_AT_ONCE)
    return visits * (config.dim + 3 * width) * storage.itemsize


@dataclass(frozen=True)
class Reads:
    """What one step reads and computes at a rank."""

    weights: float  # bytes
    cache: float  # bytes
    products: float  # multiplications and additions, counted apart
    head: float  # those of the output head
    scores: float  # those of attention


def reads(
    config: ModelConfig,
    share: Share,
    storage: Storage,
    *,
    tokens: int,
    texts: int,
    positions: float,
    seen: float,
) -> Reads:
    """Of a step of `tokens`, of which `texts` make logits; with `positions` keys behind each text, of which a
    token sees `seen` on average. Of experts, as many are read as the tokens visit.
    """
    weights = products = head = 0.0
    for piece in pieces(config, share):
        size, part = piece.bytes(storage), 1.0
        if piece.role == "table":
            continue
        if piece.role == "head":
            head += 2 * piece.parameters * texts
        elif piece.role == "experts":
            assert config.experts is not None
            part = visited(config, tokens) / config.experts.count
            products += 2 * piece.parameters * tokens * config.experts.top_k / config.experts.count
        elif piece.role not in ("vector", "float32"):
            products += 2 * piece.parameters * tokens
        weights += size * part
    layers = config.windows[share.layers.start : share.layers.stop]
    behind = sum(min(positions, w) if w else positions for w in layers)
    looked = sum(min(seen, w) if w else seen for w in layers)
    key = kv_token(config, share, storage) / max(1, len(layers))
    width = len(share.heads) * config.head_dim
    return Reads(weights, texts * behind * key, products, head, 4.0 * tokens * looked * width)
