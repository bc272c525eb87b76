"""Log-probabilities are log_softmax of the raw logits, the chosen token first, ranks counted from 1."""

from __future__ import annotations

import pytest
import torch

from oneroof.engine import logprobs as module
from oneroof.engine.logprobs import logprobs, prompt_logprobs


def test_chosen_and_likeliest() -> None:
    rows = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    expected = rows.log_softmax(-1)
    found = logprobs(rows, torch.tensor([4, int(rows[1].argmax()), -1]), [2, 3, 1], str)
    order = expected[0].argsort(descending=True).tolist()
    assert next(iter(found[0])) == 4
    assert set(found[0]) == {4, *order[:2]}
    assert found[0][4].rank == order.index(4) + 1
    assert found[0][4].text == "4"
    for token, share in found[0].items():
        assert share.logprob == pytest.approx(float(expected[0, token]), abs=1e-5)
    assert len(found[1]) == 3  # the chosen one is the likeliest
    assert [share.rank for share in found[1].values()] == [1, 2, 3]
    assert found[2] == {}


def test_none_wanted_beside_the_chosen_and_more_than_there_are() -> None:
    rows = torch.randn(2, 5)
    assert [len(entry) for entry in logprobs(rows, torch.tensor([1, 2]), [0, 99], str)] == [1, 5]


@pytest.mark.parametrize("chunk", [1, 40, 10_000])
def test_a_prompt_is_read_in_chunks_that_do_not_show(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    hidden = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    head = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    heights: list[int] = []

    def scores(rows: torch.Tensor) -> torch.Tensor:
        heights.append(len(rows))
        return rows @ head

    found = prompt_logprobs(hidden, scores, prompt[1:], 2, str, vocabulary=20)
    expected = (hidden @ head).log_softmax(-1)
    assert len(found) == 8
    for place in range(1, 9):
        entry = found[place - 1]
        assert entry[prompt[place]].logprob == pytest.approx(
            float(expected[place - 1, prompt[place]]), abs=1e-5
        )
    assert max(heights) <= max(1, chunk // 20)
    assert prompt_logprobs(hidden[:1], scores, [], 2, str, vocabulary=20) == []
