"""Scaled dot-product attention over a packed batch, with or without a cache of pages.

The body is the specification; it reaches torch's fused kernels wherever a call can be one dense problem.
What an int8 cache holds is what is attended to, also by the prompt that wrote it: cutting it changes nothing.
Letters: T tokens, S sequences, Q most new tokens of a sequence, L most keys of a sequence, H heads, K kv
heads, G = H / K, d head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof.batch import Batch, Group
from oneroof.ops.dispatch import op
from oneroof.pages import LayerCache, pack, unpack

_GATHERED = 1 << 24  # bytes of keys: larger copies leave the processor's caches, and are made one by one


@op
def attention(
    q_THd: Tensor,
    k_TKd: Tensor,
    v_TKd: Tensor,
    batch: Batch,
    cache: LayerCache | None,
    window: int,
    causal: bool,
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + mask) v`` for each sequence by itself; [T, H, d].

    Writes the batch's keys and values into `cache` first, when there is one. A query at position p sees keys
    ``max(0, p - window + 1) .. p`` (`window` 0: from the first; not `causal`: all of its sequence's).
    """
    if cache is not None and batch.paging is not None:
        k_TKd, v_TKd = _stored(k_TKd, v_TKd, cache, batch.paging.slots)
    window = window if window < batch.longest else 0
    if batch.fresh or cache is None:
        if not window and (causal or min(batch.counts) == batch.longest):
            return _fresh(q_THd, k_TKd, v_TKd, batch, causal)
        return _masked(q_THd, _padded(k_TKd, batch), _padded(v_TKd, batch), batch, window, causal)
    assert batch.paging is not None
    if batch.paging.first_page >= 0:
        keys, values = _view(cache, batch, q_THd.dtype)
        if max(batch.counts) == 1:
            return _decode(q_THd, keys, values, batch.lengths, window, even=False)
        return _masked(q_THd, keys, values, batch, window, causal)
    parts = [_paged(q_THd, k_TKd, v_TKd, batch, group, cache, window) for group in batch.groups]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _stored(k_TKd: Tensor, v_TKd: Tensor, cache: LayerCache, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Puts keys and values into their slots; gives them as they are read from there."""
    return (
        _written(k_TKd, cache.keys, cache.key_scales, slots),
        _written(v_TKd, cache.values, cache.value_scales, slots),
    )


def _written(x_TKd: Tensor, pool_NPKd: Tensor, scales_NPK: Tensor | None, slots: Tensor) -> Tensor:
    if scales_NPK is None:
        pool_NPKd.flatten(0, 1).index_copy_(0, slots, x_TKd)
        return x_TKd
    stored, scales = pack(x_TKd)
    pool_NPKd.flatten(0, 1).index_copy_(0, slots, stored)
    scales_NPK.flatten(0, 1).index_copy_(0, slots, scales)
    return unpack(stored, scales, x_TKd.dtype)


def _view(cache: LayerCache, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [S, L, K, d] of a contiguous cache, whose neighbouring pages are one sequence each."""
    assert batch.paging is not None
    first, count = batch.paging.first_page, batch.paging.table.shape[0]

    def read(pool: Tensor, scales: Tensor | None) -> Tensor:
        rows = pool.narrow(0, first, count).narrow(1, 0, batch.longest)
        if scales is None:
            return rows
        return unpack(rows, scales.narrow(0, first, count).narrow(1, 0, batch.longest), dtype)

    return read(cache.keys, cache.key_scales), read(cache.values, cache.value_scales)


def _gathered(cache: LayerCache, slots_GL: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [G, L, K, d]: a copy of exactly the slots that may be read."""

    def read(pool: Tensor, scales: Tensor | None) -> Tensor:
        found = pool.flatten(0, 1).index_select(0, slots_GL.flatten())
        if scales is not None:
            found = unpack(found, scales.flatten(0, 1).index_select(0, slots_GL.flatten()), dtype)
        return found.view(*slots_GL.shape, *pool.shape[2:])

    return read(cache.keys, cache.key_scales), read(cache.values, cache.value_scales)


def _paged(
    q_THd: Tensor,
    k_TKd: Tensor,
    v_TKd: Tensor,
    batch: Batch,
    group: Group,
    cache: LayerCache,
    window: int,
) -> Tensor:
    """The rows of one group; causal, for what is written page by page sees nothing that comes later."""
    q = q_THd[group.rows]
    lengths = batch.lengths[group.sequences]
    if group.slots is None:
        k, v = k_TKd[group.rows], v_TKd[group.rows]
        single = q.shape[0] == group.sequences.stop - group.sequences.start
        q, k, v = (x[:, None] if single else x[None] for x in (q, k, v))
        if not window or window >= group.longest:
            return _dense(q, k, v, causal=True).flatten(0, 1)
        return _chunk(q, k, v, batch.positions[group.rows], window)
    single = q.shape[0] == lengths.shape[0]
    large = q.device.type == "cpu" and group.slots.numel() * k_TKd[0].nbytes > _GATHERED
    if single and large and len(lengths) > 1:
        ends = [n + 1 for n in batch.starts[group.sequences]]
        each = zip(q.split(1), group.slots, ends, strict=True)
        return torch.cat([_alone(one, cache, slots[:end], window) for one, slots, end in each])
    keys, values = _gathered(cache, group.slots, q.dtype)
    if single:
        return _decode(q, keys, values, lengths, window, even=group.even)
    return _chunk(q[None], keys, values, batch.positions[group.rows], window)


def _alone(q_1Hd: Tensor, cache: LayerCache, slots_L: Tensor, window: int) -> Tensor:
    """One query of one sequence with L keys, [1, H, d]."""
    first = max(0, len(slots_L) - window) if window else 0
    keys, values = _gathered(cache, slots_L[None, first:], q_1Hd.dtype)
    lengths = torch.full((1,), keys.shape[1], device=q_1Hd.device)
    return _decode(q_1Hd, keys, values, lengths, 0, even=True)


def _chunk(q_1CHd: Tensor, k_1LKd: Tensor, v_1LKd: Tensor, positions_C: Tensor, window: int) -> Tensor:
    """Several new tokens of one sequence, whose keys 0 .. L - 1 are all there; [C, H, d]."""
    seen = _seen(positions_C[:, None], k_1LKd.shape[1], window)
    q, k, v = (x.transpose(1, 2) for x in (q_1CHd, k_1LKd, v_1LKd))
    groups = q.shape[1] // k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[None, None], enable_gqa=groups > 1)
    return out.transpose(1, 2)[0]


def _seen(positions: Tensor, longest: int, window: int) -> Tensor:
    """[..., L] which keys a query at each of `positions` [..., 1] sees."""
    keys = torch.arange(longest, device=positions.device)
    seen = keys <= positions
    return seen & (keys > positions - window) if window else seen


def _fresh(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, batch: Batch, causal: bool) -> Tensor:
    """Nothing cached and no window: padding at the right stays invisible to real queries under the causal
    mask.
    """
    sequences, longest = len(batch.counts), batch.longest
    if sequences > 1 and sum(n * n for n in batch.counts) * 2 < sequences * longest * longest:
        # padding would more than double the work
        parts = zip(*(x.split(batch.counts) for x in (q_THd, k_TKd, v_TKd)), strict=True)
        return torch.cat([_dense(q[None], k[None], v[None], causal)[0] for q, k, v in parts])
    q, k, v = (_padded(x, batch) for x in (q_THd, k_TKd, v_TKd))
    return _unpadded(_dense(q, k, v, causal), batch)


def _dense(q_SQHd: Tensor, k_SLKd: Tensor, v_SLKd: Tensor, causal: bool) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_SQHd, k_SLKd, v_SLKd))
    groups = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=groups > 1).transpose(1, 2)


def _decode(
    q_SHd: Tensor, k_SLKd: Tensor, v_SLKd: Tensor, lengths_S: Tensor, window: int, *, even: bool
) -> Tensor:
    """One query a sequence: a kv head's queries are rows of one problem, so that no key is repeated.

    `even`: all sequences have L keys.
    """
    sequences, heads, head_dim = q_SHd.shape
    q = q_SHd.view(sequences, k_SLKd.shape[2], -1, head_dim)
    mask = None
    if window or not (even or sequences == 1):
        mask = _seen(lengths_S[:, None] - 1, k_SLKd.shape[1], window)[:, None, None, :]
    k, v = k_SLKd.transpose(1, 2), v_SLKd.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(sequences, heads, head_dim)


def _masked(q_THd: Tensor, k_SLKd: Tensor, v_SLKd: Tensor, batch: Batch, window: int, causal: bool) -> Tensor:
    """Any other case, by a mask over key positions: windows, several new tokens after cached ones, no
    causality.
    """
    positions = _padded(batch.positions, batch)[:, :, None]  # [S, Q, 1]
    keys = torch.arange(k_SLKd.shape[1], device=q_THd.device)
    seen = (keys <= positions) if causal else (keys < batch.lengths[:, None, None])
    if window:
        seen = seen & (keys > positions - window)
    q, k, v = (x.transpose(1, 2) for x in (_padded(q_THd, batch), k_SLKd, v_SLKd))
    groups = q.shape[1] // k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen.expand(-1, q.shape[2], -1)[:, None], enable_gqa=groups > 1
    )
    return _unpadded(out.transpose(1, 2), batch)


def _padded(x: Tensor, batch: Batch) -> Tensor:
    """[T, ...] -> [S, Q, ...]; what stands past a sequence's end is never seen."""
    if max(batch.counts) * len(batch.counts) == x.shape[0]:
        return x.view(len(batch.counts), -1, *x.shape[1:])
    return x[batch.padded_rows]


def _unpadded(x: Tensor, batch: Batch) -> Tensor:
    flat = x.flatten(0, 1)
    return flat if flat.shape[0] == batch.tokens.shape[0] else flat[batch.packed_places]
