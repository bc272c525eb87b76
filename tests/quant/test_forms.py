"""Bytes that are counted without torch are those of the tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oneroof.ops.matrix import LANES, Layout, empty
from oneroof.quant import forms
from oneroof.quant.forms import FORMS, Form

SHAPES = ((1, 8), (16, 16), (31, 50), (64, 128), (70, 200), (48, 896))


@pytest.mark.parametrize("layout", ["rows", "panels"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("word", FORMS)
def test_a_form_counts_what_a_matrix_takes(word: str, dtype: str, layout: Layout) -> None:
    for rows, dim in SHAPES:
        form = FORMS[word].linear.within(dim)
        kind = dtype if form.kind == "as it is" else form.kind
        matrix = empty(kind, rows, dim, layout=layout, device=torch.device("cpu"), group=form.group)
        assert form.bytes(rows, dim, dtype, panels=layout == "panels") == matrix.nbytes, (rows, dim)


def test_a_row_shorter_than_a_group_has_one_scale() -> None:
    assert Form("int4", 128).within(128) == Form("int4") and Form("int4", 128).within(136).group == 128
    assert forms.LANES == LANES


def test_forms_need_no_torch() -> None:
    program = "import sys, oneroof.quant.forms; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2] / "src")
