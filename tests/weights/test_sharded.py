"""A sharded folder is read as if nobody had cut it, only where it is needed, and misfits are one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import tensors
from ranks_on_disk import stored
from safetensors.torch import load_file, save_file

from oneroof.errors import UserError
from oneroof.export.huggingface import convert
from oneroof.export.ranks import merge, shard
from oneroof.layout import ALONE, Grid, Span, cut_of, share_of
from oneroof.load import load
from oneroof.tensorfile import TensorFile
from oneroof.weights.sharded import ShardedWeights, open_weights
from oneroof.weights.stored import StoredWeights
from oneroof.weights.window import through, whole

PROMPT = [[1, 5, 9, 3, 7], [2, 4]]

plainly = partial(load, device="cpu", dtype="float32", plain=True)


@pytest.fixture(scope="module")
def cut(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """`cut("qwen3", Grid(tp=2))`: (a checkpoint, the same cut for that grid)."""
    made: dict[str, Path] = {}

    def get(family: str, grid: Grid, *, standalone: bool = False, **form: object) -> tuple[Path, Path]:
        key = f"{family} {grid!r} {standalone} {sorted(form.items())!r}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("cut")
            shard(checkpoint(family, **form), made[key], grid, standalone=standalone)
        return checkpoint(family, **form), made[key]

    return get


Cut = Callable[..., tuple[Path, Path]]


# What is read.


@pytest.mark.parametrize(
    ("family", "grid", "form"),
    [
        ("qwen1", Grid(tp=4), {}),
        ("qwen2", Grid(tp=3), {"dtype": "bfloat16"}),
        ("qwen2_moe", Grid(tp=4, ep=2), {"packed": True}),
        ("gte", Grid(pp=2), {}),
        ("qwen3", Grid(tp=2, pp=2), {"tied": True, "head": True}),
        ("qwen3_embedding", Grid(tp=2), {}),
        ("qwen3_moe", Grid(tp=2, ep=2), {"files": "sharded"}),
        ("ernie4_5", Grid(tp=4, pp=2), {}),
        ("ernie4_5_moe", Grid(tp=3), {"mtp": True}),
    ],
)
def test_it_is_the_model_that_was_cut(cut: Cut, family: str, grid: Grid, form: dict[str, object]) -> None:
    before, after = (load(folder, device="cpu", dtype="float32") for folder in cut(family, grid, **form))
    assert before.config == after.config and (before.tokenizer is None) == (after.tokenizer is None)
    if "embedding" in family:  # no head
        batch = before.batch(PROMPT)
        assert torch.equal(before.model(batch), after.model(batch))
    else:
        pairs = zip(before.logits(PROMPT), after.logits(PROMPT), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("of", [Grid(tp=2), Grid(tp=4), Grid(pp=2), Grid(tp=3, pp=2)], ids=str)
@pytest.mark.parametrize(
    ("family", "form"),
    [("qwen1", {}), ("qwen3", {"tied": True}), ("ernie4_5_moe", {}), ("qwen2_moe", {"packed": True})],
)
def test_each_rank_finds_its_own_however_the_folder_is_cut(
    cut: Cut, family: str, form: dict[str, object], of: Grid
) -> None:
    for grid in (Grid(tp=2), Grid(tp=2, pp=2)):
        before, after = cut(family, of, **form)
        for rank in range(grid.ranks):
            one, other = (tensors(plainly(x, grid=grid, rank=rank).model) for x in (before, after))
            assert set(one) == set(other)
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_experts_are_found_across_groups(cut: Cut) -> None:
    before, after = cut("qwen3_moe", Grid(tp=4, ep=2), packed=True)
    for grid in (Grid(tp=2, ep=2), Grid(tp=4, ep=4), Grid(tp=3)):
        for rank in range(grid.ranks):
            one, other = (tensors(plainly(x, grid=grid, rank=rank).model) for x in (before, after))
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_rank_that_fits_reads_its_own_file_without_a_copy(
    cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = cut("qwen3_moe", Grid(tp=2), packed=True)
    reads: dict[str, set[int]] = {}
    original = TensorFile.read

    def read(self: TensorFile, name: str) -> torch.Tensor:
        reads.setdefault(name, set()).add(int(self.path.parent.name.removeprefix("rank_")))
        return original(self, name)

    monkeypatch.setattr(TensorFile, "read", read)
    monkeypatch.setattr("oneroof.weights.window.torch", None)  # joins nothing
    load(folder, device="cpu", plain=True, grid=Grid(tp=2), rank=1)
    monkeypatch.undo()
    rows = json.loads((folder / "layout.json").read_text())["tensors"]
    assert reads == {name: {1} if len(row["pieces"]) > 1 else {0} for name, row in rows.items()}


def test_a_whole_tensor_of_one_piece_is_a_view(cut: Cut) -> None:
    _, folder = cut("qwen3", Grid(tp=2))
    weights = ShardedWeights(folder)
    name = "model.norm.weight"
    assert weights.read(name).data_ptr() == weights.read(name).data_ptr()
    name = "model.layers.0.mlp.down_proj.weight"
    right = weights.window(name, (Span(0, 64), Span(50, 90)))
    assert right.data_ptr() == weights.window(name, (Span(0, 64), Span(50, 90))).data_ptr()
    assert weights.read(name).data_ptr() != weights.read(name).data_ptr()
    weights.release(name)
    assert torch.equal(weights.read(name)[:, 50:90], right)


def test_windows_are_those_of_the_whole(cut: Cut) -> None:
    before, after = cut("ernie4_5_moe", Grid(tp=4, pp=2, ep=2), packed=True)
    one, other = StoredWeights(before), open_weights(after)
    assert one.specs == other.specs and list(one.specs) == list(other.specs)
    draws = torch.Generator().manual_seed(0)
    for name, spec in one.specs.items():
        for _ in range(3):
            ends = [torch.randint(0, size, (2,), generator=draws).sort().values for size in spec.shape]
            asked = tuple(Span(int(start), int(stop) + 1) for start, stop in ends)
            assert torch.equal(one.window(name, asked), other.window(name, asked)), (name, asked)
            assert torch.equal(through(other.read(name), asked), other.window(name, asked))


def test_convert_reads_it_too(cut: Cut, tmp_path: Path) -> None:
    for folder, out in zip(cut("qwen3_moe", Grid(tp=2), packed=True), ("a", "b"), strict=True):
        convert(folder, tmp_path / out)
    one, other = (load_file(tmp_path / out / "model.safetensors") for out in ("a", "b"))
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "b" / "layout.json").exists()


# A rank alone.


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("qwen3", {"tied": True}),
        ("qwen3", {"tied": True, "head": True}),
        ("qwen2", {"dtype": "bfloat16"}),
        ("ernie4_5_moe", {"mtp": True}),
    ],
)
def test_the_folder_of_one_rank_is_enough_for_it(
    cut: Cut, tmp_path: Path, family: str, form: dict[str, object]
) -> None:
    grid = Grid(tp=2, pp=2)
    before, after = cut(family, grid, standalone=True, **form)
    for rank in range(grid.ranks):
        alone = shutil.copytree(after / f"rank_{rank}", tmp_path / str(rank))
        one, other = (plainly(x, grid=grid, rank=rank) for x in (before, alone))
        assert one.config == other.config
        found = tensors(other.model)
        assert all(torch.equal(tensor, found[name]) for name, tensor in tensors(one.model).items())


def test_alone_it_is_refused_to_others_before_a_weight_is_read(cut: Cut, tmp_path: Path) -> None:
    _, after = cut("qwen2", Grid(tp=2), standalone=True)
    says = r"rank_1 is the share of rank 1 alone \(tp 2\) and lacks part of "
    with pytest.raises(UserError, match=says):
        load(after / "rank_1", device="cpu")
    with pytest.raises(UserError, match=says):
        load(after / "rank_1", device="cpu", grid=Grid(tp=2), rank=0)
    for write in (merge, lambda x, y: shard(x, y, Grid(tp=2)), convert):
        with pytest.raises(UserError, match="share of rank 1 alone; a folder of all ranks is allowed"):
            write(after / "rank_1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shares_tile_what_is_stored(cut: Cut) -> None:
    for grid in (Grid(tp=4), Grid(tp=4, pp=2, ep=2)):
        before, after = cut("qwen2_moe", grid)
        config = plainly(before).config
        ranks = [load_file(after / f"rank_{i}" / "model.safetensors") for i in range(grid.ranks)]
        for name, tensor in stored(before).items():
            held = {}
            for rank in range(grid.ranks):
                place = cut_of(config, share_of(config, grid, rank), name)
                if place is not None:
                    held[place.start, place.stop] = place.shape(tuple(tensor.shape))
            assert sorted(map(tuple, held.values())) == sorted(
                tuple(rank[name].shape) for rank in ranks if name in rank
            )


# What is wrong with one.

Spoil = Callable[[Path], object]


def layout(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / "layout.json").read_text())
        change(document)
        (folder / "layout.json").write_text(json.dumps(document))

    return spoil


def row(**changes: object) -> Spoil:
    return layout(lambda x: x["tensors"]["model.layers.0.mlp.up_proj.weight"].update(changes))


def ranks(rank: int, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / f"rank_{rank}" / "model.safetensors"
        held = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(held)
        save_file(held, path)

    return spoil


UP = "model.layers.0.mlp.up_proj.weight"
WRONG: dict[str, tuple[Spoil, str]] = {
    "no JSON": (lambda x: (x / "layout.json").write_text('{"version": 1,'), "cannot be read as JSON"),
    "a list": (lambda x: (x / "layout.json").write_text("[]"), "holds a list; a JSON object is allowed"),
    "no version": (layout(lambda x: x.pop("version")), "has version None; 1 is allowed"),
    "version": (layout(lambda x: x.update(version=2)), "has version 2; 1 is allowed"),
    "tp": (layout(lambda x: x.update(tp="2")), "has tp '2'; 1 or more is allowed"),
    "tp 0": (layout(lambda x: x.update(tp=0)), "has tp 0; 1 or more is allowed"),
    "ep": (layout(lambda x: x.update(ep=3)), "has tp 2 and ep 3"),
    "tensors": (layout(lambda x: x.update(tensors={})), "lists no tensors"),
    "entry": (layout(lambda x: x["tensors"].update({UP: 1})), "up_proj.weight is no object"),
    "shape": (row(shape=[96, -64]), r"has shape \[96, -64\]; whole numbers"),
    "dtype": (row(dtype="F33"), "has dtype 'F33'; F64, F32"),
    "axis": (row(axis=2), "has axis 2; null or 0 to 1 are allowed"),
    "axis true": (row(axis=True), "has axis True; null or 0 to 1"),
    "blocks": (row(blocks=5), "has 5 blocks; a divisor of 96"),
    "blocks of nothing": (row(axis=None, blocks=2), "has 2 blocks; a divisor of 1"),
    "stage": (row(stage=1), "has stage 1; 0 to 0 are allowed"),
    "no pieces": (row(pieces=[]), r"has pieces \[\]; \[rank, start, stop\] within its 96 is allowed"),
    "a foreign rank": (row(pieces=[[0, 0, 48], [2, 48, 96]]), "has pieces"),
    "a path": (row(pieces=[["../../x", 0, 48], [1, 48, 96]]), "has pieces"),
    "a rank twice": (row(pieces=[[0, 0, 48], [0, 48, 96]]), "has pieces"),
    "a hole": (row(pieces=[[0, 0, 40], [1, 48, 96]]), r"pieces that do not make up its shape \[96, 64\]"),
    "a short end": (row(pieces=[[0, 0, 48], [1, 48, 90]]), "pieces that do not make up"),
    "one upon another": (row(pieces=[[0, 0, 50], [1, 48, 96]]), "pieces that do not make up"),
    "beyond": (row(pieces=[[0, 0, 48], [1, 48, 97]]), "has pieces"),
    "experts of other ranks": (row(experts=[[0, 0, 96]]), "has experts"),
    "rank": (layout(lambda x: x.update(rank=2)), "has rank 2; 0 to 1 are allowed"),
    "more ranks": (layout(lambda x: x.update(tp=3)), r"lacks rank_2/model\.safetensors"),
    "a file is gone": (
        lambda x: (x / "rank_1" / "model.safetensors").unlink(),
        r"lacks rank_1/model\.safetensors; the files of all 2 ranks",
    ),
    "a torn file": (
        lambda x: (x / "rank_1" / "model.safetensors").write_bytes(
            (x / "rank_1" / "model.safetensors").read_bytes()[:-9]
        ),
        r"rank_1/model\.safetensors is torn",
    ),
    "other shapes": (row(pieces=[[0, 0, 40], [1, 40, 96]]), r"is float32 \[48, 64\], layout\.json says"),
    "another dtype": (ranks(1, lambda x: x.update({UP: x[UP].half()})), "is float16"),
    "lacking": (ranks(1, lambda x: x.pop(UP)), f"lacks {UP}, which layout.json places there"),
    "more": (ranks(1, lambda x: x.update(y=torch.ones(1))), "holds y, which layout.json does not list"),
    "unfinished": (lambda x: (x / ".unfinished.json").write_text("{}"), "is unfinished"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_before_a_weight_is_read(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spoil, says = WRONG[name]
    folder = shutil.copytree(cut("qwen2", Grid(tp=2))[1], tmp_path / "x")
    spoil(folder)
    monkeypatch.setattr(TensorFile, "read", None)
    with pytest.raises(UserError, match=says) as told:
        load(folder, device="cpu")
    assert "\n" not in str(told.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 200) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["version", "tp", "pp", "ep", "rank", "tensors", "shape", "dtype", "axis", "blocks", "stage"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.sampled_from([*KEYS, "pieces", "experts"]), value=JUNK, which=st.integers(0, 60))
def test_whatever_stands_in_the_layout_it_is_read_or_refused(
    cut: Cut, tmp_path: Path, key: str, value: object, which: int
) -> None:
    folder = tmp_path / "x"
    if not folder.exists():
        shutil.copytree(cut("qwen2_moe", Grid(tp=2), packed=True)[1], folder)
        shutil.copy(folder / "layout.json", tmp_path / "kept")
    document = json.loads((tmp_path / "kept").read_text())
    rows = list(document["tensors"].values())
    (rows[which % len(rows)] if key in rows[0] or key == "experts" else document)[key] = value
    (folder / "layout.json").write_text(json.dumps(document))
    try:
        weights = ShardedWeights(folder)
        for name, spec in weights.specs.items():
            assert weights.window(name, whole(spec.shape)).shape == spec.shape
    except UserError as error:
        assert "\n" not in str(error)


def test_a_plain_folder_stays_a_plain_one(checkpoint: Checkpoint) -> None:
    assert isinstance(open_weights(checkpoint("qwen2")), StoredWeights)
    assert ALONE.ranks == 1
