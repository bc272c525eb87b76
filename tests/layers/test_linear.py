"""Parts and segments: the same tensors by the same names, however they are stored."""

from __future__ import annotations

import torch

from oneroof.layers.linear import Linear

CPU = torch.device("cpu")


def _pair(bias: bool) -> tuple[Linear, Linear]:
    parts = {"q_proj": 6, "k_proj": 2, "v_proj": 2}
    fused = Linear(8, parts, bias=bias, dtype=torch.float32, device=CPU)
    apart = Linear(8, parts, bias=bias, dtype=torch.float32, device=CPU, fused=False)
    for (name, a), (other, b) in zip(fused.tensors(), apart.tensors(), strict=True):
        assert name == other
        values = torch.randn(a.shape)
        a.data.copy_(values), b.data.copy_(values)
    return fused, apart


def test_fused_equals_apart() -> None:
    for bias in (False, True):
        fused, apart = _pair(bias)
        x = torch.randn(3, 8)
        torch.testing.assert_close(fused(x), apart(x))
        assert len(list(fused.parameters())) < len(list(apart.parameters()))


def test_tensors_are_views_into_the_storage() -> None:
    fused, _ = _pair(True)
    tensors = dict(fused.tensors())
    assert list(tensors) == [f"{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")]
    tensors["k_proj.weight"].data.zero_()
    assert not fused(torch.randn(1, 8))[0, 6:8].sub(tensors["k_proj.bias"]).any()
