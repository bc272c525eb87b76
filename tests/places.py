"""What a place of a model holds, whether it is a tensor or rows of a weight in a format."""

from __future__ import annotations

from torch import Tensor

from oneroof.layers.format import Place
from oneroof.models.decoder import Decoder


def numbers(place: Place) -> Tensor:
    """As a tensor of the place's number format."""
    return place if isinstance(place, Tensor) else place.dense().to(place.dtype)


def tensors(model: Decoder) -> dict[str, Tensor]:
    """All of a model's, by our names."""
    return {name: numbers(place) for name, place in model.tensors().items()}
