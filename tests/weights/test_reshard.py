"""A checkpoint cut for ranks, cut again and joined is the same to the byte, in every family and form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Checkpoint
from ranks_on_disk import assert_same, digests, of_ranks, put_together, stored
from safetensors.torch import load_file, save_file

from oneroof.errors import UserError
from oneroof.export.ranks import merge, shard
from oneroof.layout import Grid

FAMILIES = (
    "qwen1",
    "qwen2",
    "qwen2_moe",
    "gte",
    "qwen3",
    "qwen3_embedding",
    "qwen3_moe",
    "ernie4_5",
    "ernie4_5_moe",
)
GRIDS = [Grid(tp=2), Grid(tp=3), Grid(tp=4), Grid(pp=2), Grid(tp=2, pp=2), Grid(tp=2, pp=3)]
EXPERT_GRIDS = [Grid(tp=2, ep=2), Grid(tp=4, ep=2), Grid(tp=4, pp=2, ep=4)]
FORMS: list[dict[str, object]] = [
    {"files": "sharded"},
    {"files": "bin"},
    {"files": "sharded-bin"},
    {"dtype": "bfloat16", "tied": True, "head": True},
    {"schema": 5, "prefixed": False},
]
PACKED: list[dict[str, object]] = [
    {"packed": True},
    {"packed": True, "files": "sharded", "prefixed": False, "dtype": "bfloat16"},
]


@pytest.fixture(autouse=True)
def without_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test need not outlive a crash: half of the time would go there."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def grids(family: str) -> list[Grid]:
    return GRIDS + (EXPERT_GRIDS if "moe" in family else [])


def there_and_back(folder: Path, at: Path, grid: Grid) -> None:
    """Cut, checked by the format's own words, and joined."""
    whole = stored(folder)
    assert shard(folder, at / "cut", grid)
    assert_same(put_together(at / "cut"), whole)
    assert merge(at / "cut", at / "whole")
    assert_same(load_file(at / "whole" / "model.safetensors"), whole)
    shutil.rmtree(at)


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_and_joined_it_is_the_checkpoint_to_the_byte(
    checkpoint: Checkpoint, tmp_path: Path, family: str
) -> None:
    for grid in grids(family):
        there_and_back(checkpoint(family), tmp_path / str(grid), grid)


@pytest.mark.parametrize("family", ["qwen2_moe", "ernie4_5_moe"])
@pytest.mark.parametrize("form", PACKED, ids=str)
def test_stacked_experts_are_dealt_out_and_cut_at_once(
    checkpoint: Checkpoint, tmp_path: Path, family: str, form: dict[str, object]
) -> None:
    for grid in (Grid(tp=3), *EXPERT_GRIDS):
        there_and_back(checkpoint(family, **form), tmp_path / str(grid), grid)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_of_a_family_is_cut_and_joined(
    checkpoint: Checkpoint, tmp_path: Path, family: str
) -> None:
    forms = [x for x in FORMS if family != "qwen1" or not x.keys() & {"tied", "schema"}]
    for form in forms + (PACKED if "moe" in family else []):
        for grid in grids(family):
            there_and_back(checkpoint(family, **form), tmp_path / str(grid), grid)


CHAIN = [
    Grid(tp=2),
    Grid(tp=3, pp=2),
    Grid(pp=4),
    Grid(tp=4),
    Grid(),
    Grid(tp=2, pp=2),
    Grid(tp=4, pp=3),
    Grid(pp=3),
    Grid(tp=3),
    Grid(tp=2, pp=4),
]


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("qwen1", {}),
        ("qwen3", {"dtype": "bfloat16", "tied": True}),
        ("ernie4_5_moe", {"packed": True, "mtp": True}),
        pytest.param("qwen2_moe", {}, marks=pytest.mark.slow),
    ],
)
def test_ten_layouts_one_after_the_other_keep_every_byte(
    checkpoint: Checkpoint, tmp_path: Path, family: str, form: dict[str, object]
) -> None:
    folder = first = checkpoint(family, **form)
    whole = stored(first)
    for number, grid in enumerate(CHAIN):
        if "moe" in family and grid.tp % 2 == 0 and number % 2:
            grid = Grid(tp=grid.tp, pp=grid.pp, ep=2)
        out = tmp_path / str(number)
        assert shard(folder, out, grid, standalone=number % 3 == 2)
        assert_same(put_together(out), whole)
        folder = out
    merge(folder, tmp_path / "whole", limit=100_000)
    assert_same(stored(tmp_path / "whole"), whole)
    beside = {path.name for path in first.iterdir() if path.suffix != ".safetensors"}
    assert {path.name for path in (tmp_path / "whole").iterdir() if path.suffix != ".safetensors"} == {
        *beside,
        "model.safetensors.index.json",
    }
    assert all((first / x).is_dir() or digests(first)[x] == digests(tmp_path / "whole")[x] for x in beside)


def test_a_cut_again_is_what_the_whole_would_have_given(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shard(checkpoint("qwen3_moe"), tmp_path / "2", Grid(tp=2))
    shard(tmp_path / "2", tmp_path / "again", Grid(tp=4, ep=2))
    shard(checkpoint("qwen3_moe"), tmp_path / "direct", Grid(tp=4, ep=2))
    assert [digests(tmp_path / x)["rank_3/model.safetensors"] for x in ("again", "direct")] == [
        digests(tmp_path / "direct")["rank_3/model.safetensors"]
    ] * 2


def test_slices_bear_the_checkpoints_names_and_lie_unfused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shard(checkpoint("qwen1"), tmp_path / "out", Grid(tp=2))
    whole, ranks = stored(checkpoint("qwen1")), of_ranks(tmp_path / "out")
    name = "transformer.h.1.attn.c_attn.weight"
    q, k, v = whole[name].chunk(3)
    assert torch.equal(ranks[1][name], torch.cat([q[32:], k[32:], v[32:]]))
    row = json.loads((tmp_path / "out" / "layout.json").read_text())["tensors"][name]
    assert row == {
        "shape": [192, 64],
        "dtype": "F32",
        "axis": 0,
        "blocks": 3,
        "stage": 0,
        "pieces": [[0, 0, 32], [1, 32, 64]],
    }


def test_experts_are_said_beside_the_cut_of_their_width(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shard(checkpoint("qwen3_moe", packed=True), tmp_path / "out", Grid(tp=4, ep=2))
    row = json.loads((tmp_path / "out" / "layout.json").read_text())["tensors"][
        "model.layers.0.mlp.experts.gate_up_proj"
    ]
    assert (row["shape"], row["axis"], row["blocks"]) == ([8, 64, 64], 1, 2)
    assert row["pieces"] == [[0, 0, 16], [1, 16, 32], [2, 0, 16], [3, 16, 32]]
    assert row["experts"] == [[0, 0, 4], [1, 0, 4], [2, 4, 8], [3, 4, 8]]
    assert of_ranks(tmp_path / "out")[3]["model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 32, 64)


def test_what_several_hold_lies_with_the_first_of_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shard(checkpoint("qwen3", tied=True), tmp_path / "out", Grid(tp=4, pp=2))
    rows = json.loads((tmp_path / "out" / "layout.json").read_text())["tensors"]
    table = rows["model.embed_tokens.weight"]
    assert table["stage"] == [0, 1]
    assert table["pieces"] == [[i, 88 * i, 88 * (i + 1)] for i in range(4)]
    assert rows["model.norm.weight"]["pieces"] == [[4, 0, 0]] and rows["model.norm.weight"]["stage"] == 1
    heads = rows["model.layers.0.self_attn.k_proj.weight"]["pieces"]
    assert heads == [[0, 0, 32], [2, 32, 64]]  # two key-value heads for four ranks


def test_alone_a_rank_has_all_that_it_needs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("ernie4_5_moe", mtp=True)
    shard(folder, tmp_path / "out", Grid(tp=2, pp=2), standalone=True)
    assert_same(put_together(tmp_path / "out"), stored(folder))
    ranks = of_ranks(tmp_path / "out")
    assert all("model.norm.weight" in ranks[i] for i in (2, 3))
    assert all("model.layers.0.input_layernorm.weight" in ranks[i] for i in (0, 1))
    assert [any("mtp" in name for name in rank) for rank in ranks] == [True, False, False, False]
    for rank in range(4):
        names = {path.name for path in (tmp_path / "out" / f"rank_{rank}").iterdir()}
        assert {"config.json", "tokenizer.model", "layout.json", "model.safetensors"} <= names


def test_what_the_model_leaves_out_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for form in ({"mtp": True}, {"tied": True, "head": True}):
        folder = checkpoint("ernie4_5", **form)
        there_and_back(folder, tmp_path / "x", Grid(tp=2))
    folder = shutil.copytree(checkpoint("qwen2"), tmp_path / "angles")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(8.0)
    save_file(tensors, folder / "model.safetensors")
    there_and_back(folder, tmp_path / "x", Grid(tp=2, pp=2))


def test_small_files_come_along_and_others_do_not(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("gte"), tmp_path / "in")
    for name in (
        "LICENSE",
        "chat_template.jinja",
        ".hidden",
        "training_args.bin",
        "x.safetensors.index.json",
    ):
        (folder / name).write_text(name)
    for name in (".oneroof/kept.packed", "onnx/model.onnx", "onnx/config.json", "assets/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    shard(folder, tmp_path / "out", Grid(tp=2))
    found = digests(tmp_path / "out")
    expected = {name for name in digests(checkpoint("gte")) if name != "model.safetensors"}
    more = {"LICENSE", "chat_template.jinja", "assets/a.png", "layout.json"}
    assert set(found) == expected | more | {f"rank_{i}/model.safetensors" for i in range(2)}
    assert all(found[name] == digests(folder)[name] for name in expected)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (Grid(tp=5), "tp is 5; 1, 2, 3, 4 can be"),
        (Grid(pp=5), "pp is 5; 1 to 4 are allowed"),
        (Grid(tp=2, ep=2), "ep is 2; 1 is allowed: the model has no experts"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_is_made(
    checkpoint: Checkpoint, tmp_path: Path, grid: Grid, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        shard(checkpoint("qwen2"), tmp_path / "out", grid)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_would_not_load_is_not_cut(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("qwen2"), tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks model\.norm\.weight"):
        shard(folder, tmp_path / "out", Grid(tp=2))


def test_only_a_sharded_folder_is_merged(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no layout\.json; a folder that `shard` wrote is allowed"):
        merge(checkpoint("qwen2"), tmp_path / "out")


def test_out_is_not_the_model_nor_within_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("qwen2")
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, folder / "cut", tmp_path / "link", tmp_path / "link" / "cut"):
        with pytest.raises(UserError, match="lies in it; a folder elsewhere is allowed"):
            shard(folder, out, Grid(tp=2))
    assert not (folder / "cut").exists()
