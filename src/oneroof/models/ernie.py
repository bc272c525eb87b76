"""The ERNIE-4.5 text families: dense, and the mixture of experts whose stored bias chooses but does not
weigh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oneroof.config import Experts, ModelConfig
from oneroof.errors import UserError
from oneroof.models import facts
from oneroof.models.dense import dense
from oneroof.models.family import ANGLES, PACKED_EXPERTS, PREFIXLESS, Family
from oneroof.names import Ignored, Rename

_LAYER = "model.layers.{i}.mlp."


def ernie(hf: Mapping[str, object]) -> ModelConfig:
    """ERNIE-4.5 dense: neighbouring coordinates are rotated together, one switch for every bias."""
    return _dense({"head_dim": 128, **hf})  # transformers' default, in the dense family alone


def ernie_moe(hf: Mapping[str, object]) -> ModelConfig:
    """ERNIE-4.5 MoE: sparse layers by start, end and interval; shared experts stored as one wide MLP,
    ungated.
    """
    plain = _dense(hf)
    width = facts.size(hf, "moe_intermediate_size")
    experts = Experts(
        count=facts.integer(hf, "moe_num_experts", "num_experts", "num_local_experts"),
        top_k=facts.integer(hf, "moe_k", "num_experts_per_tok"),
        width=width,
        normalize=True,
        norm_floor=facts.number(hf, "moe_norm_min", default=1e-12),
        choice_bias=True,
        router_float32=True,
        shared_width=width * facts.integer(hf, "moe_num_shared_experts", default=2),
        shared_gate=False,
        balance_loss=facts.number(hf, "router_aux_loss_coef", default=0.001),
    )
    if not 0 < experts.top_k <= experts.count:
        raise UserError(
            f"config.json chooses {experts.top_k} of {experts.count} experts; 1 to {experts.count} can be"
        )
    return replace(plain, family="ernie_moe", experts=experts, sparse_layers=_sparse(hf, plain.depth))


def _dense(hf: Mapping[str, object]) -> ModelConfig:
    bias = facts.flag(hf, "use_bias", False)
    return dense(
        hf,
        "ernie",
        theta=500000.0,
        interleaved=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        qk_norm=False,
        tied=True,
    )


def _sparse(hf: Mapping[str, object], depth: int) -> tuple[bool, ...]:
    start = facts.integer(hf, "moe_layer_start_index", default=1)
    ends = facts.integers(hf, "moe_layer_end_index")
    end = ends[0] if ends and ends[0] >= 0 else depth - 1
    interval = facts.size(hf, "moe_layer_interval", default=1)
    return tuple((i + 1) % interval == 0 and start <= i <= end for i in range(depth))


_BIAS = _LAYER + "gate.choice_bias"
_MOE_NAMES = (
    Rename(_LAYER + "moe_statics.e_score_correction_bias", (_BIAS,), written=True),
    Rename(_LAYER + "gate.moe_statics.e_score_correction_bias", (_BIAS,), written=False),
    Rename(_LAYER + "shared_experts.{rest}", (_LAYER + "shared_expert.{rest}",), written=True),
)
_MTP = Ignored(r".*mtp.*", "multi-token prediction layers are not part of the decoder")

ERNIE = Family(("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"), ernie, PREFIXLESS, (ANGLES, _MTP))
ERNIE_MOE = Family(
    ("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoEForCausalLM"),
    ernie_moe,
    (*PREFIXLESS, *PACKED_EXPERTS, *_MOE_NAMES),
    (ANGLES, _MTP),
)
