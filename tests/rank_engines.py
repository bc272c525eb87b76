"""Engines over rank processes that are started once, and what they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oneroof.comm.crew import Crew
from oneroof.engine.engine import Engine
from oneroof.engine.intake import Intake
from oneroof.engine.options import EngineOptions
from oneroof.engine.ranks import Assembled, assemble_engine
from oneroof.engine.request import Output, Piece, Reading, Request, Vector
from oneroof.engine.wire import Load


def assembled(crew: Crew, folder: Path, **changes: object) -> Assembled:
    options = EngineOptions(max_model_len=96, max_batch=4, max_batch_tokens=24, page_size=4)
    facts: dict[str, object] = {"dtype": "float32", "device": "cpu", "bind_cpu": False, "options": options}
    order = Load(model=str(folder), **(facts | changes))  # type: ignore[arg-type]
    return assemble_engine(order, crew=crew)


def served(engine: Engine, wanted: Sequence[Request | Reading]) -> list[Output | Vector]:
    found: dict[int, Output | Vector] = {}
    for key, one in enumerate(wanted):
        engine.add(key, one)
    while engine.busy:
        for key, event in engine.step():
            if isinstance(event, Vector):
                found[key] = event
            elif isinstance(event, Piece) and event.output is not None:
                found[key] = event.output
    return [found[key] for key in range(len(wanted))]


def intake_of(engine: Engine) -> Intake:
    return Intake.of(engine.loaded, context=engine.context, seed=3)
