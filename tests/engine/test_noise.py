"""Noise is a function of seed, position and token id, and is distributed as it should be."""

from __future__ import annotations

import math

import torch

from oneroof.engine.seeds import branch, fresh_seed
from oneroof.ops.noise import gumbel, uniform


def test_bits_are_those_of_the_published_mixers() -> None:
    def mix32(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    def mix64(x: int) -> int:
        wrap = 2**64 - 1
        x = (x + 0x9E3779B97F4A7C15) & wrap
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & wrap
        x = (x ^ x >> 27) * 0x94D049BB133111EB & wrap
        return x ^ x >> 31

    for seed, position in ((3, 6), (-5, 0), (2**62, 100_000)):
        key = mix64(mix64(seed % 2**64) ^ position)
        bits = [
            mix32((mix32(i ^ (key & 0xFFFFFFFF)) + (key >> 32)) & 0xFFFFFFFF) & 0x7FFFFFFF for i in range(50)
        ]
        found = uniform(torch.tensor([seed]), torch.tensor([position]), torch.arange(50))
        assert torch.equal(found[0], (torch.tensor(bits, dtype=torch.int32).float() + 0.5) * 2.0**-31)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    seeds, positions = torch.tensor([1, 2, 1]), torch.tensor([7, 7, 8])
    ids = torch.arange(1000)
    together = gumbel(seeds, positions, ids)
    for row in range(3):
        assert torch.equal(together[row], gumbel(seeds[row : row + 1], positions[row : row + 1], ids)[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])


def test_uniform_fills_its_bins_evenly_along_ids_positions_and_seeds() -> None:
    many = 64_000
    zero, ramp = torch.zeros(many, dtype=torch.int64), torch.arange(many)
    along_ids = uniform(torch.tensor([11]), torch.tensor([0]), torch.arange(many))[0]
    along_positions = uniform(zero, ramp, torch.arange(3))[:, 1]
    along_seeds = uniform(ramp, zero, torch.arange(3))[:, 2]
    for values in (along_ids, along_positions, along_seeds):
        counts = torch.histc(values, bins=64, min=0, max=1)
        chi_square = float(((counts - many / 64) ** 2 / (many / 64)).sum())
        assert chi_square < 63 + 5 * math.sqrt(2 * 63)  # five standard deviations


def test_neighbouring_seeds_and_positions_are_not_correlated() -> None:
    seeds = torch.tensor([0, 1, 0, 1, -1])
    positions = torch.tensor([0, 0, 1, 1, 0])
    correlation = torch.corrcoef(uniform(seeds, positions, torch.arange(40_000))) - torch.eye(5)
    assert float(correlation.abs().max()) < 5 / math.sqrt(40_000)


def test_argmax_with_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -3.0])
    draws = 30_000
    noise = gumbel(torch.full((draws,), 5), torch.arange(draws), torch.arange(6))
    counts = (logits + noise).argmax(-1).bincount(minlength=6)
    expected = logits.softmax(-1) * draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 5 + 5 * math.sqrt(2 * 5)


def test_noise_is_finite_and_has_a_long_tail() -> None:
    noise = gumbel(torch.arange(20), torch.zeros(20, dtype=torch.int64), torch.arange(150_000))
    assert noise.isfinite().all()
    assert float(noise.max()) > 14  # of 3 million; 24 bits near 1 would end at 16.6 and thin out before


def test_branches_of_a_seed_differ_and_the_first_is_itself() -> None:
    assert branch(9, 0) == 9
    assert len({branch(seed, number) for seed in (9, 10, -1) for number in range(1, 50)}) == 3 * 49
    assert fresh_seed() != fresh_seed()
