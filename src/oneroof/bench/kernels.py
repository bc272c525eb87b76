"""Op by op: the kernels of one layer of a model, and its head, each beside its floor and torch's own product.

Each case runs over as many weights as do not fit into the caches, one after the other, as a decoder does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof import ops
from oneroof.batch import Batch, Paging
from oneroof.config import ModelConfig
from oneroof.ops.cpu import backend
from oneroof.ops.cpu.probe import multiply_add_rate, read_rate
from oneroof.ops.matrix import Layout
from oneroof.pages import KVCache, allocate
from oneroof.quant.format import Kept, Recipe
from oneroof.quant.schemes import SCHEMES

_BEYOND_CACHES = 96 << 20  # bytes of weights that a case goes through
_PAGE = 16


@dataclass(frozen=True)
class Case:
    """One kernel: how to run it on the n-th of its weights, and the least that a run takes."""

    op: str
    form: str
    tokens: int
    run: Callable[[int], object]
    count: int  # weights
    bytes: float  # that a run reads at least
    operations: float  # multiplications and additions of a run
    peer: Callable[[int], object] | None  # torch's own, on a weight of the model's number format


@dataclass(frozen=True)
class Timing:
    """Seconds of a run, by rounds, and what the machine gave beside them."""

    case: Case
    seconds: tuple[float, ...]
    peer: tuple[float, ...]
    read: float  # bytes a second
    multiply_add: float  # operations a second

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def floor(self) -> float:
        """Seconds that it takes at least: to read, or to multiply in float32, whichever takes longer."""
        return max(self.case.bytes / self.read, self.case.operations / self.multiply_add)

    @property
    def ratio(self) -> float | None:
        """How many times as quick as torch's own."""
        return statistics.median(self.peer) / self.median if self.peer else None


def cases(config: ModelConfig, schemes: Sequence[str], tokens: Sequence[int], keys: int) -> Iterator[Case]:
    """The products of `config` under each scheme at each number of tokens, then attention and norm."""
    dtype = torch.bfloat16 if config.dtype == "stored" else getattr(torch, config.dtype)
    for scheme in schemes:
        recipe = SCHEMES[scheme].linear
        for name, rows, dim, gated in _shapes(config):
            for count in tokens:
                yield _product(f"{name} {dim}x{rows}", scheme, recipe, rows, dim, count, dtype, gated)
        if config.experts is not None:
            for count in tokens:
                yield _mixture(config, scheme, recipe, count, dtype)
    for count in tokens:
        yield _attention(config, count, keys, dtype)
        yield _norm(config, count, dtype)


_PAUSE = 0.02  # seconds in which the threads of what was measured before fall asleep


def measure(found: Iterable[Case], rounds: int) -> Iterator[Timing]:
    """Rounds of each case and of its peer in turn, with the machine's rates read beside them."""
    for case in found:
        read, rate = read_rate(2) or float("nan"), multiply_add_rate(2) or float("nan")
        case.run(0)
        if case.peer is not None:
            case.peer(0)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(_seconds(case.run, case.count))
            if case.peer is not None:
                theirs.append(_seconds(case.peer, case.count))
        yield Timing(case, tuple(ours), tuple(theirs), read, rate)


def _seconds(run: Callable[[int], object], count: int) -> float:
    time.sleep(_PAUSE)
    run(0)  # its own threads wake
    began = time.perf_counter()
    for n in range(count):
        run(n)
    return (time.perf_counter() - began) / count


def _shapes(config: ModelConfig) -> Iterator[tuple[str, int, int, bool]]:
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "qkv", q + 2 * kv, config.dim, False
    yield "output", config.dim, q, False
    if not all(config.sparse_layers):
        yield "gate_up", 2 * config.width, config.dim, True
        yield "down", config.dim, config.width, False
    yield "head", config.vocabulary, config.dim, False


def _layout() -> Layout:
    return "panels" if backend.install() else "rows"


def _filled(recipe: Recipe, rows: int, dim: int, dtype: torch.dtype, experts: int = 1) -> Kept:
    place = torch.device("cpu")
    kept = Kept.of(recipe, rows, dim, dtype=dtype, layout=_layout(), device=place, experts=experts)
    for expert in range(experts):
        for first in range(0, rows, 4096):
            some = min(4096, rows - first)
            kept.put(expert, first, (torch.randn(some, dim) / dim**0.5).to(dtype))
    return kept


def _product(
    op: str, form: str, recipe: Recipe, rows: int, dim: int, tokens: int, dtype: torch.dtype, gated: bool
) -> Case:
    first = _filled(recipe, rows, dim, dtype)
    count = max(1, min(8, -(-_BEYOND_CACHES // first.nbytes)))
    weights = [first, *(_filled(recipe, rows, dim, dtype) for _ in range(count - 1))]
    plain = [torch.randn(rows, dim).to(dtype) for _ in range(count)]
    x = torch.randn(tokens, dim).to(dtype)

    def run(n: int) -> Tensor:
        return weights[n].gated(x, None) if gated else weights[n].linear(x, None, dtype)

    def peer(n: int) -> Tensor:
        y = F.linear(x, plain[n])
        return ops.swiglu.reference(y) if gated else y

    moved = first.nbytes + x.nbytes + tokens * rows * dtype.itemsize
    return Case(op, form, tokens, run, count, moved, 2.0 * tokens * rows * dim, peer)


def _mixture(config: ModelConfig, form: str, recipe: Recipe, tokens: int, dtype: torch.dtype) -> Case:
    facts = config.experts
    assert facts is not None
    up = _filled(recipe, 2 * facts.width, config.dim, dtype, facts.count)
    down = _filled(recipe, config.dim, facts.width, dtype, facts.count)
    x = torch.randn(tokens, config.dim).to(dtype)
    chosen = torch.stack([torch.randperm(facts.count)[: facts.top_k] for _ in range(max(1, tokens))])
    chosen = chosen[:tokens]
    weights = torch.full(chosen.shape, 1.0 / facts.top_k)
    visited = len(chosen.unique()) / facts.count
    plain = [
        torch.randn(facts.count, *shape).to(dtype) for shape in ((up.rows, up.dim), (down.rows, down.dim))
    ]

    def run(_: int) -> Tensor:
        return up.mix(x, weights, chosen, down)

    def peer(_: int) -> Tensor:
        return ops.mixture.reference(x, weights, chosen, plain[0], plain[1])

    operations = 6.0 * tokens * facts.top_k * facts.width * config.dim
    name = f"experts {facts.count} of {config.dim}x{facts.width}, {facts.top_k} each"
    return Case(name, form, tokens, run, 1, (up.nbytes + down.nbytes) * visited, operations, peer)


def _attention(config: ModelConfig, tokens: int, keys: int, dtype: torch.dtype) -> Case:
    """Up to 16 tokens are each the newest of a text with `keys` keys; more are one prompt."""
    many = tokens <= 16
    sequences, longest = (tokens, keys) if many else (1, tokens)
    pages = -(-longest // _PAGE)
    cache: KVCache = allocate(
        depth=1,
        pages=sequences * pages + 1,
        page_size=_PAGE,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    cache.pool.normal_()
    starts = (longest - 1,) * sequences if many else (0,)
    batch = _batch(starts, (1,) * sequences if many else (tokens,), pages)
    q = torch.randn(tokens, config.heads, config.head_dim).to(dtype)
    k, v = (torch.randn(tokens, config.kv_heads, config.head_dim).to(dtype) for _ in range(2))

    def run(_: int) -> Tensor:
        return ops.attention(q, k, v, batch, cache.layers[0], 0, True)

    def peer(_: int) -> Tensor:
        return ops.attention.reference(q, k, v, batch, cache.layers[0], 0, True)

    seen = float(sequences * longest) if many else tokens * (tokens + 1) / 2
    operations = 4.0 * config.heads * config.head_dim * seen
    moved = 2.0 * sequences * longest * config.kv_heads * config.head_dim * dtype.itemsize
    name = f"attention, {keys} keys each" if many else "attention, one prompt"
    return Case(name, str(dtype).removeprefix("torch."), tokens, run, 1, moved, operations, peer)


def _batch(starts: tuple[int, ...], counts: tuple[int, ...], pages: int) -> Batch:
    lengths = torch.tensor([s + n for s, n in zip(starts, counts, strict=True)])
    positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
    bounds = torch.zeros(len(counts) + 1, dtype=torch.int32)
    bounds[1:] = torch.tensor(counts).cumsum(0)
    table = torch.arange(1, len(counts) * pages + 1).view(len(counts), pages)
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    slots = table[owners, positions // _PAGE] * _PAGE + positions % _PAGE
    return Batch(
        tokens=torch.zeros(len(positions), dtype=torch.int64),
        positions=positions,
        bounds=bounds,
        lengths=lengths,
        counts=counts,
        starts=starts,
        paging=Paging(table=table, slots=slots, page_size=_PAGE),
    )


def _norm(config: ModelConfig, tokens: int, dtype: torch.dtype) -> Case:
    x, residual = (torch.randn(tokens, config.dim).to(dtype) for _ in range(2))
    weight = torch.ones(config.dim, dtype=dtype)

    def run(_: int) -> object:
        return ops.add_rms_norm(x, residual, weight, 1e-6)

    def peer(_: int) -> object:
        return ops.add_rms_norm.reference(x, residual, weight, 1e-6)

    form = str(dtype).removeprefix("torch.")
    return Case("add_rms_norm", form, tokens, run, 1, 4.0 * x.nbytes, 4.0 * x.numel(), peer)
