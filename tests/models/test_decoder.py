"""The decoder by itself: names, storage, random weights, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oneroof.batch import pack
from oneroof.config import Experts, ModelConfig, Rope
from oneroof.errors import UserError
from oneroof.models.decoder import Decoder
from oneroof.models.init import initialize
from oneroof.models.sizes import sizes

EXPERTS = Experts(
    count=4,
    top_k=2,
    width=12,
    normalize=True,
    norm_floor=1e-12,
    choice_bias=True,
    router_float32=True,
    shared_width=10,
    shared_gate=True,
    balance_loss=0.0,
)
CONFIG = ModelConfig(
    family="qwen2_moe",
    vocabulary=40,
    dim=16,
    depth=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    width=24,
    norm_eps=1e-6,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    qk_norm=True,
    rope=Rope(kind="default", theta=10000.0, interleaved=False),
    logn_positions=0,
    causal=True,
    windows=(0, 0),
    tied_head=False,
    experts=EXPERTS,
    sparse_layers=(False, True),
    max_positions=64,
    dtype="float32",
    init_range=0.2,
    bos=None,
    eos=(0,),
    pad=None,
)


def made(config: ModelConfig = CONFIG, *, fused: bool = True, head: bool = True) -> Decoder:
    model = Decoder(config, fused=fused, head=head)
    initialize(model, 1)
    return model


def test_parameters_are_counted_from_facts_alone() -> None:
    for config in (
        CONFIG,
        replace(CONFIG, tied_head=True),
        replace(CONFIG, experts=None, sparse_layers=(False, False)),
    ):
        model = Decoder(config, device="meta")
        assert sum(t.numel() for t in model.tensors().values()) == sizes(config).parameters
        assert sum(p.numel() for p in model.parameters()) == sizes(config).parameters


def test_fused_and_apart_are_one_model() -> None:
    fused, apart = made(), made(fused=False)
    assert list(fused.tensors()) == list(apart.tensors())
    batch = pack([[1, 2, 3], [4, 5]])
    torch.testing.assert_close(fused(batch), apart(batch))


def test_packed_sequences_do_not_see_each_other() -> None:
    model = made()
    together = model(pack([[1, 2, 3], [4, 5], [6]])).split((3, 2, 1))
    for ids, rows in zip(([1, 2, 3], [4, 5], [6]), together, strict=True):
        torch.testing.assert_close(model(pack([ids])), rows, rtol=1e-5, atol=1e-5)


def test_every_parameter_has_a_gradient() -> None:
    model = made()
    model.logits(model(pack([list(range(1, 30))]))).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_random_weights_depend_on_the_seed_alone() -> None:
    model, again, other = made(), made(), Decoder(CONFIG)
    initialize(other, 2)
    for name, tensor in model.tensors().items():
        torch.testing.assert_close(tensor, again.tensors()[name])
    assert not torch.equal(model.tensors()["lm_head.weight"], other.tensors()["lm_head.weight"])
    assert float(model.tensors()["model.embed_tokens.weight"].std()) == pytest.approx(0.2, rel=0.1)
    assert torch.equal(model.tensors()["model.norm.weight"], torch.ones(16))


def test_without_a_head_there_is_no_text() -> None:
    model = made(head=False)
    assert "lm_head.weight" not in model.tensors()
    with pytest.raises(UserError, match="no output head"):
        model.logits(model(pack([[1]])))
