"""Checkpoint names as pure data: how a stored tensor's name becomes ours, and which tensors are left out, and
why.

Our names are those of the Qwen2 / Qwen3 checkpoints of transformers 4
(`model.layers.0.self_attn.q_proj.weight`). A family lists only where its files differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rename:
    """One stored tensor, or a pack of ours.

    `stored` and `ours` are templates: ``{i}`` stands for a number, ``{rest}`` for any tail. With several
    `ours` the stored tensor is their concatenation along dim 0 in equal blocks. Where `ours` says ``{e}`` and
    `stored` does not, the stored tensor has a leading dimension that counts experts, each of which is such a
    concatenation.
    """

    stored: str
    ours: tuple[str, ...]
    written: bool  # this is the family's own form: `save` writes it. False: only read (another tool's layout)


@dataclass(frozen=True)
class Ignored:
    """A stored tensor that has no place in the model, by regular expression (full match), and the reason."""

    pattern: str
    reason: str
