"""Two optimisers under one roof: Muon for the matrices, AdamW for the table, routers and norms.

The model computes in bfloat16; this file holds its weights in float32 and rounds them after each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.1  # of the weights, decoupled; the norms are free
CLIP = 1.0  # of the gradient's norm over all weights
MOMENTUM = 0.95


class Optimizer:
    """`step(factor)` moves every weight by its gradient; `factor` scales both learning rates."""

    def __init__(self, model: nn.Module, *, head_dim: int, matrix_rate: float, rate: float) -> None:
        self.live = dict(model.named_parameters())
        self.master = {name: p.detach().float().clone() for name, p in self.live.items()}
        self.head_dim, self.matrix_rate, self.rate = head_dim, matrix_rate, rate
        self.matrices = [name for name in self.master if _is_matrix(name)]
        self.momenta = {name: torch.zeros_like(self.master[name]) for name in self.matrices}
        others = {name: w for name, w in self.master.items() if name not in self.momenta}
        groups = [
            {"params": [w for w in others.values() if w.ndim > 1], "weight_decay": DECAY},
            {"params": [w for w in others.values() if w.ndim == 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)

    @torch.no_grad()
    def step(self, factor: float) -> float:
        """One step from the live gradients, which are cleared; gives the gradient's norm before clipping."""
        for name, parameter in self.live.items():
            assert parameter.grad is not None
            self.master[name].grad = parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.master.values(), CLIP)
        for group in self.adam.param_groups:
            group["lr"] = self.rate * factor
        self.adam.step()
        for name in self.matrices:
            self._move(name, self.matrix_rate * factor)
        for name, parameter in self.live.items():
            parameter.copy_(self.master[name])
        return float(norm)

    def _move(self, name: str, rate: float) -> None:
        """Muon: Nesterov momentum, made orthogonal, in steps whose size does not depend on the shape's
        aspect.
        """
        weight, momentum = self.master[name], self.momenta[name]
        assert weight.grad is not None
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        wanted = weight.grad.lerp(momentum, MOMENTUM)
        if "qkv" in name:  # each head by itself
            wanted = wanted.view(-1, self.head_dim, wanted.shape[-1])
        step = orthogonal(wanted) * max(1.0, wanted.shape[-2] / wanted.shape[-1]) ** 0.5
        weight.mul_(1 - rate * DECAY).add_(step.view_as(weight), alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on, by name."""
        kept = {f"master.{name}": w for name, w in self.master.items()}
        kept |= {f"momentum.{name}": m for name, m in self.momenta.items()}
        for name, weight in self.master.items():
            kept |= {f"adam.{key}.{name}": value for key, value in self.adam.state.get(weight, {}).items()}
        return kept

    @torch.no_grad()
    def resume(self, kept: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, weight in self.master.items():
            weight.copy_(kept[f"master.{name}"])
            self.live[name].copy_(weight)
            if name in self.momenta:
                self.momenta[name].copy_(kept[f"momentum.{name}"])
            else:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.adam.state[weight] = {key: kept[f"adam.{key}.{name}"].clone() for key in keys}


def _is_matrix(name: str) -> bool:
    return name.endswith(("gate_up", "down")) or (".attention." in name and "norm" not in name)


def orthogonal(x: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrix with singular values near 1, by Newton-Schulz in bfloat16; [..., M, N], float32 out.

    The quintic and its coefficients are those of Keller Jordan's Muon (2024).
    """
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = y @ y.mT
        y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
    result: Tensor = y.mT if tall else y
    return result.float()
