"""What all tests share: tiny checkpoints of any family, made once a session, and data beside the project."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import checkpoints

Checkpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """`checkpoint("qwen3_moe", tied=True, files="sharded", norm_topk_prob=False)`: a tiny checkpoint.

    Arguments are those of `checkpoints.make`, whose docstring lists them. Each is made once a session: copy
    the folder before you change it. Vocabulary 352 (Qwen-1: 544), dim 64, width 96, 4 layers, 4 heads of 16
    (of 32 where the family states a head_dim) over 2 kv heads, 128 positions, 8 experts of width 32, top 2.
    """
    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}

    def get(family: str, **options: object) -> Path:
        key = f"{family} {sorted(options.items())!r}"
        if key not in made:
            folder = root / f"{len(made)}-{family}"
            made[key] = checkpoints.make(folder, family, **options)  # type: ignore[arg-type]
        return made[key]

    return get


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder that lies beside a working copy on some machines; its tests are skipped without it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the project")
    return folder
