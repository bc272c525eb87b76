"""What training minimises: cross entropy of the next token, and a balance of the experts' loads.

Letters: T tokens, D model width, V vocabulary, E experts, k chosen, F width of an expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneroof.batch import Batch
from oneroof.layers.moe import MoE, Routing
from oneroof.models.decoder import Decoder

ROWS = 1024  # of logits held at a time: [T, V] in float32 would leave the caches and the allocator's pools


class Objective(nn.Module):
    """The decoder with an ear at each router."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.routings: list[Routing] = []
        for module in decoder.modules():
            if isinstance(module, MoE):
                module.router.register_forward_hook(self._hear)

    def _hear(self, router: nn.Module, inputs: tuple[Tensor, ...], routing: Routing) -> None:
        self.routings.append(routing)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(hidden states [T, D], balance loss), both with gradients."""
        self.routings.clear()
        hidden = self.decoder(batch)
        return hidden, torch.stack([balance(routing) for routing in self.routings]).mean()

    def entropy(self, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
        """Summed cross entropy in nats of some rows."""
        return F.cross_entropy(self.decoder.logits(hidden_RD), targets_R, reduction="sum")


def balance(routing: Routing) -> Tensor:
    """``E * sum_e load_e * mean_t p_te`` (arXiv:2101.03961); 1 where every expert gets its share."""
    experts = routing.probabilities.shape[1]
    load = F.one_hot(routing.chosen, experts).float().mean((0, 1))
    return experts * (load * routing.probabilities.mean(0)).sum()


def every_expert(
    x_TD: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """`ops.mixture` as two wide products: every expert sees every token, and those not chosen weigh nothing.

    For few small experts on a CPU this is twice as fast, backward included, as sorting the rows by expert.
    """
    experts, double, dim = gate_up_E2FD.shape
    weights = torch.zeros(x_TD.shape[0], experts, dtype=x_TD.dtype, device=x_TD.device)
    weights = weights.scatter(1, chosen_Tk, weights_Tk.to(x_TD.dtype))
    gate, up = F.linear(x_TD, gate_up_E2FD.flatten(0, 1)).view(-1, experts, 2, double // 2).unbind(2)
    hidden = F.silu(gate) * up * weights[..., None]
    return hidden.flatten(1) @ down_EDF.transpose(1, 2).reshape(experts * double // 2, dim)


def backward(objective: Objective, batch: Batch, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Accumulate gradients of one batch; gives its (mean cross entropy in nats, balance loss)."""
    experts = objective.decoder.config.experts
    assert experts is not None
    hidden, uneven = objective(batch)
    leaf = hidden.detach().requires_grad_()
    total = torch.zeros(())
    for rows, wanted in zip(leaf.split(ROWS), targets.split(ROWS), strict=True):
        entropy = objective.entropy(rows, wanted)
        (entropy / len(targets)).backward()
        total += entropy.detach()
    torch.autograd.backward([hidden, experts.balance_loss * uneven], [leaf.grad, None])
    return total / len(targets), uneven.detach()


@torch.no_grad()
def entropy_of(decoder: Decoder, batch: Batch, targets: Tensor) -> float:
    """Summed cross entropy in nats of one batch, not compiled: such batches come in odd shapes."""
    parts = zip(decoder(batch).split(ROWS), targets.split(ROWS), strict=True)
    return sum(float(F.cross_entropy(decoder.logits(h), t, reduction="sum")) for h, t in parts)
