"""Scaled dot-product attention over a packed batch, with or without a cache of pages.

The body is the specification; it reaches torch's fused kernels wherever a call can be one dense problem.
Letters: T tokens, S sequences, Q most new tokens of a sequence, L most keys of a sequence, H heads, K kv
heads, G = H / K, d head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof.batch import Batch
from oneroof.ops.dispatch import op
from oneroof.pages import LayerCache


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
        _store(k_TKd, v_TKd, cache, batch.paging.slots)
    masked = 0 < window < batch.longest
    if batch.fresh and not masked and (causal or min(batch.counts) == batch.longest):
        return _fresh(q_THd, k_TKd, v_TKd, batch, causal)
    if cache is None or batch.fresh:
        keys, values = _padded(k_TKd, batch), _padded(v_TKd, batch)
    else:
        keys, values = _read(cache.keys, batch), _read(cache.values, batch)
    if max(batch.counts) == 1 and not masked:
        return _decode(q_THd, keys, values, batch)
    return _masked(q_THd, keys, values, batch, window if masked else 0, causal)


def _store(k_TKd: Tensor, v_TKd: Tensor, cache: LayerCache, slots: Tensor) -> None:
    cache.keys.flatten(0, 1).index_copy_(0, slots, k_TKd)
    cache.values.flatten(0, 1).index_copy_(0, slots, v_TKd)


def _read(pool_NPKd: Tensor, batch: Batch) -> Tensor:
    """[S, L, K, d]: a view where every sequence is one page and the pages are neighbours, else a gathered
    copy.
    """
    assert batch.paging is not None
    table = batch.paging.table
    if batch.paging.first_page >= 0:
        return pool_NPKd.narrow(0, batch.paging.first_page, table.shape[0]).narrow(1, 0, batch.longest)
    return pool_NPKd[table].flatten(1, 2).narrow(1, 0, batch.longest)


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


def _decode(q_THd: Tensor, k_SLKd: Tensor, v_SLKd: Tensor, batch: Batch) -> Tensor:
    """One query a sequence: a kv head's G queries are rows of one problem, so that no key is repeated."""
    sequences, heads, head_dim = q_THd.shape
    q = q_THd.view(sequences, k_SLKd.shape[2], -1, head_dim)
    mask = None
    if sequences > 1:
        seen = torch.arange(batch.longest, device=q.device) < batch.lengths[:, None]
        mask = seen[:, None, None, :]
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
