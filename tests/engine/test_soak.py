"""Ten thousand short requests, some of them aborted: memory and pages are at the end what they were."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from oneroof.engine.admission import admit
from oneroof.engine.engine import Engine
from oneroof.engine.options import EngineOptions
from oneroof.engine.request import Piece, Reading, SamplingParams
from oneroof.load import load


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_and_pages_stay_flat(checkpoint: Callable[..., Path], count: int) -> None:
    loaded = load(checkpoint("qwen3"), device="cpu", dtype="float32")
    options = EngineOptions(page_size=4, max_batch=16, max_batch_tokens=64, max_model_len=32)
    engine = Engine(loaded, options)
    draw = random.Random(0)
    heads = [[draw.randrange(300) for _ in range(9)] for _ in range(3)]
    early = made = ended = 0
    objects = 0
    while made < count or engine.busy:
        while made < count and len(engine.scheduler.waiting) < 20:
            ids = (*draw.choice(heads), *(draw.randrange(300) for _ in range(draw.randint(1, 6))))
            if draw.random() < 0.1:
                engine.add(made, Reading(made, ids))
            else:
                params = SamplingParams(max_tokens=draw.randint(1, 8), n=draw.choice([1, 1, 1, 2]), stop="e")
                context = loaded.config.max_positions
                ends = frozenset({322})
                config = loaded.config
                engine.add(
                    made, admit(made, None, ids, params, config=config, context=context, ends=ends, seed=made)
                )
            made += 1
        for key, event in engine.step():
            ended += not isinstance(event, Piece) or event.output is not None
            if isinstance(event, Piece) and event.output is None and draw.random() < 0.01:
                engine.abort(key)
        if not early and ended >= count // 4:
            early, objects = _resident(), _objects()
    stats, pages = engine.stats(), engine.scheduler.allocator
    assert ended + stats.aborted == stats.finished + stats.aborted == count and stats.failed == 0
    assert stats.aborted > 0 and stats.cached_tokens > 0
    pages.check()
    assert pages.available == pages.pages
    assert not engine._jobs and not engine._owners and not engine._flights
    assert _objects() < objects + 2000, "objects are kept"
    assert _resident() < early + 20_000_000, "memory grows"


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _objects() -> int:
    gc.collect()
    return len(gc.get_objects())
