"""Sizes from facts alone: parameters in all and at work for a token, and the cache a token takes."""

from __future__ import annotations

from dataclasses import dataclass

from oneroof.config import ModelConfig
from oneroof.layout import Share


@dataclass(frozen=True)
class Sizes:
    """Counts of parameters; a tied head is counted once."""

    parameters: int
    active: (
        int  # parameters that one token's forward reads, the embedding table left out unless it is the head
    )
    cache_values: int  # key and value numbers kept for each token, all layers


def sizes(config: ModelConfig) -> Sizes:
    """Count without building anything."""
    table = config.vocabulary * config.dim
    outside = config.dim + (0 if config.tied_head else table)
    total, active = table + outside, table + config.dim
    for sparse in config.sparse_layers:
        layer = 2 * config.dim + _attention(config)
        every, used = _moe(config) if sparse else (_mlp(config, config.width),) * 2
        total, active = total + layer + every, active + layer + used
    return Sizes(total, active, 2 * config.depth * config.kv_heads * config.head_dim)


def parameters(config: ModelConfig, share: Share, *, head: bool = True) -> int:
    """What a rank holds; a head that is tied to a table that it has is counted once."""
    rows, dim = len(share.vocabulary) * config.dim, config.dim
    total = rows * share.first
    if share.last:
        total += dim + rows * (head and not (config.tied_head and share.first))
    q, kv = len(share.heads) * config.head_dim, len(share.kv_heads) * config.head_dim
    for layer in range(share.layers.start, share.layers.stop):
        total += 2 * dim + dim * (2 * q + 2 * kv) + (q + 2 * kv if config.qkv_bias else 0)
        total += (dim if config.output_bias and share.leads else 0) + 2 * config.head_dim * config.qk_norm
        experts = config.experts
        if not config.sparse_layers[layer]:
            total += _mlp_share(config, len(share.width), share.leads)
            continue
        assert experts is not None
        total += experts.count * (dim + experts.choice_bias)
        total += 3 * dim * len(share.experts) * len(share.expert_width)
        if experts.shared_width:
            total += _mlp_share(config, len(share.shared_width), share.leads) + dim * experts.shared_gate
    return total


def visited(config: ModelConfig, tokens: int) -> float:
    """Of a layer, experts that so many tokens visit, each choice as likely: ``E (1 - (1 - k / E)^T)``."""
    assert config.experts is not None
    count, chosen = config.experts.count, config.experts.top_k
    return count * (1 - (1 - chosen / count) ** tokens)


def keys(config: ModelConfig, positions: float) -> float:
    """Keys of a text that a step reads with so many behind it, in all layers."""
    return sum(min(positions, window) if window else positions for window in config.windows)


def _mlp_share(config: ModelConfig, width: int, leads: bool) -> int:
    return 3 * config.dim * width + ((2 * width + config.dim * leads) if config.mlp_bias else 0)


def _attention(config: ModelConfig) -> int:
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    biases = (q + 2 * kv if config.qkv_bias else 0) + (config.dim if config.output_bias else 0)
    norms = 2 * config.head_dim if config.qk_norm else 0
    return config.dim * (2 * q + 2 * kv) + biases + norms


def _mlp(config: ModelConfig, width: int) -> int:
    return 3 * config.dim * width + (2 * width + config.dim if config.mlp_bias else 0)


def _moe(config: ModelConfig) -> tuple[int, int]:
    experts = config.experts
    assert experts is not None
    router = experts.count * config.dim + (experts.count if experts.choice_bias else 0)
    shared = _mlp(config, experts.shared_width) if experts.shared_width else 0
    gate = config.dim if experts.shared_gate else 0
    one = 3 * config.dim * experts.width
    fixed = router + shared + gate
    return fixed + experts.count * one, fixed + experts.top_k * one
