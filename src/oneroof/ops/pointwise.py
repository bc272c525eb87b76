"""Element by element: the activation between an MLP's products, and the sum of two of them; the largest of a
row.

Letters: T tokens, D model width, F width of an MLP, S rows, V vocabulary.
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


@op
def likeliest(x_SV: Tensor, otherwise: int) -> Tensor:
    """[S] int64: the place of each row's largest; `otherwise` where that is not finite, or one is NaN."""
    values, places = x_SV.max(-1)
    return places.where(values.isfinite(), otherwise)
