"""What `--quantization` means: a recipe for each kind of weight, and the walk that lets a model keep them so.

Norms, biases, routers and single rows stay floats. The output head, and so a table that it is tied to, is
int8 with float inputs in every scheme: there four bits, or rounded inputs, cost the most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from oneroof.layers.embedding import Embedding
from oneroof.layers.linear import Segment
from oneroof.layers.moe import MoE, Router
from oneroof.ops.matmul import DYNAMIC, FLOAT
from oneroof.ops.matrix import LANES, Layout
from oneroof.quant.format import Kept, Recipe
from oneroof.quant.forms import FORMS

PLAIN = Recipe("as it is")


@dataclass(frozen=True)
class Scheme:
    """Recipes by what a weight is for."""

    linear: Recipe  # projections and experts
    head: Recipe  # the output head, and the table it is tied to
    table: Recipe = PLAIN  # an embedding that is no head


SCHEMES = {
    word: Scheme(
        Recipe(forms.linear.kind, forms.linear.group, input=DYNAMIC if word.endswith("-dynamic") else FLOAT),
        Recipe(forms.head.kind, forms.head.group),
    )
    for word, forms in FORMS.items()
}


def apply(model: nn.Module, scheme: Scheme, *, layout: Layout, device: torch.device) -> None:
    """Let every weight of `model` be kept by `scheme`; they are to be filled after that.

    With the scheme of plain weights, `rows` leaves everything as it is.
    """
    if scheme == SCHEMES["none"] and layout == "rows":
        return
    head = getattr(model, "head", None)
    for module in model.modules():
        if isinstance(module, Segment):
            rows, dim = module.weight.shape
            recipe = PLAIN if rows < LANES else _fitting(scheme.linear, dim)
            if recipe != PLAIN or layout == "panels":
                module.adopt(_kept(recipe, module.weight, layout, device))
        elif isinstance(module, Router) and layout == "panels":
            module.adopt(_kept(PLAIN, module.weight, layout, device))
        elif isinstance(module, Embedding):
            recipe = scheme.head if module is head else scheme.table
            if recipe != PLAIN or (layout == "panels" and module is head):
                module.adopt(_kept(recipe, module.weight, layout, device))
        elif isinstance(module, MoE):
            width = module.down.shape[2]
            fits = layout == "rows" or width % LANES == 0  # what the native kernel takes
            module.adopt(
                _kept(
                    _fitting(scheme.linear, module.gate_up.shape[2]),
                    module.gate_up,
                    layout if fits else "rows",
                    device,
                ),
                _kept(_fitting(scheme.linear, width), module.down, layout if fits else "rows", device),
            )


def _fitting(recipe: Recipe, dim: int) -> Recipe:
    """With the group of the whole row where that is shorter than a group."""
    return replace(recipe, group=0) if recipe.group >= dim else recipe


def _kept(recipe: Recipe, weight: torch.Tensor, layout: Layout, device: torch.device) -> Kept:
    *experts, rows, dim = weight.shape
    return Kept.of(
        recipe,
        rows,
        dim,
        dtype=weight.dtype,
        layout=layout,
        device=device,
        experts=experts[0] if experts else 1,
    )
