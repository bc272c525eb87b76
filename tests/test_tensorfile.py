"""The safetensors reader and writer against the library, and every kind of broken file as one clear line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneroof.errors import UserError
from oneroof.tensorfile import (
    DTYPES,
    INDEX,
    Spec,
    TensorFile,
    locked,
    replacing,
    unfinished,
    write,
    write_on,
    write_shards,
    written,
)

FLOAT = torch.float32


def spec(name: str, tensor: Tensor) -> Spec:
    return Spec(name, tensor.dtype, tuple(tensor.shape))


def write_all(path: Path, tensors: dict[str, Tensor]) -> None:
    write(path, [spec(name, x) for name, x in tensors.items()], tensors.__getitem__)


def random(dtype: torch.dtype, *shape: int) -> Tensor:
    size = torch.empty(shape, dtype=dtype).nbytes
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


def same(one: Tensor, other: Tensor) -> bool:
    raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)


def raw_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize("word", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, word: str) -> None:
    tensor = random(DTYPES[word], 3, 5)
    write_all(
        tmp_path / "x", {"a": tensor, "scalar": random(DTYPES[word]), "none": random(DTYPES[word], 0, 4)}
    )
    file = TensorFile(tmp_path / "x")
    assert file.specs["a"] == Spec("a", DTYPES[word], (3, 5))
    assert same(file.read("a"), tensor)
    assert file.read("scalar").shape == ()
    assert file.read("none").shape == (0, 4)


def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path: Path) -> None:
    tensors = {
        f"t{i}": torch.randn(i, 3).to(dtype) for i, dtype in enumerate((torch.bfloat16, FLOAT, torch.half))
    }
    write_all(tmp_path / "ours", tensors)
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(same(file.get_tensor(name), x) for name, x in tensors.items())
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata={"who": "them"})
    file = TensorFile(tmp_path / "theirs")
    assert all(same(file.read(name), x) for name, x in tensors.items())


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_any_set_of_tensors_survives(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x"
    tensors = {name: random(DTYPES[word], *shape) for name, (word, shape) in made.items()}
    write_all(path, tensors)
    file = TensorFile(path)
    assert set(file.specs) == set(tensors)
    assert all(same(file.read(name), x) for name, x in tensors.items())


def test_a_read_is_a_view_and_its_rows_too(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(4, 3)
    write_all(tmp_path / "x", {"a": tensor})
    file = TensorFile(tmp_path / "x")
    assert file.read("a").data_ptr() == file.read("a").data_ptr()
    assert torch.equal(file.read("a")[1:3], tensor[1:3])
    held = file.read("a")
    file.release("a")
    del file
    assert torch.equal(held, tensor)  # the file stays mapped while a view lives


def test_a_misaligned_tensor_is_copied_to_where_it_may_lie(tmp_path: Path) -> None:
    header = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "wide": {"dtype": "F64", "shape": [1], "data_offsets": [3, 11]},
    }
    path = raw_file(tmp_path / "x", header, b"abc" + struct.pack("<d", 1.5))
    wide = TensorFile(path).read("wide")
    assert wide.item() == 1.5
    assert wide.data_ptr() % 8 == 0


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda p: raw_file(p, b"", length=0), "not a safetensors file"),
    "short": (lambda p: put(p, b"abc"), "not a safetensors file"),
    "text": (lambda p: put(p, b"<html>not found</html>" * 9), "not a safetensors file"),
    "zip": (lambda p: put(p, b"PK\x03\x04" + bytes(99)), "not a safetensors file"),
    "lfs": (
        lambda p: put(p, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "absurd header": (lambda p: raw_file(p, entry(), bytes(8), length=10**15), "not a safetensors file"),
    "torn header": (lambda p: raw_file(p, entry(), length=5000), "torn"),
    "no JSON": (lambda p: raw_file(p, b'{"a": nonsense}'), "no JSON"),
    "no UTF-8": (lambda p: raw_file(p, b'{"\xff\xfe": 1}'), "no JSON"),
    "deep JSON": (lambda p: raw_file(p, b'{"a":' + b"[" * 100_000), "no JSON"),
    "a name twice": (lambda p: raw_file(p, b'{"a": 1, "a": 2}'), "twice"),
    "entry no object": (lambda p: raw_file(p, {"a": 3}), "says nothing of a"),
    "no shape": (
        lambda p: raw_file(p, {"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
        "shape None",
    ),
    "negative shape": (lambda p: raw_file(p, entry(shape=(-2,)), bytes(8)), "shape"),
    "boolean shape": (lambda p: raw_file(p, entry(shape=(True,)), bytes(8)), "shape"),
    "fractional shape": (lambda p: raw_file(p, entry(shape=(2.0,)), bytes(8)), "shape"),
    "negative offset": (lambda p: raw_file(p, entry(offsets=(-8, 0)), bytes(8)), "at \\[-8, 0\\]"),
    "three offsets": (lambda p: raw_file(p, entry(offsets=(0, 4, 8)), bytes(8)), "at \\[0, 4, 8\\]"),
    "backward offsets": (lambda p: raw_file(p, entry(offsets=(8, 0)), bytes(8)), "takes 8 bytes, not -8"),
    "wrong size": (lambda p: raw_file(p, entry(shape=(3,)), bytes(8)), "takes 12 bytes, not 8"),
    "enormous shape": (lambda p: raw_file(p, entry(shape=(2**62, 2**62)), bytes(8)), "not 8"),
    "unknown dtype": (lambda p: raw_file(p, entry(dtype="Q4"), bytes(8)), "of dtype Q4; allowed are F64"),
    "gap": (lambda p: raw_file(p, entry(offsets=(8, 16)), bytes(16)), "begins at byte 8, not at 0"),
    "overlap": (
        lambda p: raw_file(
            p, entry() | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)
        ),
        "b begins at byte 4, not at 8",
    ),
    "torn data": (lambda p: raw_file(p, entry(), bytes(7)), "torn: its tensors take 8 bytes, 7 are there"),
    "tail": (lambda p: raw_file(p, entry(), bytes(9)), "1 bytes follow"),
    "missing": (lambda p: p, "No such file"),
    "folder": (lambda p: p.mkdir() or p, "cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    make, says = BROKEN[kind]
    with pytest.raises(UserError, match=says) as caught:
        TensorFile(make(tmp_path / "x"))
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_file_is_noticed(tmp_path: Path) -> None:
    write_all(tmp_path / "x", {"a": torch.randn(3, 4), "b": torch.randn(5).half()})
    whole = (tmp_path / "x").read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / "torn").write_bytes(whole[:length])
        with pytest.raises(UserError):
            TensorFile(tmp_path / "torn")


def test_shards_keep_the_limit_and_their_index_names_every_tensor(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i + 1, 4) for i in range(6)}  # 16, 32 .. 96 bytes
    told: list[tuple[int, int]] = []
    write_shards(
        tmp_path / "new" / "folder",
        [spec(name, x) for name, x in tensors.items()],
        tensors.__getitem__,
        limit=100,
        report=lambda done, total: told.append((done, total)),
    )
    folder = tmp_path / "new" / "folder"
    index = json.loads((folder / INDEX).read_text())
    total = sum(x.nbytes for x in tensors.values())
    assert index["metadata"] == {"total_size": total}
    assert set(index["weight_map"]) == set(tensors)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    for file in set(index["weight_map"].values()):
        opened = TensorFile(folder / file)
        assert sum(s.bytes for s in opened.specs.values()) <= 100
        assert all(same(opened.read(name), tensors[name]) for name in opened.specs)
    assert len(list(folder.iterdir())) == len(set(index["weight_map"].values())) + 1


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    tensors = {"small": torch.zeros(1), "large": torch.zeros(99), "last": torch.zeros(1)}
    write_shards(tmp_path, [spec(n, x) for n, x in tensors.items()], tensors.__getitem__, limit=8)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    write_shards(tmp_path, [Spec("a", FLOAT, (2,))], lambda name: torch.ones(2), limit=10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_folder_with_weights_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [Spec("a", FLOAT, (2,))], lambda name: torch.ones(2), limit=10**9)
    with pytest.raises(UserError, match="already holds weights"):
        write_shards(tmp_path, [Spec("a", FLOAT, (2,))], lambda name: torch.ones(2), limit=10**9)


def test_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def read(name: str) -> Tensor:
        if name == "b":
            raise RuntimeError("no b")
        return torch.ones(2)

    specs = [Spec("a", FLOAT, (2,)), Spec("b", FLOAT, (2,))]
    for limit in (8, 10**9):
        with pytest.raises(RuntimeError, match="no b"):
            write_shards(tmp_path, specs, read, limit=limit)
        assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_not_as_announced_is_our_own_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: "):
        write(tmp_path / "x", [Spec("a", FLOAT, (2,))], lambda name: torch.ones(3))


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half of the new")
        raise KeyError
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), replacing(tmp_path / "file" / "x"):
        raise AssertionError("not reached")
    with pytest.raises(UserError, match="cannot be made"):
        write_shards(tmp_path / "file" / "folder", [], lambda name: torch.ones(1), limit=1)


# Going on.


def test_wherever_a_file_was_torn_it_is_gone_on_with_behind_its_last_whole_tensor(tmp_path: Path) -> None:
    tensors = {"a": random(torch.int64, 3), "b": random(torch.float32, 2, 4), "c": random(torch.uint8, 5)}
    tensors |= {"none": random(torch.uint8, 0, 2), "d": random(torch.uint8, 2)}
    specs = [spec(name, x) for name, x in tensors.items()]
    write(tmp_path / "clean", specs, tensors.__getitem__)
    clean, path = (tmp_path / "clean").read_bytes(), tmp_path / "x"
    sizes = [tensor.nbytes for tensor in tensors.values()]
    for length in range(len(clean) + 1):
        unfinished(path).write_bytes(clean[:length] + b"!" * (length % 3 == 0 and length == len(clean)))
        asked: list[str] = []

        def slabs(name: str, asked: list[str] = asked) -> list[Tensor]:
            asked.append(name)
            return [*tensors[name].split(1)]

        write_on(path, specs, slabs)
        assert path.read_bytes() == clean and written(path, specs) and not unfinished(path).exists()
        kept = length - (len(clean) - sum(sizes))
        whole = sum(kept >= sum(sizes[: i + 1]) for i in range(len(sizes))) if kept >= 0 else 0
        assert asked == list(tensors)[whole:]


def test_what_began_otherwise_or_is_not_trusted_is_written_anew(tmp_path: Path) -> None:
    tensor, path, asked = torch.ones(4), tmp_path / "x", []
    write(tmp_path / "other", [spec("y", tensor)], lambda _: tensor)
    for kept, name in ((True, "y"), (False, "x")):
        write(tmp_path / name, [spec(name, tensor)], lambda _: tensor * 2)
        (tmp_path / name).rename(unfinished(path))

        def slabs(name: str) -> list[Tensor]:
            asked.append(name)
            return [tensor]

        write_on(path, [spec("x", tensor)], slabs, kept=kept)
        assert torch.equal(TensorFile(path).read("x"), tensor)
    assert asked == ["x", "x"]
    assert not written(path, [spec("x", torch.ones(5))]) and not written(path, [spec("z", tensor)])
    assert not written(tmp_path / "nowhere", [])


def test_a_folder_is_locked_for_one(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match="is being written by another command"),
        locked(tmp_path),
    ):
        raise AssertionError
    with locked(tmp_path):
        assert True
