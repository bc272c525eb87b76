"""Root-mean-square norms. Letters: T tokens, D width; the mean and the product with its root are taken in
float32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from oneroof.ops.dispatch import op


@op
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dim (arXiv:1910.07467); any leading shape."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


@op
def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``s = x + residual; y = s / sqrt(mean(s^2) + eps) * weight``; gives (y, s)."""
    total = x_TD + residual_TD
    return F.rms_norm(total, (total.shape[-1],), weight, eps), total
