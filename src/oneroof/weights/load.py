"""Reading a checkpoint straight into place: each stored tensor has a place or a reason, each place a tensor.

All of that is settled from the headers, before the first number is read; then one tensor at a time is copied
from the mapped file into the model, cast on the way. At most the model and one tensor are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from oneroof.errors import UserError
from oneroof.layers.format import Place
from oneroof.layout import UNCUT, Cut
from oneroof.tensorfile import Report, Spec
from oneroof.weights.names import Names, Part
from oneroof.weights.stored import Weights

Cutter = Callable[[str], Cut | None]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # cast into each other


def fill(
    targets: Mapping[str, Place],
    stored: Weights,
    names: Names,
    *,
    tied: bool,
    cut: Cutter = lambda _: UNCUT,
    report: Report | None = None,
) -> None:
    """Copy a checkpoint's tensors into `targets` (our names -> views of the model).

    `tied`: a stored head is left out. `cut`: which slice of one of our tensors is wanted, None for none.
    Only that is read. `report(done, all)` is told bytes. Raises UserError naming the tensor that is missing,
    not expected, of another shape or of a dtype that is not cast; then no target is touched.
    """
    places = place(stored.specs, names, targets, stored.folder, tied=tied, cut=cut)
    total = sum(_bytes(stored.specs[name], parts, cut) for name, parts in places.items())
    for name, parts in places.items():
        for part in parts:
            stored.require(name, part.window(stored.specs[name].shape, cut(part.ours) or UNCUT))
    done = 0
    with torch.no_grad():
        for name, parts in places.items():
            for part in parts:
                targets[part.ours].copy_(read_part(stored, name, part, cut(part.ours) or UNCUT))
            stored.release(name)
            done += _bytes(stored.specs[name], parts, cut)
            if report is not None:
                report(done, total)


def place(
    specs: Mapping[str, Spec],
    names: Names,
    targets: Mapping[str, Place],
    folder: Path,
    *,
    tied: bool,
    cut: Cutter = lambda _: UNCUT,
) -> dict[str, tuple[Part, ...]]:
    """Where each stored tensor goes: stored name -> its parts; what is ignored, or not wanted, is not listed.

    Raises UserError as `fill` does; `targets` may be on the meta device.
    """
    places: dict[str, tuple[Part, ...]] = {}
    source: dict[str, str] = {}  # ours -> stored
    for name, spec in specs.items():
        if reason_left_out(name, names, tied=tied) is not None:
            continue
        wanted = tuple(part for part in names.split(spec) if cut(part.ours) is not None)
        if not wanted:
            continue
        places[name] = wanted
        for part in wanted:
            if part.ours in source:
                raise UserError(
                    f"{folder}: {name} and {source[part.ours]} are both {part.ours}; remove one of them"
                )
            if part.ours not in targets:
                found = name if name == part.ours else f"{name} ({part.ours})"
                raise UserError(f"{folder}: {found} has no place in this model; check its config.json")
            _check(spec, part, cut(part.ours) or UNCUT, targets[part.ours], folder)
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


def read_part(stored: Weights, name: str, part: Part, cut: Cut = UNCUT) -> Tensor:
    """A slice of one of our tensors in a stored one; a view of the file where that has it in one place."""
    seen = stored.window(name, part.window(stored.specs[name].shape, cut))
    return seen if part.expert < 0 else seen[0]


def _bytes(spec: Spec, parts: tuple[Part, ...], cut: Cutter) -> int:
    shapes = ((cut(part.ours) or UNCUT).shape(part.shape(spec.shape)) for part in parts)
    return sum(map(math.prod, shapes)) * spec.dtype.itemsize


def _check(spec: Spec, part: Part, cut: Cut, target: Place, folder: Path) -> None:
    shape, wanted = part.shape(spec.shape), tuple(target.shape)
    if cut.axis >= 0:
        wanted = (*wanted[: cut.axis], cut.whole, *wanted[cut.axis + 1 :])
    if shape != wanted:
        raise UserError(
            f"{folder}: {part.ours} has shape {list(shape)}, this model has {list(wanted)} there; "
            "check that its config.json belongs to it"
        )
    castable = spec.dtype in FLOATS and target.dtype in FLOATS
    if not castable and spec.dtype != target.dtype:
        word, held = (str(x).removeprefix("torch.") for x in (spec.dtype, target.dtype))
        raise UserError(
            f"{folder}: {spec.name} has the wrong dtype {word}; {held} is needed there; dequantise it first"
        )
