"""Texts for models that see in both directions: read whole, without chunks, pages or prefixes of others.

Every token of such a text changes every other's state, so that nothing of it can be kept for another text.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import nullcontext

import torch
from torch import Tensor

from oneroof.engine.orders import TextsOrder
from oneroof.engine.request import Reading, Vector
from oneroof.engine.team import Team
from oneroof.errors import RankLost
from oneroof.load import Loaded


class WholeTexts:
    """Readings that wait, and are read together as many as fit a step, at least one."""

    def __init__(self, loaded: Loaded, max_batch_tokens: int, team: Team | None = None) -> None:
        """`team`: other ranks have the rest of the model, and are told what is read."""
        self._team = team
        self.seconds = 0.0
        self._loaded = loaded
        self._most = max_batch_tokens
        self._waiting: deque[tuple[int, Reading]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: int, reading: Reading) -> None:
        """`reading` waits."""
        self._waiting.append((key, reading))

    def abort(self, key: int) -> None:
        """It waits no more."""
        self._waiting = deque(one for one in self._waiting if one[0] != key)

    def step(self) -> list[tuple[int, Vector]]:
        """Read the next group. If that fails, its readings fail and the others go on."""
        group: list[tuple[int, Reading]] = []
        rows = 0
        while self._waiting and (not group or rows + len(self._waiting[0][1].token_ids) <= self._most):
            group.append(self._waiting.popleft())
            rows += len(group[-1][1].token_ids)
        if not group:
            return []
        began = time.perf_counter()
        try:
            found = self._read([reading for _, reading in group])
        except RankLost:
            raise
        except Exception as error:
            return [(key, Vector(reading.index, (), failure(error))) for key, reading in group]
        finally:
            self.seconds += time.perf_counter() - began
        return [(key, Vector(r.index, values)) for (key, r), values in zip(group, found, strict=True)]

    @torch.inference_mode()
    def _read(self, readings: list[Reading]) -> list[tuple[float, ...]]:
        """Those that are about as long together: short texts are padded to the longest."""
        kinds: dict[int, list[int]] = {}
        for i, reading in enumerate(readings):
            kinds.setdefault(len(reading.token_ids).bit_length(), []).append(i)
        found: dict[int, tuple[float, ...]] = {}
        for group in kinds.values():
            with nullcontext() if self._team is None else self._team.together():
                vectors = self._meanings([readings[i] for i in group])
            found |= dict(zip(group, vectors, strict=True))
        return [found[i] for i in range(len(readings))]

    def _meanings(self, readings: list[Reading]) -> list[tuple[float, ...]]:
        texts = [list(reading.token_ids) for reading in readings]
        batch = self._loaded.batch(texts)
        if self._team is not None:
            lasts = batch.last_rows.tolist()
            rows = [[row] for row, reading in zip(lasts, readings, strict=True) if reading.words]
            self._team.tell(TextsOrder(texts, rows))
        model = self._loaded.model if self._team is None else self._team.model
        last = model(batch, None)[batch.last_rows]
        pairs = zip(last, readings, strict=True)
        return [tuple(meaning(self._loaded, row, reading).tolist()) for row, reading in pairs]


def failure(error: Exception) -> str:
    """What its requests are told of a step that failed, in a line."""
    return f"a step failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def meaning(loaded: Loaded, hidden_D: Tensor, reading: Reading) -> Tensor:
    """What `reading` wants of its last token's final hidden state: itself, or the logits of some words."""
    if not reading.words:
        return hidden_D.float()
    return loaded.model.logits(hidden_D[None])[0, list(reading.words)]
