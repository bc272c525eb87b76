"""The product with a weight as checkpoints store it. Letters: T tokens, K inputs, N outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof.ops.dispatch import op


@op
def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """``y = x @ weight^T + bias``, [T, N] in x's dtype."""
    if x_TK.shape[0] == 1 and x_TK.device.type == "cpu" and x_TK.dtype != torch.float32:
        # torch 2.13's matrix product of 16-bit types reads weights at 0.6 of its matrix-vector product's rate
        y = torch.mv(weight_NK, x_TK[0])
        return (y if bias_N is None else y + bias_N).unsqueeze(0)
    return F.linear(x_TK, weight_NK, bias_N)
