"""The facts about a decoder, and nothing else: what `config.json` of any family is translated into.

No torch here, no family names, no sizes: a fact is a field, and the layers read fields. Made in one place
(`oneroof.models.read_config`) and never edited; `dataclasses.replace` makes a variant.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: which angles, and how a head's coordinates are paired.

    `kind` is one of `default`, `linear`, `dynamic` (NTK by the prompt's length, as transformers), `yarn`
    (arXiv:2309.00071) and `ntk-by-doubling` (Qwen-1: alpha = 2^ceil(log2(length / original) + 1) - 1).
    """

    kind: str
    theta: float
    interleaved: bool  # pairs (0,1),(2,3).. instead of (i, i + head_dim/2)
    factor: float = 1.0
    original_positions: int = 0  # positions seen in training; 0 where the kind has no use for it
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn: multiplies cos and sin, already resolved
    truncate: bool = True  # yarn: round the borders of the ramp to whole dimensions


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture-of-experts block: its router and its experts."""

    count: int
    top_k: int
    width: int
    normalize: bool  # the chosen weights are divided by their sum
    norm_floor: float  # ... but by no less than this
    choice_bias: bool  # a stored bias takes part in choosing, not in weighing
    router_float32: bool  # the router's product is taken in float32 whatever the model's dtype
    shared_width: int  # of the expert every token visits; 0 where there is none
    shared_gate: bool  # the shared expert's output is scaled by sigmoid(x @ gate)
    balance_loss: float  # training: coefficient of the load-balance loss


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a decoder is. Widths are of the whole model, never of one rank's share."""

    family: str  # the word in `FAMILIES`; read by the loader alone
    vocabulary: int
    dim: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int  # of a dense MLP
    norm_eps: float
    qkv_bias: bool
    output_bias: bool  # of the attention's output projection
    mlp_bias: bool
    qk_norm: bool
    rope: Rope
    logn_positions: int  # queries past this position are scaled by log(position) / log(this); 0 = off
    causal: bool  # False: every token sees its whole sequence (embedding models)
    windows: tuple[int, ...]  # one a layer: keys a query sees, itself included; 0 = all
    tied_head: bool
    experts: Experts | None
    sparse_layers: tuple[bool, ...]  # one a layer: mixture-of-experts or dense
    max_positions: int
    dtype: str  # of the checkpoint: float32, bfloat16, float16; stored: as its tensors are
    init_range: float
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
