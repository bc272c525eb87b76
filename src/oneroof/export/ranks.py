"""`shard` and `merge`: a checkpoint folder cut for ranks, cut in another way, and joined again.

Every tensor keeps its name, dtype and bytes; what the model leaves out is kept too. Both go on where they
were killed, and see when nothing is left to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from oneroof.errors import UserError
from oneroof.export.huggingface import open_source
from oneroof.layout import Grid
from oneroof.tensorfile import INDEX, Report, index, shards
from oneroof.weights.division import LAYOUT
from oneroof.weights.reshard import divide, file_of, joined_file, needed
from oneroof.weights.save import SHARD
from oneroof.weights.sharded import open_weights
from oneroof.weights.stored import Weights
from oneroof.weights.unfinished import Plan, complete

_SMALL = 1 << 26  # bytes; what is larger is no tokenizer
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|msgpack|h5|onnx|ot|npz|npy|part)|.*\.index\.json",
    re.IGNORECASE,
)
_RANK = re.compile(r"rank_\d+")


def shard(
    folder: Path, out: Path, grid: Grid, *, standalone: bool = False, report: Report | None = None
) -> bool:
    """Write the checkpoint in `folder`, sharded or not, to `out`, cut for `grid`; False where it is there.

    `standalone`: a rank's folder can be taken to another machine by itself. Raises UserError for a checkpoint
    that would not load or cannot be cut so, and for an `out` that holds anything else or cannot be written.
    """
    _apart(folder, out)
    source = open_source(folder)
    layout = divide(source.stored.specs, source.names, source.config, grid, standalone=standalone)
    copies, texts = dict(_beside(folder)), {}
    if standalone:
        kept = needed(layout, source.names, tied=source.config.tied_head)
        for rank in range(grid.ranks):
            copies |= {f"rank_{rank}/{name}": path for name, path in _beside(folder)}
            alone = replace(layout, divisions=kept, alone=rank)
            texts[f"rank_{rank}/{LAYOUT}"] = json.dumps(alone.document()) + "\n"
    files = {
        f"rank_{rank}/model.safetensors": file_of(layout, rank, source.stored) for rank in layout.ranks()
    }
    how = f"shard {grid}{' standalone' if standalone else ''}"
    plan = Plan(_record(how, folder, source.stored), copies, texts, files, (LAYOUT, layout.document()))
    return complete(out, plan, report)


def merge(folder: Path, out: Path, *, limit: int = SHARD, report: Report | None = None) -> bool:
    """Write the sharded checkpoint in `folder` to `out` as one of whole tensors, in files of at most `limit`
    bytes; False where it is there. Raises UserError for a folder that is not sharded, or as `shard` does.
    """
    if not (folder / LAYOUT).exists():
        raise UserError(f"{folder} has no {LAYOUT}; a folder that `shard` wrote is allowed; check the path")
    _apart(folder, out)
    stored = open_weights(folder, all_ranks=True)
    files = shards(list(stored.specs.values()), limit)
    plan = Plan(
        _record(f"merge {limit}", folder, stored),
        dict(_beside(folder)),
        {},
        {name: joined_file(specs, stored) for name, specs in files.items()},
        (INDEX, index(files)),
    )
    return complete(out, plan, report)


def _apart(folder: Path, out: Path) -> None:
    source, target = (Path(os.path.realpath(path.expanduser())) for path in (folder, out))
    if target == source or source in target.parents:
        raise UserError(f"{out} is {folder} or lies in it; a folder elsewhere is allowed; choose another")


def _record(command: str, folder: Path, stored: Weights) -> dict[str, object]:
    """What a folder is made of, and how; another size or time of a file is another source.

    Of the source's place only a digest, as the record may be published.
    """
    paths = {name: folder / name for name, _ in _beside(folder)}
    paths |= {path.relative_to(folder).as_posix(): path for path in stored.paths}
    states = {name: path.stat() for name, path in paths.items()}
    files = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
    place = os.path.realpath(folder)
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:16]
    return {"command": command, "folder": Path(place).name, "place": digest, "files": files}


def _beside(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of what belongs to a checkpoint beside its weights: small files, some a folder below."""
    top = _visible(folder)
    yield from ((path.name, path) for path in _small(top))
    for inner in top:
        if not inner.is_dir() or _RANK.fullmatch(inner.name):
            continue
        found = _visible(inner)
        if not any(_WEIGHTS.fullmatch(path.name) for path in found):
            yield from ((f"{inner.name}/{path.name}", path) for path in _small(found))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _small(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        named = path.name != LAYOUT and not _WEIGHTS.fullmatch(path.name)
        if named and path.is_file() and path.stat().st_size <= _SMALL:
            yield path
