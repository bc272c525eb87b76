"""Element by element: the activation between an MLP's products. Letters: T tokens, F width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from oneroof.ops.dispatch import op


@op
def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of [T, 2F], whose first half is the gate (arXiv:2002.05202); gives [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
