"""The mixture block against its parts put together by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oneroof.config import Experts
from oneroof.layers.moe import MoE
from oneroof.layout import Span

CPU = torch.device("cpu")


def _experts(**changes: object) -> Experts:
    facts: dict[str, object] = {
        "count": 4,
        "top_k": 2,
        "width": 16,
        "normalize": True,
        "norm_floor": 0.0,
        "choice_bias": False,
        "router_float32": False,
        "shared_width": 0,
        "shared_gate": False,
        "balance_loss": 0.0,
    }
    return Experts(**(facts | changes))  # type: ignore[arg-type]


def _block(experts: Experts, dtype: torch.dtype = torch.float32) -> MoE:
    block = MoE(
        8,
        experts,
        mine=Span(0, experts.count),
        width=experts.width,
        shared_width=experts.shared_width,
        leads=True,
        bias=False,
        dtype=dtype,
        device=CPU,
        fused=True,
    )
    torch.manual_seed(0)
    for parameter in block.parameters():
        parameter.data.normal_(0, 0.5)
    return block


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("shared_width", "shared_gate"), [(0, False), (12, False), (12, True)])
def test_experts_are_weighed_and_the_shared_one_added(
    normalize: bool, shared_width: int, shared_gate: bool
) -> None:
    block = _block(_experts(normalize=normalize, shared_width=shared_width, shared_gate=shared_gate))
    own = dict(block.tensors())
    x = torch.randn(5, 8)

    def mlp(prefix: str, row: torch.Tensor) -> torch.Tensor:
        gate, up, down = (own[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return down @ (F.silu(gate @ row) * (up @ row))

    expected = []
    for row in x:
        shares = (own["gate.weight"] @ row).softmax(0)
        weights, chosen = shares.topk(2)
        weights = weights / weights.sum() if normalize else weights
        total = sum(w * mlp(f"experts.{int(e)}", row) for w, e in zip(weights, chosen, strict=True))
        if shared_width:
            gate = torch.sigmoid(own["shared_expert_gate.weight"] @ row) if shared_gate else torch.ones(1)
            total = total + gate * mlp("shared_expert", row)
        expected.append(total)
    torch.testing.assert_close(block(x), torch.stack(expected), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_a_router_in_float32_stays_so_in_a_16_bit_model() -> None:
    block = _block(_experts(router_float32=True, choice_bias=True), torch.bfloat16)
    own = dict(block.tensors())
    assert own["gate.weight"].dtype == own["gate.choice_bias"].dtype == torch.float32
    assert own["experts.0.gate_proj.weight"].dtype == torch.bfloat16
    assert own["gate.choice_bias"].shape == (1, 4)  # as stored
    routing = block.router(torch.randn(3, 8, dtype=torch.bfloat16))
    assert routing.weights.dtype == torch.float32 and routing.probabilities.shape == (3, 4)
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(3))


def test_the_choice_bias_is_not_trained() -> None:
    block = _block(_experts(choice_bias=True))
    assert block.router.choice_bias is not None and not block.router.choice_bias.requires_grad
