"""`save`: what is written is the family's own form, and what is read back is what was given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Checkpoint
from safetensors.torch import load_file

from oneroof.errors import UserError
from oneroof.models import family_of, read_facts, read_keys
from oneroof.models.decoder import Decoder
from oneroof.weights.load import fill
from oneroof.weights.names import Names
from oneroof.weights.save import save
from oneroof.weights.stored import StoredWeights


@pytest.mark.parametrize("family", ["qwen1", "qwen2", "qwen2_moe", "qwen3_moe", "ernie4_5", "ernie4_5_moe"])
def test_a_model_is_written_in_the_names_it_was_published_with(
    checkpoint: Checkpoint, tmp_path: Path, family: str
) -> None:
    folder = checkpoint(family)
    keys = read_keys(folder)
    row, config = family_of(keys), read_facts(keys)
    tensors = Decoder(config).tensors()
    fill(tensors, StoredWeights(folder), Names(row.renames, row.ignored), tied=config.tied_head)
    save(tensors, tmp_path, row.renames, limit=200_000)
    assert StoredWeights(tmp_path).specs == StoredWeights(folder).specs
    written = {name: x for path in tmp_path.glob("*.safetensors") for name, x in load_file(path).items()}
    published = load_file(folder / "model.safetensors")
    assert all(torch.equal(written[name], x) for name, x in published.items())


def test_progress_is_told_and_a_second_save_is_refused(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    save({"a": torch.ones(2).t()}, tmp_path, (), report=lambda done, total: told.append((done, total)))
    assert told == [(8, 8)]
    with pytest.raises(UserError, match="already holds weights"):
        save({"a": torch.ones(2)}, tmp_path, ())
