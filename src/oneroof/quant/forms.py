"""What each scheme makes of each weight, and the bytes that it then takes; without torch, as plans need it.

`schemes.py` makes its recipes of these, `ops/matrix.py` lays them out, and a test compares the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

LANES = 16  # outputs of a panel
_INPUTS = {"float32": 1, "bfloat16": 2, "float16": 1, "int8": 4, "int4": 8}  # of a step in a panel
_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
_SCALE = 4  # bytes


@dataclass(frozen=True)
class Form:
    """A number format; `as it is` is the model's own."""

    kind: str
    group: int = 0  # inputs that share a scale; 0: the whole row

    def within(self, dim: int) -> Form:
        """With the group of the whole row where that is no longer than a group."""
        return Form(self.kind) if self.group >= dim else self

    def bytes(self, rows: int, dim: int, dtype: str, *, panels: bool) -> int:
        """Of [rows, dim] in a model of `dtype` with its scales; `panels`: as the native kernels read it."""
        kind = dtype if self.kind == "as it is" else self.kind
        groups = -(-dim // self.group) if self.group else 1
        if panels:
            rows, step = -(-rows // LANES) * LANES, _INPUTS[kind]
            dim = -(-dim // step) * step
        scales = rows * groups * _SCALE if kind in ("int8", "int4") else 0
        return rows * (-(-dim * _BITS[kind] // 8)) + scales


@dataclass(frozen=True)
class Forms:
    """By what a weight is for."""

    linear: Form  # projections and experts
    head: Form  # the output head, and the table that it is tied to


PLAIN = Form("as it is")
_HEAD = Form("int8")

FORMS = {
    "none": Forms(PLAIN, PLAIN),
    "w8a16": Forms(Form("int8"), _HEAD),
    "w8a8-dynamic": Forms(Form("int8"), _HEAD),
    "w4a16": Forms(Form("int4", group=128), _HEAD),
    "w4a8-dynamic": Forms(Form("int4", group=128), _HEAD),
}
