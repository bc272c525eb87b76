"""A rank's share of a decoder put together with the others'.

Tensor parallel: sums behind attention, MLP and embedding, columns of logits side by side. Experts of other
ranks add to the same sum. Pipeline: a stage receives what the one before it sends.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from oneroof.batch import Batch
from oneroof.config import ModelConfig
from oneroof.layers.attention import Attention
from oneroof.layers.embedding import Embedding
from oneroof.layers.mlp import MLP
from oneroof.layers.moe import MoE
from oneroof.layout import Share
from oneroof.pages import KVCache
from oneroof.parallel.joint import Joint


class Staged(Protocol):
    """A rank's share of a decoder, as a stage needs it."""

    config: ModelConfig
    share: Share
    embedding: Embedding | None

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def go_on(self, x_TD: Tensor, batch: Batch, cache: KVCache | None) -> Tensor:
        """Through its layers: in the last stage the final hidden states."""


def hang(model: nn.Module, joint: Joint, vocabulary: int) -> None:
    """Let the shares of `model`, a decoder, be joined from now on wherever their sum or columns are used."""
    if joint.mesh.tp == 1:
        return
    each = -(-vocabulary // joint.mesh.tp)
    inner = {id(module.shared) for module in model.modules() if isinstance(module, MoE)}
    for module in model.modules():
        if isinstance(module, Attention | MoE) or (isinstance(module, MLP) and id(module) not in inner):
            module.join = joint.total
        elif isinstance(module, Embedding):
            module.join = joint.total
            module.gather = partial(joint.side_by_side, whole=vocabulary, each=each)


class Stage:
    """One of several stages in a row: called as a decoder is, by all of them."""

    def __init__(self, model: Staged, joint: Joint) -> None:
        self._model = model
        self._mesh = joint.mesh

    def __call__(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """The final hidden states in the last stage; elsewhere what was sent on."""
        out = self._model.go_on(self._begin(batch), batch, cache)
        if not self._model.share.last:
            self._mesh.send(out)
        return out

    def _begin(self, batch: Batch) -> Tensor:
        model = self._model
        if model.embedding is not None and model.share.first:
            embedded: Tensor = model.embedding(batch.tokens)
            return embedded
        shape = (batch.tokens.shape[0], model.config.dim)
        return self._mesh.receive(torch.empty(shape, dtype=model.dtype, device=model.device))
