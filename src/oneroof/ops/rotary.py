"""Rotary position embedding (arXiv:2104.09864). Letters: T tokens, H heads, d head dim."""

from __future__ import annotations

import torch
from torch import Tensor

from oneroof.ops.dispatch import op


@op
def rotate(x_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor, interleaved: bool) -> Tensor:
    """``y = x * cos + partner(x) * sin``; `cos` and `sin` are float32, as wide as a head, and `sin` carries
    the sign.

    The partner of coordinate i is ``i +- d/2``, or its neighbour (0,1), (2,3) .. where `interleaved`. The
    product is taken in float32 and given back in x's dtype.
    """
    if interleaved:
        partner = x_THd.reshape(*x_THd.shape[:-1], -1, 2).flip(-1).flatten(-2)
    else:
        partner = x_THd.roll(x_THd.shape[-1] // 2, -1)
    return torch.addcmul(x_THd * cos_T1d, partner, sin_T1d).to(x_THd.dtype)
