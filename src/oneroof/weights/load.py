"""Reading a checkpoint straight into place: each stored tensor has a place or a reason, each place a tensor.

All of that is settled from the headers, before the first number is read; then one tensor at a time is copied
from the mapped file into the model, cast on the way. At most the model and one tensor are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from oneroof.errors import UserError
from oneroof.layers.format import Place
from oneroof.tensorfile import Report, Spec
from oneroof.weights.names import Names, Part
from oneroof.weights.stored import StoredWeights

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # cast into each other


def fill(
    targets: Mapping[str, Place],
    stored: StoredWeights,
    names: Names,
    *,
    tied: bool,
    report: Report | None = None,
) -> None:
    """Copy a checkpoint's tensors into `targets` (our names -> views of the model).

    `tied`: a stored head is left out. `report(done, all)` is told bytes. Raises UserError naming the tensor
    that is missing, not expected, of another shape or of a dtype that is not cast; then no target is touched.
    """
    places = place(stored.specs, names, targets, stored.folder, tied=tied)
    total, done = sum(stored.specs[name].bytes for name in places), 0
    with torch.no_grad():
        for name, parts in places.items():
            tensor = stored.read(name)
            for part in parts:
                targets[part.ours].copy_(part.cut(tensor))
            stored.release(name)
            done += stored.specs[name].bytes
            if report is not None:
                report(done, total)


def place(
    specs: Mapping[str, Spec], names: Names, targets: Mapping[str, Place], folder: Path, *, tied: bool
) -> dict[str, tuple[Part, ...]]:
    """Where each stored tensor goes: stored name -> its parts; what is ignored is not listed.

    Raises UserError as `fill` does; `targets` may be on the meta device.
    """
    places: dict[str, tuple[Part, ...]] = {}
    source: dict[str, str] = {}  # ours -> stored
    for name, spec in specs.items():
        if reason_left_out(name, names, tied=tied) is not None:
            continue
        places[name] = names.split(spec)
        for part in places[name]:
            if part.ours in source:
                raise UserError(
                    f"{folder}: {name} and {source[part.ours]} are both {part.ours}; remove one of them"
                )
            if part.ours not in targets:
                found = name if name == part.ours else f"{name} ({part.ours})"
                raise UserError(f"{folder}: {found} has no place in this model; check its config.json")
            _check(spec, part, targets[part.ours], folder)
            source[part.ours] = name
    missing = [name for name in targets if name not in source]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder} lacks {missing[0]}{more}; all {len(targets)} tensors are needed; fetch it again"
        )
    return places


def reason_left_out(name: str, names: Names, *, tied: bool) -> str | None:
    """Why a stored tensor takes no part in the model; None where it does."""
    if tied and name == "lm_head.weight":
        return "tied: the head is the embedding"
    return names.ignored(name)


def _check(spec: Spec, part: Part, target: Place, folder: Path) -> None:
    shape = part.shape(spec.shape)
    if shape != tuple(target.shape):
        raise UserError(
            f"{folder}: {part.ours} has shape {list(shape)}, this model has {list(target.shape)} there; "
            "check that its config.json belongs to it"
        )
    castable = spec.dtype in FLOATS and target.dtype in FLOATS
    if not castable and spec.dtype != target.dtype:
        word, wanted = (str(x).removeprefix("torch.") for x in (spec.dtype, target.dtype))
        raise UserError(
            f"{folder}: {spec.name} has the wrong dtype {word}; {wanted} is needed there; dequantise it first"
        )
