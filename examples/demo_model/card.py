"""Measures the trained demo model, writes its card, and copies the folder to where the package ships it.

Run after `train`, from the repository's root: ``python -m examples.demo_model.card --ship FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from examples.demo_model import corpora, measure
from examples.demo_model.train import SHARES, Plan
from oneroof.load import Loaded, load
from oneroof.models.sizes import sizes

HERE = Path(__file__).parent
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
LIMIT = 12_000_000  # bytes of all files together
SEED = 1
TOKENS = 256  # written after each opening


def facts(loaded: Loaded) -> dict[str, object]:
    """What the card says of the model's shape."""
    config, counted = loaded.config, sizes(loaded.config)
    assert config.experts is not None
    return {
        "parameters": counted.parameters,
        "active": counted.active,
        "depth": config.depth,
        "dim": config.dim,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "experts": config.experts.count,
        "expert_width": config.experts.width,
        "top_k": config.experts.top_k,
        "vocabulary": config.vocabulary,
        "positions": config.max_positions,
        "context": Plan().lengths[-1][1],
    }


def measured(loaded: Loaded, work: Path, folder: Path) -> dict[str, object]:
    """What the card says of the model's text."""
    valid, stream = corpora.documents(folder, corpora.VALID), np.load(work / "valid.npy")
    known = {
        word
        for name in corpora.TRAIN
        for text in corpora.documents(folder, name)
        for word in measure.words(text)
    }
    outputs = measure.written(loaded, TOKENS, SEED)
    words = [word for output in outputs for word in measure.whole_words(output)]
    size = sum(len(text.encode()) for text in valid)
    return {
        "bits": measure.bits_per_byte(loaded.model, stream, valid),
        "valid_bytes": size,
        "bytes_a_token": size / len(stream),
        "known": measure.share(words, known),
        "written_words": len(words),
        "valid_known": measure.share([w for text in valid for w in measure.words(text)], known),
        "generated": sum(len(output.token_ids) for output in outputs),
        "openings": len(measure.OPENINGS),
        "seed": SEED,
        "opening": measure.OPENINGS[0],
        "sample": (measure.OPENINGS[0] + outputs[0].text).strip().replace("\n", "\n> "),
    }


def trained(work: Path) -> dict[str, object]:
    """What the card says of the run."""
    run: Mapping[str, float] = json.loads((work / "progress.json").read_text(encoding="utf-8"))
    return {"steps": run["step"], "tokens": run["tokens"] / 1e6, "minutes": run["seconds"] / 60, **SHARES}


def ship(model: Path, folder: Path) -> None:
    """Copy the model's files into `folder`; refuses what is too large to come along with a package."""
    size = sum((model / name).stat().st_size for name in FILES)
    if size >= LIMIT:
        raise ValueError(f"the files take {size} bytes; less than {LIMIT} are allowed; train a smaller shape")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(model / name, folder / name)
    print(f"{folder}: {len(FILES)} files, {size} bytes")


def main() -> None:
    """Parse the options, measure, write, and copy where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/data/corpora"), help=".jsonl corpora")
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="the folder that train filled"
    )
    parser.add_argument("--ship", type=Path, help="copy the finished folder here")
    options = parser.parse_args()
    model = options.work / "model"
    loaded = load(model, device="cpu", dtype="float32")
    stated = facts(loaded) | trained(options.work) | measured(loaded, options.work, options.corpora)
    card = (HERE / "card.md").read_text(encoding="utf-8").format(**stated)
    (model / "README.md").write_text(card, encoding="utf-8")
    print(card)
    if options.ship is not None:
        ship(model, options.ship)


if __name__ == "__main__":
    main()
