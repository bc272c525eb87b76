"""Stored names to ours and back: simple renames, packs of blocks, packs of experts, and what is ignored."""

from __future__ import annotations

import pytest
import torch

from oneroof.errors import UserError
from oneroof.names import Ignored, Rename
from oneroof.tensorfile import Spec
from oneroof.weights.names import Names, Part
from oneroof.weights.window import through

LAYER = "model.layers.{i}."
RENAMES = (
    Rename("layers.{rest}", ("model.layers.{rest}",), written=False),
    Rename("h.{i}.qkv.weight", tuple(f"{LAYER}{x}.weight" for x in "qkv"), written=True),
    Rename("h.{i}.norm.weight", (LAYER + "norm.weight",), written=True),
    Rename(LAYER + "experts.both", tuple(LAYER + "experts.{e}." + x for x in ("gate", "up")), written=False),
    Rename(LAYER + "experts.down", (LAYER + "experts.{e}.down",), written=False),
    Rename(LAYER + "expert{e}.bias", (LAYER + "experts.{e}.bias",), written=True),
    Rename(LAYER + "packed", tuple(LAYER + "lora.{e}." + x for x in "ab"), written=True),
)
NAMES = Names(RENAMES, (Ignored(r".*inv_freq", "computed"), Ignored(r"model\.layers\.[2-9]\..*", "cut off")))


def split(name: str, *shape: int) -> list[tuple[str, tuple[int, ...]]]:
    spec = Spec(name, torch.float32, shape)
    return [(part.ours, part.shape(shape)) for part in NAMES.split(spec)]


def test_a_name_without_a_rule_is_ours_already() -> None:
    assert split("lm_head.weight", 4, 2) == [("lm_head.weight", (4, 2))]
    assert split("scalar") == [("scalar", ())]


def test_a_simple_rename_keeps_the_number() -> None:
    assert split("h.12.norm.weight", 4) == [("model.layers.12.norm.weight", (4,))]


def test_a_name_must_match_whole() -> None:
    assert split("my.h.1.norm.weight", 4) == [("my.h.1.norm.weight", (4,))]
    assert split("h.x.norm.weight", 4) == [("h.x.norm.weight", (4,))]
    assert split("h.1.normXweight", 4) == [("h.1.normXweight", (4,))]


def test_a_pack_is_equal_blocks_of_rows() -> None:
    tensor = torch.arange(12.0).view(6, 2)
    parts = NAMES.split(Spec("h.3.qkv.weight", torch.float32, (6, 2)))
    assert [part.ours for part in parts] == [f"model.layers.3.{x}.weight" for x in "qkv"]
    seen = [through(tensor, part.window((6, 2))) for part in parts]
    assert torch.equal(torch.cat(seen), tensor)
    assert all(part.shape((6, 2)) == tuple(x.shape) == (2, 2) for part, x in zip(parts, seen, strict=True))


def test_experts_come_apart_after_a_missing_prefix_is_mended() -> None:
    tensor = torch.arange(24.0).view(2, 4, 3)
    parts = NAMES.split(Spec("layers.0.experts.both", torch.float32, (2, 4, 3)))
    ours = [f"model.layers.0.experts.{e}.{x}" for e in range(2) for x in ("gate", "up")]
    assert [part.ours for part in parts] == ours
    seen = [through(tensor, part.window((2, 4, 3)))[0] for part in parts]
    assert torch.equal(torch.cat(seen), tensor.view(8, 3))
    assert split("layers.1.experts.down", 2, 3, 5) == [
        (f"model.layers.1.experts.{e}.down", (3, 5)) for e in range(2)
    ]


def test_rows_that_do_not_divide_are_named() -> None:
    with pytest.raises(UserError, match=r"h\.0\.qkv\.weight has shape \[7, 2\]; 3 equal blocks"):
        split("h.0.qkv.weight", 7, 2)
    with pytest.raises(UserError, match="equal blocks"):
        split("layers.0.experts.both", 4)
    with pytest.raises(UserError, match="equal blocks"):
        split("h.0.qkv.weight")


def test_ignored_tells_the_reason_by_stored_name_and_by_ours() -> None:
    assert NAMES.ignored("layers.0.rotary.inv_freq") == "computed"
    assert NAMES.ignored("h.2.norm.weight") == "cut off"
    assert NAMES.ignored("h.2.qkv.weight") == "cut off"
    assert NAMES.ignored("layers.5.experts.both") == "cut off"
    assert NAMES.ignored("h.1.norm.weight") is None


def test_ours_are_written_in_the_familys_form() -> None:
    ours = [f"model.layers.0.{x}.weight" for x in ("q", "k", "v", "norm")] + ["lm_head.weight"]
    packs = NAMES.join(ours)
    assert [pack.stored for pack in packs] == ["h.0.qkv.weight", "h.0.norm.weight", "lm_head.weight"]
    specs = {name: Spec(name, torch.half, (2, 3)) for name in ours}
    assert packs[0].spec(specs) == Spec("h.0.qkv.weight", torch.half, (6, 3))
    values = {name: torch.full((2, 3), float(i)) for i, name in enumerate(ours)}
    assert packs[0].join(values.__getitem__)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert packs[2].join(values.__getitem__) is values["lm_head.weight"]


def test_only_what_is_read_is_not_written_back() -> None:
    ours = "model.layers.0.experts.3.down"
    assert [pack.stored for pack in NAMES.join([ours])] == [ours]
    assert [pack.stored for pack in NAMES.join(["model.layers.0.experts.3.bias"])] == [
        "model.layers.0.expert3.bias"
    ]


def test_a_written_pack_of_experts_is_stacked_in_their_order() -> None:
    order = [2, 0, 11, 1, *range(3, 11)]
    ours = [f"model.layers.7.lora.{e}.{x}" for e in order for x in "ab"]
    (pack,) = NAMES.join(ours)
    specs = {name: Spec(name, torch.float32, (1, 2)) for name in ours}
    assert pack.spec(specs) == Spec("model.layers.7.packed", torch.float32, (12, 2, 2))
    joined = pack.join(lambda name: torch.full((1, 2), float(name.split(".")[4])))
    assert joined[:, 0, 0].tolist() == list(range(12))
    back = NAMES.split(pack.spec(specs))
    assert {part.ours for part in back} == set(ours)
    assert back[-1] == Part("model.layers.7.lora.11.b", 11, 1, 2)


def test_a_pack_without_all_its_parts_is_named() -> None:
    with pytest.raises(
        UserError, match=r"h\.0\.qkv\.weight cannot be written: model\.layers\.0\.v\.weight is missing"
    ):
        NAMES.join(["model.layers.0.q.weight", "model.layers.0.k.weight"])
    with pytest.raises(UserError, match=r"lora\.1\.a is missing"):
        NAMES.join([f"model.layers.0.lora.{e}.{x}" for e in (0, 2) for x in "ab"])


def test_parts_of_unlike_shape_or_dtype_are_not_joined() -> None:
    ours = [f"model.layers.0.{x}.weight" for x in "qkv"]
    (pack,) = NAMES.join(ours)
    for odd in (Spec(ours[2], torch.half, (2, 3)), Spec(ours[2], torch.float32, (1, 3))):
        specs = {name: Spec(name, torch.float32, (2, 3)) for name in ours[:2]} | {ours[2]: odd}
        with pytest.raises(UserError, match="cannot be joined"):
            pack.spec(specs)
