"""The published configs at hand become facts; a decoder on the meta device has exactly the published tensors.

Expected names and shapes come from `published.py`, which knows nothing of the package; totals are literals.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from published import FAMILIES as PUBLISHED

from oneroof.config import ModelConfig
from oneroof.models import family_of, read_config, read_facts
from oneroof.models.decoder import Decoder
from oneroof.models.sizes import sizes
from oneroof.names import Rename

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"
# parameters, a tied head counted once
TOTALS = {
    "ERNIE-4.5-0.3B-PT": 360_748_032,
    "ERNIE-4.5-21B-A3B-PT": 21_825_437_888,
    "ERNIE-4.5-300B-A47B-PT": 298_636_913_856,
    "Qwen-7B": 7_721_324_544,
    "Qwen1.5-7B": 7_721_324_544,
    "Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen2-57B-A14B": 57_408_658_944,
    "Qwen2-7B": 7_615_616_512,
    "Qwen2-7B-Instruct": 7_615_616_512,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-Coder-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-8B": 8_190_735_360,
    "gte-Qwen2-7B-instruct": 7_612_620_288,
}
ACTIVE = {
    "Qwen3-30B-A3B": 3.3e9,
    "Qwen3-235B-A22B": 22.2e9,
    "Qwen1.5-MoE-A2.7B": 2.7e9,
    "Qwen2-57B-A14B": 14.2e9,
}

needs_configs = pytest.mark.skipif(
    not CONFIGS.is_dir(), reason="no ../shared/data/configs beside the project"
)


@needs_configs
def test_every_config_at_hand_is_in_the_table() -> None:
    here = {path.parent.name for path in CONFIGS.glob("*/config.json")}
    assert here == set(TOTALS)


@needs_configs
@pytest.mark.parametrize("model", TOTALS)
def test_the_decoder_has_the_published_tensors(model: str) -> None:
    facts, keys = read_config(CONFIGS / model), _keys(model)
    tensors = Decoder(facts, device="meta", dtype=torch.bfloat16).tensors()
    assert sum(t.numel() for t in tensors.values()) == TOTALS[model]
    assert sizes(facts).parameters == TOTALS[model]
    renames = family_of(keys).renames
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in _published(model).items():
        expected |= dict(_ours(name, shape, renames))
    assert {name: tuple(t.shape) for name, t in tensors.items()} == expected


@needs_configs
@pytest.mark.parametrize("model", TOTALS)
def test_the_published_index_lists_these_tensors_and_this_size(model: str) -> None:
    index = _index(model)
    if index is None:
        pytest.skip("published as a single file, without an index")
    shapes = _published(model)
    assert set(index["weight_map"]) == set(shapes)
    width = 4 if model.startswith("gte") else 2  # bytes
    exact = "e_score_correction_bias"  # float32
    total = sum(math.prod(s) * (4 if n.endswith(exact) else width) for n, s in shapes.items())
    assert index["metadata"]["total_size"] == total


@needs_configs
@pytest.mark.parametrize("model", ACTIVE)
def test_active_parameters_are_near_the_published_round_number(model: str) -> None:
    facts = _facts(model)
    table = facts.vocabulary * facts.dim  # the published numbers count it
    assert sizes(facts).active + table == pytest.approx(ACTIVE[model], rel=0.02)


@needs_configs
@pytest.mark.parametrize("model", TOTALS)
def test_transformers_5_spelling_gives_the_same_facts(model: str) -> None:
    keys = _keys(model)
    if keys["model_type"] == "qwen":
        pytest.skip("transformers has no Qwen-1")
    told = {**keys, "dtype": keys["torch_dtype"], "rope_parameters": {"rope_type": "default"}}
    told["rope_parameters"] = {"rope_type": "default", "rope_theta": keys["rope_theta"]}
    for gone in ("torch_dtype", "rope_theta", "rope_scaling"):
        told.pop(gone, None)
    if "num_experts" in told:
        told["num_local_experts"] = told.pop("num_experts")
    assert read_facts(told) == read_facts(keys)


@needs_configs
def test_facts_of_one_of_each_family() -> None:
    """Spot checks against the files, read by eye."""
    first = _facts("Qwen-7B")
    assert (first.width, first.logn_positions, first.rope.kind, first.rope.original_positions) == (
        11008,
        8192,
        "ntk-by-doubling",
        8192,
    )
    assert first.qkv_bias and not first.output_bias and not first.tied_head
    small = _facts("Qwen2.5-0.5B")
    assert small.tied_head and small.head_dim == 64 and small.kv_heads == 2 and set(small.windows) == {0}
    assert small.rope.theta == 1e6 and small.eos == (151643,) and small.dtype == "bfloat16"
    shared = _facts("Qwen2-57B-A14B").experts
    assert shared is not None and (shared.shared_width, shared.shared_gate, shared.normalize) == (
        20480,
        True,
        False,
    )
    third = _facts("Qwen3-30B-A3B")
    assert third.qk_norm and not third.qkv_bias and third.head_dim == 128 != third.dim // third.heads
    assert third.experts is not None and third.experts.normalize and third.experts.shared_width == 0
    ernie = _facts("ERNIE-4.5-21B-A3B-PT")
    assert ernie.rope.interleaved and ernie.tied_head and ernie.norm_eps == 1e-5
    assert ernie.sparse_layers == (False,) + (True,) * 27
    assert ernie.experts is not None and ernie.experts.choice_bias and ernie.experts.router_float32
    assert (ernie.experts.shared_width, ernie.experts.shared_gate, ernie.experts.norm_floor) == (
        3072,
        False,
        1e-12,
    )
    large = _facts("ERNIE-4.5-300B-A47B-PT")
    assert large.sparse_layers == (False,) * 3 + (True,) * 51 and large.experts is not None
    assert large.experts.shared_width == 0
    assert not _facts("gte-Qwen2-7B-instruct").causal and small.causal


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_fixture_is_what_the_decoder_expects(family: str) -> None:
    """The same comparison as with the published configs, for the tiny ones that every other test loads."""
    keys = PUBLISHED[family].config
    facts = read_facts(keys)
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in PUBLISHED[family].shapes(keys).items():
        expected |= dict(_ours(name, shape, family_of(keys).renames))
    tensors = Decoder(facts, device="meta", head=False).tensors()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == expected
    assert sum(math.prod(s) for s in expected.values()) + (
        0 if facts.tied_head else facts.vocabulary * facts.dim
    ) == (sizes(facts).parameters)


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    """The defaults of its 5.23 classes, for keys that some published files lack."""
    slides = {**PUBLISHED["qwen2"].config, "use_sliding_window": True, "sliding_window": 9}
    del slides["max_window_layers"]  # 28
    assert read_facts({**slides, "num_hidden_layers": 30}).windows == (0,) * 28 + (9, 9)
    slides = {
        **PUBLISHED["qwen3"].config,
        "use_sliding_window": True,
        "sliding_window": 9,
        "num_hidden_layers": 29,
    }
    del slides["max_window_layers"], slides["tie_word_embeddings"], slides["head_dim"], slides["rope_theta"]
    third = read_facts(slides)
    assert third.windows == (0,) * 28 + (9,)
    assert (third.head_dim, third.tied_head, third.rope.theta) == (128, False, 10000.0)
    moe = {**PUBLISHED["qwen3_moe"].config}
    del moe["norm_topk_prob"], moe["head_dim"], moe["mlp_only_layers"], moe["decoder_sparse_step"]
    mixture = read_facts(moe)
    assert mixture.experts is not None and not mixture.experts.normalize
    assert mixture.head_dim == 16 and mixture.sparse_layers == (True,) * 4
    ernie = {**PUBLISHED["ernie4_5"].config}
    del ernie["tie_word_embeddings"], ernie["head_dim"], ernie["rope_theta"], ernie["use_bias"]
    dense = read_facts(ernie)
    assert (dense.head_dim, dense.tied_head, dense.rope.theta, dense.qkv_bias) == (128, True, 500000.0, False)


def test_fused_or_not_the_tensors_are_the_same() -> None:
    for family in ("qwen1", "qwen3_moe", "ernie4_5_moe"):
        facts = read_facts(PUBLISHED[family].config)
        fused, apart = (Decoder(facts, device="meta", fused=f).tensors() for f in (True, False))
        assert {n: t.shape for n, t in fused.items()} == {n: t.shape for n, t in apart.items()}


@cache
def _keys(model: str) -> dict[str, object]:
    keys: dict[str, object] = json.loads((CONFIGS / model / "config.json").read_text())
    return keys


def _facts(model: str) -> ModelConfig:
    return read_config(CONFIGS / model)


def _published(model: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the model's files hold them, its head included."""
    keys = _keys(model)
    word = {"qwen": "qwen1"}.get(str(keys["model_type"]), str(keys["model_type"]))
    silent = {"attention_bias": False, "use_bias": False, "mlp_only_layers": []}  # what a file may leave out
    shapes = PUBLISHED[word].shapes({**silent, **keys})
    if not keys["tie_word_embeddings"]:
        table = next(
            shape for name, shape in shapes.items() if name.endswith(("embed_tokens.weight", "wte.weight"))
        )
        shapes = {**shapes, "lm_head.weight": table}
    return shapes


def _index(model: str) -> dict[str, dict[str, object]] | None:
    plain, packed = (CONFIGS / model / f"model.safetensors.index.json{end}" for end in ("", ".gz"))
    if not plain.exists() and not packed.exists():
        return None
    text = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    found: dict[str, dict[str, object]] = json.loads(text)
    return found


def _ours(
    name: str, shape: tuple[int, ...], renames: tuple[Rename, ...]
) -> list[tuple[str, tuple[int, ...]]]:
    """What `Rename` promises, written again: our names for one stored tensor, each with its block's shape."""
    for rename in renames:
        pattern = (
            re.escape(rename.stored).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", r"(?P<rest>.+)")
        )
        match = re.fullmatch(pattern, name)
        if match:
            block = (shape[0] // len(rename.ours), *shape[1:])
            return [(ours.format(**match.groupdict()), block) for ours in rename.ours]
    return [(name, shape)]
