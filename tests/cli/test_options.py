"""The options that every command which loads a model shares."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

from oneroof.cli.options import ModelOptions, as_flags
from oneroof.errors import UserError

COUNTS = ["threads", "tp", "pp", "ep", "dp", "page_size", "max_model_len", "max_batch_tokens", "max_batch"]


@pytest.mark.parametrize("name", [*COUNTS, "layers"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} 0 was given; 1 or more is allowed"):
        ModelOptions("demo", **{name: 0})  # type: ignore[arg-type]
    assert ModelOptions("demo", **{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["kv_memory", "device_memory", "reserve_memory"])
@pytest.mark.parametrize("size", [-1.0, float("nan"), 0.0])
def test_memory_is_a_number_of_gb(name: str, size: float) -> None:
    if name == "reserve_memory" and size == 0.0:
        assert ModelOptions("demo", reserve_memory=0.0)
        return
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} .* was given; .*0 GB"):
        ModelOptions("demo", **{name: size})  # type: ignore[arg-type]
    assert ModelOptions("demo", **{name: 0.5})  # type: ignore[arg-type]


def test_more_threads_than_the_cores_can_bear_are_refused() -> None:
    most = 4 * (os.cpu_count() or 1)
    assert ModelOptions("demo", threads=most)
    with pytest.raises(UserError, match=f"--threads {most + 1} was given; 1 to {most}, which is 4 for each"):
        ModelOptions("demo", threads=most + 1)


def test_what_the_demo_is_is_a_fact() -> None:
    assert str(ModelOptions("demo").facts()["model"]).count("safetensors")


def test_a_refusal_names_the_flag_as_it_is_typed() -> None:
    with pytest.raises(UserError, match=r"^--top-p is 2; 1 is allowed; try 1$"), as_flags(["top_p"]):
        raise UserError("top_p is 2; 1 is allowed; try 1")
    with pytest.raises(UserError, match=r"^n is 2; try None to see$"), as_flags(["top_p"]):
        raise UserError("n is 2; try None to see")


def test_facts_are_what_decides_the_text(tmp_path: Path) -> None:
    """A new option is a fact until it is said not to be one."""
    facts = ModelOptions("demo", profile=tmp_path, log_dir=tmp_path).facts()
    kinds = {"model", "device", "dtype", "quantization", "kv", "adapter"}
    cut = {"max_model_len", "random_weights", "layers", "seed", "revision", "hub"}
    assert set(facts) == kinds | cut
    assert json.loads(json.dumps(facts)) == facts | {"adapter": []}
    assert set(ModelOptions("demo").facts(["seed"])) == set(facts) - {"seed"}
    assert set(facts) < {field.name for field in fields(ModelOptions)}


def test_the_state_of_a_models_files_is_a_fact(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = ModelOptions(str(tmp_path)).facts()
    assert ModelOptions(f"{tmp_path}/").facts() == before
    (tmp_path / "config.json").write_text("{ }")
    assert ModelOptions(str(tmp_path)).facts() != before
