"""From stored names to ours and back: `Rename` and `Ignored` tables applied, packs cut into parts and joined.

It knows names and shapes; which file holds a tensor is not its business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneroof.errors import UserError
from oneroof.layout import UNCUT, Cut, Span
from oneroof.names import Ignored, Rename
from oneroof.tensorfile import Spec
from oneroof.weights.window import Window, whole

_FIELDS = {"{i}": r"(?P<i>\d+)", "{e}": r"(?P<e>\d+)", "{rest}": r"(?P<rest>.+)"}


@dataclass(frozen=True)
class Part:
    """One of our tensors inside a stored one: a block of rows, of one expert (-1: no such dimension)."""

    ours: str
    expert: int
    block: int
    blocks: int

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape, in a stored tensor of that shape."""
        rows = stored if self.expert < 0 else stored[1:]
        return rows if self.blocks == 1 else (rows[0] // self.blocks, *rows[1:])

    def window(self, stored: tuple[int, ...], cut: Cut = UNCUT) -> Window:
        """Where it lies in a stored tensor of that shape; with `cut`, where that slice of it does."""
        window, first = list(whole(stored)), 0 if self.expert < 0 else 1
        if first:
            window[0] = Span(self.expert, self.expert + 1)
        if self.blocks > 1:
            height = stored[first] // self.blocks
            window[first] = Span(self.block * height, (self.block + 1) * height)
        if cut.axis >= 0:
            begin = window[first + cut.axis].start
            window[first + cut.axis] = Span(begin + cut.start, begin + cut.stop)
        return tuple(window)


@dataclass(frozen=True)
class Pack:
    """One tensor to write: a row of our names for each expert (one row where there is no such dimension)."""

    stored: str
    rows: tuple[tuple[str, ...], ...]
    stacked: bool  # it has a leading dimension that counts experts

    def spec(self, parts: dict[str, Spec]) -> Spec:
        """What will be stored, from what is known of its parts; UserError where these do not fit together."""
        cut = [parts[name] for row in self.rows for name in row]
        if any((spec.dtype, spec.shape) != (cut[0].dtype, cut[0].shape) for spec in cut):
            raise UserError(
                f"{self.stored} cannot be joined: its parts differ in shape or dtype; write it unpacked"
            )
        shape = cut[0].shape
        if len(self.rows[0]) > 1:
            shape = (shape[0] * len(self.rows[0]), *shape[1:])
        return Spec(self.stored, cut[0].dtype, (len(self.rows), *shape) if self.stacked else shape)

    def join(self, read: Callable[[str], Tensor]) -> Tensor:
        """The tensor itself; a single part is handed on as it is."""
        blocks = [torch.cat([read(x) for x in row]) if len(row) > 1 else read(row[0]) for row in self.rows]
        return torch.stack(blocks) if self.stacked else blocks[0]


class Names:
    """One family's tables, ready to be applied."""

    def __init__(self, renames: Sequence[Rename], ignored: Sequence[Ignored] = ()) -> None:
        self._read = [(_pattern(rename.stored), rename) for rename in renames]
        self._write = [
            (_pattern(ours), rename) for rename in renames if rename.written for ours in rename.ours
        ]
        self._ignored = [(re.compile(row.pattern), row.reason) for row in ignored]

    def split(self, spec: Spec) -> tuple[Part, ...]:
        """Ours in a stored tensor, in the order they lie in it; UserError where its shape admits no cut."""
        name, fields, pack = self._resolve(spec.name)
        if pack is None:
            return (Part(name, -1, 0, 1),)
        stacked, blocks = _stacked(pack), len(pack.ours)
        rows = spec.shape[1:] if stacked else spec.shape
        if not rows or rows[0] % blocks:
            raise UserError(
                f"{spec.name} has shape {list(spec.shape)}; {blocks} equal blocks of rows are allowed there"
            )
        experts = range(spec.shape[0]) if stacked else (-1,)
        return tuple(
            Part(_fill(ours, {**fields, "{e}": str(e)} if stacked else fields), e, block, blocks)
            for e in experts
            for block, ours in enumerate(pack.ours)
        )

    def ignored(self, name: str) -> str | None:
        """Why a stored tensor is left out, by its stored name or by ours; None where it is not."""
        ours, fields, pack = self._resolve(name)
        known = {name, ours} if pack is None else {name, ours, *(_fill(x, fields) for x in pack.ours)}
        for pattern, reason in self._ignored:
            if any(pattern.fullmatch(x) for x in known):
                return reason
        return None

    def join(self, names: Iterable[str]) -> list[Pack]:
        """How a set of our names is written in the family's own form. UserError where a pack lacks a part."""
        packs: dict[str, Pack] = {}
        given = list(names)
        for name in given:
            pack = self._pack(name)
            packs[pack.stored] = max(packs.get(pack.stored, pack), pack, key=lambda x: len(x.rows))
        have = set(given)
        for pack in packs.values():
            missing = [x for row in pack.rows for x in row if x not in have]
            if missing:
                raise UserError(
                    f"{pack.stored} cannot be written: {missing[0]} is missing; give every part of it"
                )
        return list(packs.values())

    def _resolve(self, name: str) -> tuple[str, dict[str, str], Rename | None]:
        """(name, its fields, the pack it ends in, if any): simple renames may follow one another."""
        left = list(self._read)
        while True:
            found = next(((row, match) for row in left if (match := row[0].fullmatch(name))), None)
            if found is None:
                return name, {}, None
            row, match = found
            rename, fields = row[1], _fields(match)
            if len(rename.ours) > 1 or _stacked(rename):
                return name, fields, rename
            left.remove(row)
            name = _fill(rename.ours[0], fields)

    def _pack(self, name: str) -> Pack:
        """What `name` is written in; of experts, those up to its own."""
        for pattern, rename in self._write:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            fields = _fields(match)
            stacked = _stacked(rename)
            rows = [fields | {"{e}": str(e)} for e in range(int(fields["{e}"]) + 1)] if stacked else [fields]
            ours = tuple(tuple(_fill(x, row) for x in rename.ours) for row in rows)
            return Pack(_fill(rename.stored, fields), ours, stacked)
        return Pack(name, ((name,),), False)


def _stacked(rename: Rename) -> bool:
    return "{e}" in rename.ours[0] and "{e}" not in rename.stored


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{i\}|\{e\}|\{rest\})", template)
    return re.compile("".join(_FIELDS.get(piece, re.escape(piece)) for piece in pieces))


def _fields(match: re.Match[str]) -> dict[str, str]:
    return {f"{{{name}}}": value for name, value in match.groupdict().items()}


def _fill(template: str, fields: dict[str, str]) -> str:
    for field, value in fields.items():
        template = template.replace(field, value)
    return template
