"""What each scheme does to a model: which weights it keeps how, what that costs in memory and in quality."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from oneroof import LLM, SamplingParams
from oneroof.errors import UserError
from oneroof.layers.embedding import Embedding
from oneroof.layers.format import Rows
from oneroof.layers.linear import Segment
from oneroof.layers.moe import MoE, Router
from oneroof.load import Loaded, load
from oneroof.models.decoder import Decoder
from oneroof.ops.cpu.library import native
from oneroof.ops.matmul import DYNAMIC, FLOAT
from oneroof.quant.format import Kept
from oneroof.quant.schemes import PLAIN, SCHEMES

Checkpoint = Callable[..., Path]

TEXT = (  # of a book that the demo model has not been trained on word for word, in its manner
    "The old house stood at the end of the lane, and nobody had lived in it for as long as the children"
    " could remember. There was a garden behind it with a high wall, and over the wall hung the "
    "branches of an apple tree. One morning in spring the little girl found that the gate was open. She"
    " looked in and saw that the grass had grown as high as her knees, and that a robin was sitting on "
    "the handle of a spade. “Good morning,” she said, because she had been taught to be polite. The "
    "bird put his head on one side and looked at her as if he had something to say, but was not quite "
    "sure that she would understand it. Then he flew up into the tree and began to sing. She went home "
    "and told her brother what she had seen, and the next day they both went together, and took some "
    "bread and a bottle of milk with them."
)
FORMS = [
    ("none", "kv8"),
    ("w8a16", "float"),
    ("w8a8-dynamic", "float"),
    ("w4a16", "float"),
    ("w4a16", "kv8"),
    ("w4a8-dynamic", "float"),
]
BOUNDS = {  # nats a token more than with plain float32 at most, and the least share of equal first choices
    "none": (0.01, 0.97),
    "w8a16": (0.01, 0.97),
    "w8a8-dynamic": (0.02, 0.94),
    "w4a16": (0.05, 0.78),
    "w4a8-dynamic": (0.05, 0.78),
}


def kept(model: Decoder) -> dict[str, Kept]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Segment | Router | Embedding) and isinstance(module.format, Kept):
            found[name] = module.format
        if isinstance(module, MoE) and isinstance(module.gate_up_format, Kept):
            assert isinstance(module.down_format, Kept)
            found |= {f"{name}.gate_up": module.gate_up_format, f"{name}.down": module.down_format}
    return found


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "qwen2_moe", "ernie4_5_moe"])
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "none"])
def test_projections_and_experts_are_small_and_the_head_is_int8(
    checkpoint: Checkpoint, family: str, scheme: str
) -> None:
    model = load(checkpoint(family), device="cpu", dtype="bfloat16", quantization=scheme).model
    found = kept(model)
    recipe = SCHEMES[scheme].linear
    for name, format in found.items():
        if name in ("head", "embedding"):
            assert (format.matrix.kind, format.recipe.input) == ("int8", FLOAT)
        elif "router" in name or "shared_gate" in name:
            assert format.recipe == PLAIN
        else:
            assert format.matrix.kind == recipe.kind and format.recipe.input == recipe.input
    assert any(f.recipe.input == DYNAMIC for f in found.values()) == scheme.endswith("dynamic")
    assert model.head is not None and isinstance(model.head.format, Kept)
    assert (model.embedding.format is not None) == (model.embedding is model.head)
    for name, place in model.tensors().items():
        whole = isinstance(place, Rows) and isinstance(place.format, Kept) and place.format.matrix.kind
        small = name.endswith(("norm.weight", ".bias", "_bias", "mlp.gate.weight", "expert_gate.weight"))
        table = name == "model.embed_tokens.weight" and model.embedding is not model.head
        assert (whole in ("int8", "int4")) == (not small and not table), name


def test_plain_weights_are_tensors(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("qwen3_moe"), device="cpu", plain=True).model
    assert not kept(model)
    assert not any(isinstance(place, Rows) for place in model.tensors().values())
    native_too = load(checkpoint("qwen3_moe"), device="cpu").model
    assert bool(kept(native_too)) == (native() is not None)


def test_what_is_read_is_what_would_be_rounded(checkpoint: Checkpoint) -> None:
    """A quantised model stands for the numbers that its formats make of the checkpoint's, in any layout."""
    plain = load(checkpoint("qwen3_moe"), device="cpu", dtype="float32", plain=True).model.tensors()
    for scheme in ("w8a16", "w4a16"):
        model = load(checkpoint("qwen3_moe"), device="cpu", dtype="float32", quantization=scheme).model
        for name, place in model.tensors().items():
            weight = plain[name]
            assert isinstance(weight, torch.Tensor)
            if isinstance(place, Rows):
                step = weight.abs().amax(-1, keepdim=True) / (127 if scheme == "w8a16" else 7)
                assert ((place.dense() - weight).abs() <= step * 1.01).all(), name
            else:
                assert torch.equal(place, weight), name


def test_random_weights_are_the_same_draw_rounded(checkpoint: Checkpoint) -> None:
    options = {"device": "cpu", "dtype": "float32", "random_weights": True, "seed": 3}
    plain = load(checkpoint("qwen2"), plain=True, **options).model.tensors()  # type: ignore[arg-type]
    found = load(checkpoint("qwen2"), quantization="w8a16", **options).model.tensors()  # type: ignore[arg-type]
    name = "model.layers.1.self_attn.k_proj.weight"
    rows, weight = found[name], plain[name]
    assert isinstance(rows, Rows) and isinstance(weight, torch.Tensor)
    assert (rows.dense() - weight).abs().max() < weight.abs().max() / 250


@pytest.mark.parametrize(
    ("scheme", "most"), [("w8a16", 0.52), ("w8a8-dynamic", 0.52), ("w4a16", 0.35), ("w4a8-dynamic", 0.35)]
)
def test_memory_of_the_demo_model(scheme: str, most: float) -> None:
    """Beside bfloat16: int8 is half and its scales, int4 a quarter, and half for the head."""
    plain, small = (
        sum(place.nbytes for place in held(one, "bfloat16").model.tensors().values())
        for one in ("none", scheme)
    )
    assert small < most * plain


@cache
def held(scheme: str, dtype: str) -> Loaded:
    return load("demo", device="cpu", dtype=dtype, quantization=scheme)


@cache
def read(scheme: str, kv: str) -> tuple[float, list[int]]:
    """Nats a token of the text, read in chunks in float32, and what would have been written at each place."""
    with LLM(held(scheme, "float32"), kv=kv, max_batch=1, max_batch_tokens=64) as llm:  # type: ignore[arg-type]
        (output,) = llm.generate(TEXT, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1))
    assert output.prompt_logprobs is not None
    pairs = list(zip(output.prompt_logprobs, output.prompt_token_ids, strict=True))[1:]
    assert len(pairs) > 150
    nats = -sum(share[token].logprob for share, token in pairs if share is not None) / len(pairs)
    return nats, [min(share, key=lambda t: share[t].rank) for share, _ in pairs if share is not None]


@pytest.mark.parametrize(("scheme", "kv"), FORMS)
def test_quality_on_the_demo_model(scheme: str, kv: str) -> None:
    """The perplexity of a text, and the likeliest token at each of its places, beside float32."""
    (exact, wanted), (nats, found) = read("none", "float"), read(scheme, kv)
    most, least = BOUNDS[scheme]
    share = sum(a == b for a, b in zip(wanted, found, strict=True)) / len(wanted)
    told = (
        f"{scheme} {kv}: perplexity {math.exp(nats):.3f} beside {math.exp(exact):.3f}, {share:.1%} the same"
    )
    assert nats - exact < most and share > least, told


def test_words_that_are_no_scheme_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match="quantization w2a2 is unknown; none, w8a16"):
        load(checkpoint("qwen2"), device="cpu", quantization="w2a2")
    with pytest.raises(UserError, match="plain weights"):
        load(checkpoint("qwen2"), device="cpu", quantization="w8a16", plain=True)
