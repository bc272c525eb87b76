"""The one decoder: every family is this code with other facts. It knows no file, no request and no rank.

Letters: T tokens, R rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from oneroof import ops
from oneroof.batch import Batch
from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.layers.attention import Attention
from oneroof.layers.embedding import Embedding
from oneroof.layers.format import Place
from oneroof.layers.mlp import MLP
from oneroof.layers.moe import MoE
from oneroof.layers.norm import RMSNorm
from oneroof.layers.rope import Angles, Rotary
from oneroof.layout import ALONE, HEAD, TABLE, Share, share_of
from oneroof.models.replay import replay
from oneroof.pages import KVCache, LayerCache


class Block(nn.Module):
    """One layer: attention and MLP, each behind its norm, around a residual that is added where it is next
    read.
    """

    def __init__(
        self,
        config: ModelConfig,
        share: Share,
        layer: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        fused: bool,
    ) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.dim, config.norm_eps, dtype, device)
        self.attention = Attention(config, share, layer, dtype=dtype, device=device, fused=fused)
        self.post_norm = RMSNorm(config.dim, config.norm_eps, dtype, device)
        self.mlp: MLP | MoE
        if config.sparse_layers[layer]:
            assert config.experts is not None
            self.mlp = MoE(
                config.dim,
                config.experts,
                mine=share.experts,
                width=len(share.expert_width),
                shared_width=len(share.shared_width),
                leads=share.leads,
                bias=config.mlp_bias,
                dtype=dtype,
                device=device,
                fused=fused,
            )
        else:
            self.mlp = MLP(
                config.dim,
                len(share.width),
                bias=config.mlp_bias,
                leads=share.leads,
                dtype=dtype,
                device=device,
                fused=fused,
            )

    def forward(
        self, x_TD: Tensor, residual_TD: Tensor | None, batch: Batch, angles: Angles, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """(this layer's last addend, the sum before it); the caller adds them."""
        if residual_TD is None:
            normed, residual = self.input_norm(x_TD), x_TD
        else:
            normed, residual = self.input_norm.add(x_TD, residual_TD)
        normed, residual = self.post_norm.add(self.attention(normed, batch, angles, cache), residual)
        return self.mlp(normed), residual

    def tensors(self) -> Iterator[tuple[str, Place]]:
        """The checkpoint's tensors, by their names within the layer."""
        yield "input_layernorm.weight", self.input_norm.weight
        yield from ((f"self_attn.{name}", tensor) for name, tensor in self.attention.tensors())
        yield "post_attention_layernorm.weight", self.post_norm.weight
        yield from ((f"mlp.{name}", tensor) for name, tensor in self.mlp.tensors())


class Decoder(nn.Module):
    """Embedding, blocks, final norm and head. Parameters are made on `device`, uninitialised: fill
    `tensors()`.

    `fused` joins neighbouring projections (fastest); training apart wants them separate. `head` False builds
    none: an embedding checkpoint that ships without. On the device `meta` it has shapes and no memory.
    `share`: a rank's part, which gives sums' addends until somebody hangs collectives into it.
    """

    embedding: Embedding | None
    norm: RMSNorm | None
    head: Embedding | None

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fused: bool = True,
        head: bool = True,
        share: Share | None = None,
    ) -> None:
        super().__init__()
        place = torch.device(device)
        self.config = config
        self.share = share = share or share_of(config, ALONE, 0)
        rows, dim = share.vocabulary, config.dim
        self.embedding = Embedding(rows, dim, dtype, place) if share.first else None
        self.blocks = nn.ModuleList(
            Block(config, share, i, dtype=dtype, device=place, fused=fused)
            for i in range(share.layers.start, share.layers.stop)
        )
        self.norm = RMSNorm(dim, config.norm_eps, dtype, place) if share.last else None
        self.head = None
        if head and share.last:
            tied = config.tied_head and self.embedding is not None
            self.head = self.embedding if tied else Embedding(rows, dim, dtype, place)
        self.rotary = Rotary(config.rope, config.head_dim, config.logn_positions, place)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        first = self.blocks[0]
        assert isinstance(first, Block)
        return first.input_norm.weight

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """Final hidden states [T, D], normed; `batch.paging` says where in `cache` keys and values go.

        Of a decoder that has all its layers.
        """
        assert self.embedding is not None
        return self.go_on(self.embedding(batch.tokens), batch, cache)

    def go_on(self, x_TD: Tensor, batch: Batch, cache: KVCache | None) -> Tensor:
        """What comes after the embedding, or after the stage before this one; [T, D] -> [T, D].

        In the last stage the final hidden states, elsewhere what the next one goes on with.
        """
        angles = self.rotary(batch)
        if cache is not None:
            hidden = replay(self, x_TD, batch, angles, cache)
            if hidden is not None:
                return hidden
        return self.layers(x_TD, batch, angles, cache)

    def layers(self, x_TD: Tensor, batch: Batch, angles: Angles, cache: KVCache | None) -> Tensor:
        """The same from angles that are known, without a recording."""
        x, residual = x_TD, cast(Tensor | None, None)
        for i, block in enumerate(self.blocks):
            x, residual = block(x, residual, batch, angles, cache.layers[i] if cache is not None else None)
        assert residual is not None  # there is at least one block
        if self.norm is None:
            return ops.blend(x, residual, None)
        normed, _ = self.norm.add(x, residual)
        return normed

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, D] -> [R, V] in float32. UserError for a checkpoint without a head."""
        if self.head is None:
            raise UserError(
                "this checkpoint has no output head; embeddings are allowed, text is not; use `embed`"
            )
        return self.head.scores(hidden_RD)

    def ntk_alpha(self, length: int) -> float:
        """The NTK stretch of a sequence admitted with a prompt of `length` tokens; 1.0 for most models."""
        return self.rotary.alpha(length)

    def tensors(self) -> dict[str, Place]:
        """Our checkpoint name -> a view of its storage, in the checkpoint's shape; without a tied head.

        Of a weight in a `Format` it is `Rows`, which can be filled and told as numbers, but is no tensor.
        """
        found: dict[str, Place] = {}
        if self.embedding is not None:
            found[TABLE] = self.embedding.table()
        for i, block in enumerate(self.blocks, self.share.layers.start):
            assert isinstance(block, Block)
            for name, place in block.tensors():
                found[f"model.layers.{i}.{name}"] = place.data if isinstance(place, Tensor) else place
        if self.norm is not None:
            found["model.norm.weight"] = self.norm.weight.data
        if self.head is not None and self.head is not self.embedding:
            found[TABLE if self.config.tied_head else HEAD] = self.head.table()
        return found
