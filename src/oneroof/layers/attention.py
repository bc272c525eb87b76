"""Self-attention of one layer, or of a rank's share of its heads.

Letters: T tokens, D model width, H heads, K kv heads, d head dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from oneroof import ops
from oneroof.batch import Batch
from oneroof.config import ModelConfig
from oneroof.layers.format import Join, Place
from oneroof.layers.linear import Linear
from oneroof.layers.norm import RMSNorm
from oneroof.layers.rope import Angles
from oneroof.layout import Share
from oneroof.pages import LayerCache


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the norms of q and k, biases and windows are facts."""

    def __init__(
        self,
        config: ModelConfig,
        share: Share,
        layer: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        fused: bool,
    ) -> None:
        super().__init__()
        self.join: Join | None = None
        self.head_dim, self.eps = config.head_dim, config.norm_eps
        self.window, self.causal = config.windows[layer], config.causal
        q, kv = len(share.heads) * config.head_dim, len(share.kv_heads) * config.head_dim
        parts = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        self.qkv = Linear(config.dim, parts, bias=config.qkv_bias, dtype=dtype, device=device, fused=fused)
        bias = config.output_bias and share.leads
        self.output = Linear(q, {"o_proj": config.dim}, bias=bias, dtype=dtype, device=device)
        self.rows = (q, kv, kv)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps, dtype, device) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps, dtype, device) if config.qk_norm else None

    def forward(self, x_TD: Tensor, batch: Batch, angles: Angles, cache: LayerCache | None) -> Tensor:
        """[T, D] -> [T, D]; writes this batch's keys and values into `cache` where there is one."""
        q_rows, kv_rows, _ = self.rows
        q, k, v = ops.qk_norm_rope(
            self.qkv(x_TD),
            q_rows // self.head_dim,
            kv_rows // self.head_dim,
            self.q_norm.weight if self.q_norm is not None else None,
            self.k_norm.weight if self.k_norm is not None else None,
            self.eps,
            angles.cos,
            angles.sin,
            angles.interleaved,
            angles.query_scale,
        )
        out = ops.attention(q, k, v, batch, cache, self.window, self.causal)
        flat = out.flatten(1)
        mixed: Tensor = self.output(flat, None if self.join is None else torch.float32)
        return mixed if self.join is None else self.join(mixed, x_TD.dtype)

    def tensors(self) -> Iterator[tuple[str, Place]]:
        """The checkpoint's tensors, by their names within the layer's `self_attn`."""
        yield from self.qkv.tensors()
        yield from self.output.tensors()
        if self.q_norm is not None and self.k_norm is not None:
            yield "q_norm.weight", self.q_norm.weight
            yield "k_norm.weight", self.k_norm.weight
