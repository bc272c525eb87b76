"""Attention by the native kernel: over pages where there is a cache, else over the batch itself.

What does not change from layer to layer is put down once a batch. Letters as in ops/attention.py.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from oneroof.batch import Batch
from oneroof.ops.cpu.entry import DECLINED, Declined, launch
from oneroof.ops.cpu.structures import KINDS, Attention
from oneroof.pages import LayerCache

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_NOTE = "cpu attention"


def attention(
    q_THd: Tensor,
    k_TKd: Tensor,
    v_TKd: Tensor,
    batch: Batch,
    cache: LayerCache | None,
    window: int,
    causal: bool,
) -> Tensor | Declined:
    """As `ops.attention`; for heads of a multiple of 8 in the three float types, on the CPU."""
    dtype = q_THd.dtype
    heads, dim = q_THd.shape[1:]
    if not q_THd.is_cpu or dtype not in _FLOATS or dim % 8 or not _even(k_TKd, v_TKd, dtype, heads):
        return DECLINED
    if cache is None or batch.paging is None:
        layer = None
    elif (layer := _layer(cache)).kind not in (KINDS[dtype], KINDS[torch.int8]):
        return DECLINED
    q, k, v = _rows(q_THd), _rows(k_TKd), _rows(v_TKd)
    out = torch.empty_like(q)  # contiguous, as heads lie side by side
    call = _call(batch, layer is not None)
    s = call.structure
    s.q, s.k, s.v, s.out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
    s.q_stride, s.k_stride, s.v_stride = q.stride(0), k.stride(0), v.stride(0)
    if call.heads != (heads, k.shape[1], dim, dtype):
        call.heads = (heads, k.shape[1], dim, dtype)
        s.heads, s.kv_heads, s.dim, s.type, s.scale = heads, k.shape[1], dim, KINDS[dtype], 1 / sqrt(dim)
    s.window, s.causal = window, causal
    if layer is not None:
        s.key_pool, s.value_pool, s.key_scales, s.value_scales = layer.addresses
        s.pool_type = layer.kind
    launch("oneroof_attention", s, cache)
    return out


class _Call:
    """A batch as the kernel wants it, and the tensors that its addresses are of.

    A batch belongs to one thread while it is computed; so does this.
    """

    def __init__(self, batch: Batch, cached: bool) -> None:
        self.structure = s = Attention()
        self.heads: tuple[int, int, int, torch.dtype] | None = None
        bounds, lengths = batch.bounds.to(torch.int32).contiguous(), batch.lengths.contiguous()
        positions = batch.positions.contiguous()
        s.tokens, s.sequences = positions.shape[0], lengths.shape[0]
        s.bounds, s.lengths, s.positions = bounds.data_ptr(), lengths.data_ptr(), positions.data_ptr()
        self.kept = [bounds, lengths, positions]
        if cached:
            assert batch.paging is not None
            slots, table = batch.paging.slots.contiguous(), batch.paging.table.contiguous()
            s.slots, s.table, s.table_width = slots.data_ptr(), table.data_ptr(), table.shape[1]
            s.page_size = batch.paging.page_size
            self.kept += [slots, table]


class _Layer:
    """A layer's pools as the kernel wants them."""

    def __init__(self, cache: LayerCache) -> None:
        self.kind = KINDS.get(cache.keys.dtype, -1)
        parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
        self.addresses = tuple(0 if part is None else part.data_ptr() for part in parts)
        if not all(part is None or part.is_contiguous() for part in parts):
            self.kind = -1


def _call(batch: Batch, cached: bool) -> _Call:
    name = _NOTE + " over pages" if cached else _NOTE
    call = batch.notes.get(name)
    if not isinstance(call, _Call):
        call = batch.notes[name] = _Call(batch, cached)
    return call


def _layer(cache: LayerCache) -> _Layer:
    layer = cache.notes.get(_NOTE)
    if not isinstance(layer, _Layer):
        layer = cache.notes[_NOTE] = _Layer(cache)
    return layer


def _even(k_TKd: Tensor, v_TKd: Tensor, dtype: torch.dtype, heads: int) -> bool:
    return k_TKd.dtype == v_TKd.dtype == dtype and heads % k_TKd.shape[1] == 0


def _rows(x: Tensor) -> Tensor:
    """Heads side by side within a row; rows may be apart."""
    _, heads, dim = x.shape
    _, between_heads, step = x.stride()
    return x if step == 1 and (between_heads == dim or heads == 1) else x.contiguous()
