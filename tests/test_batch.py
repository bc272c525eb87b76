"""Packing: rows, positions and bounds of sequences laid end to end."""

from __future__ import annotations

import pytest
import torch

from oneroof.batch import pack


def test_pack_lays_sequences_end_to_end() -> None:
    batch = pack([[7, 8, 9], [5], [3, 4]])
    assert batch.tokens.tolist() == [7, 8, 9, 5, 3, 4]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.bounds.tolist() == [0, 3, 4, 6]
    assert batch.lengths.tolist() == [3, 1, 2] and batch.counts == (3, 1, 2) and batch.longest == 3
    assert batch.last_rows.tolist() == [2, 3, 5]
    assert batch.fresh and batch.paging is None and batch.alphas is None


def test_alphas_reach_every_token_of_their_sequence() -> None:
    batch = pack([[1, 2], [3]], alphas=[3.0, 1.0])
    assert batch.alphas is not None
    torch.testing.assert_close(batch.alphas, torch.tensor([3.0, 3.0, 1.0]))


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]])
def test_nothing_cannot_be_packed(sequences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pack(sequences)


def test_padding_and_the_way_back() -> None:
    batch = pack([[7, 8, 9], [5], [3, 4]])
    assert batch.padded_rows.tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 4]]
    padded = batch.tokens[batch.padded_rows]
    assert padded.flatten()[batch.packed_places].tolist() == batch.tokens.tolist()
    assert batch.padded_rows is batch.padded_rows  # made once for all layers
