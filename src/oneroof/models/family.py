"""What a family is to the rest of the house: its architectures, how it states its facts, and how its files
name tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from oneroof.config import ModelConfig
from oneroof.names import Ignored, Rename


@dataclass(frozen=True)
class Family:
    """One row of `FAMILIES`."""

    architectures: tuple[str, ...]  # as `config.json` spells them
    facts: Callable[[Mapping[str, object]], ModelConfig]
    renames: tuple[Rename, ...]
    ignored: tuple[Ignored, ...]


_LAYER = "model.layers.{i}."

# What other tools do to any family's names.
PREFIXLESS = (
    Rename("layers.{rest}", ("model.layers.{rest}",), written=False),
    Rename("embed_tokens.weight", ("model.embed_tokens.weight",), written=False),
    Rename("norm.weight", ("model.norm.weight",), written=False),
)
PACKED_EXPERTS = (
    Rename(
        _LAYER + "mlp.experts.gate_up_proj",
        (_LAYER + "mlp.experts.{e}.gate_proj.weight", _LAYER + "mlp.experts.{e}.up_proj.weight"),
        written=False,
    ),
    Rename(_LAYER + "mlp.experts.down_proj", (_LAYER + "mlp.experts.{e}.down_proj.weight",), written=False),
)
ANGLES = Ignored(
    r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)", "rope angles are computed from config.json"
)
