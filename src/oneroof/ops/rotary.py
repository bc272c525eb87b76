"""Rotary position embedding (arXiv:2104.09864), alone and with what else happens to queries and keys.

Letters: T tokens, H heads, K kv heads, d head dim, h = d / 2, R = (H + 2K) d.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneroof.ops.dispatch import op
from oneroof.ops.norm import rms_norm


@op
def waves(turns_Th: Tensor, factor: float, interleaved: bool) -> tuple[Tensor, Tensor]:
    """``factor * cos(turns)`` and ``factor * sin(turns)``, [T, 1, 2h] as `rotate` wants them; all float32."""
    cos, sin = turns_Th.cos() * factor, turns_Th.sin() * factor
    if interleaved:
        cos, sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
    else:
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return cos[:, None], sin[:, None]


@op
def rotate(x_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor, interleaved: bool) -> Tensor:
    """``y = x * cos + partner(x) * sin``; `cos` and `sin` are float32, as wide as a head, and `sin` carries
    the sign.

    The partner of coordinate i is ``i +- d/2``, or its neighbour (0,1), (2,3) .. where `interleaved`. The
    product is taken in float32 and given back in x's dtype.
    """
    if interleaved:
        partner = x_THd.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        partner = x_THd.roll(x_THd.shape[-1] // 2, -1)
    return torch.addcmul(x_THd * cos_T1d, partner, sin_T1d).to(x_THd.dtype)


@op
def qk_norm_rope(
    qkv_TR: Tensor,
    heads: int,
    kv_heads: int,
    q_norm_d: Tensor | None,
    k_norm_d: Tensor | None,
    eps: float,
    cos_T1d: Tensor,
    sin_T1d: Tensor,
    interleaved: bool,
    query_scale_T11: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``q = scale * rotate(norm(q)); k = rotate(norm(k))``; q [T, H, d], k and v [T, K, d] of fused rows.

    `q_norm` and `k_norm` are the weights of root-mean-square norms over a head, or both None. What was in
    `qkv` is lost: a backend works in place.
    """
    x_THd = qkv_TR.view(qkv_TR.shape[0], heads + 2 * kv_heads, cos_T1d.shape[-1])
    q, k, v = x_THd.split((heads, kv_heads, kv_heads), dim=1)
    if q_norm_d is None or k_norm_d is None:  # one rotation serves queries and keys, side by side
        qk = rotate.reference(x_THd[:, : heads + kv_heads], cos_T1d, sin_T1d, interleaved)
        q, k = qk.split((heads, kv_heads), dim=1)
    else:
        q, k = rms_norm.reference(q, q_norm_d, eps), rms_norm.reference(k, k_norm_d, eps)
        q, k = (rotate.reference(x, cos_T1d, sin_T1d, interleaved) for x in (q, k))
    if query_scale_T11 is not None:
        q = (q * query_scale_T11).to(q.dtype)
    return q, k, v
