"""Element by element: the activation between an MLP's products, and the sum of two of them.

Letters: T tokens, D model width, F width of an MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof.ops.dispatch import op


@op
def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of [T, 2F], whose first half is the gate (arXiv:2002.05202); gives [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@op
def blend(x_TD: Tensor, y_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
    """``x + sigmoid(gate) * y``, or ``x + y``: the routed experts and the one that every token visits."""
    return x_TD + (y_TD if gate_T1 is None else torch.sigmoid(gate_T1) * y_TD)
