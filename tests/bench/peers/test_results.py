"""Medians, shares and ratios of turns, and the table, records, CSV and picture that tell them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from peer_results import EIGHT, ONE, result, turn, variant

from oneroof.bench.peers.findings import Findings
from oneroof.bench.peers.records import records
from oneroof.bench.peers.results import prefill_work, step_bytes
from oneroof.bench.peers.shapes import SHAPES
from oneroof.bench.peers.table import CSV_COLUMNS, csv_text, section
from oneroof.models import read_facts
from oneroof.models.sizes import sizes

OURS = variant("oneroof", "int8", "w8a16")
OTHER = variant("oneroof", "int8", "w8a8-dynamic")
PEER = variant("llama.cpp", "int8", "Q8_0")
WIDE = variant("transformers", "fp32", "float32")
TURNS = (
    turn(WIDE, {ONE: (0.1, 0.1)}, failure="was ended by SIGKILL"),
    *(turn(OURS, {ONE: (0.25, 0.02), EIGHT: (2.0, 0.04)}) for _ in range(2)),
    turn(OURS, {ONE: (0.5, 0.025), EIGHT: (2.0, 0.04)}),
    turn(OTHER, {ONE: (0.2, 0.03)}),
    turn(PEER, {ONE: (0.5, 0.04), EIGHT: (4.0, 0.1)}),
)


@pytest.mark.parametrize(
    ("name", "parameters", "active"),
    [
        ("qwen2.5-0.5b", 494e6, 494e6),
        ("qwen3-0.6b", 596e6, 596e6),
        ("qwen3-moe-0.7b", 701e6, 140e6),
        ("ernie-moe-0.6b", 642e6, 157.4e6),
    ],
)
def test_the_shapes_have_the_sizes_that_they_say(name: str, parameters: float, active: float) -> None:
    counted = sizes(read_facts(SHAPES[name]))
    assert (counted.parameters, counted.active) == pytest.approx((parameters, active), rel=2e-3)


def test_a_row_has_medians_with_ranges_and_what_the_machine_would_allow() -> None:
    row = result(*TURNS).rows()[1]
    assert (row.variant, row.cell) == (OURS, ONE)
    assert (row.prefill.median, row.prefill.least, row.prefill.most) == (512, 256, 512)
    assert (row.decode.median, row.decode.least) == (50, 40)
    config = read_facts(SHAPES["qwen2.5-0.5b"])
    bytes_read = 494e6 + (128 + 32) * 24 * 2 * 2 * 64 * 2
    assert step_bytes(config, 8, ONE) == pytest.approx(bytes_read, rel=1e-3)
    assert row.floor == pytest.approx(20e9 / bytes_read, rel=1e-3)
    assert prefill_work(config, EIGHT) == pytest.approx(2 * (358e6 * 1024 + 136e6 * 8), rel=1e-2)
    assert row.summit == pytest.approx(128 * 300e9 / prefill_work(config, ONE))


@pytest.mark.parametrize(("bits", "share"), [(32, 4.0), (16, 2.0), (8, 1.0), (4, 4.5 / 8)])
def test_the_floor_counts_the_bits_of_the_weights(bits: int, share: float) -> None:
    config = read_facts(SHAPES["qwen3-moe-0.7b"])
    keys = 160 * 12 * 2 * 4 * 64 * (4 if bits == 32 else 2)
    assert step_bytes(config, bits, ONE) == pytest.approx(sizes(config).active * share + keys)
    assert step_bytes(config, bits, EIGHT) > 2 * step_bytes(
        config, bits, ONE
    )  # eight texts visit more experts


def test_ratios_are_of_the_best_on_both_sides_within_a_width_and_over_all() -> None:
    found = {(r.cell, r.bits, r.quantity): r for r in result(*TURNS).ratios()}
    assert found[ONE, 8, "prefill"].value == pytest.approx(0.5 / 0.2)  # of w8a8, the quicker there
    assert found[ONE, 8, "prefill"].ours.variant == OTHER
    assert found[ONE, 8, "decode"].value == pytest.approx(0.04 / 0.02)
    assert found[ONE, None, "prefill"].value == pytest.approx(0.1 / 0.2)
    assert found[ONE, None, "prefill"].peer.variant == WIDE
    assert (ONE, 32, "prefill") not in found
    assert found[EIGHT, 8, "decode"].value == pytest.approx(2.5)


def test_the_section_is_aligned_and_tells_who_is_missing_and_why() -> None:
    made = result(*TURNS)
    made.skipped[variant("ctranslate2", "int8", "int8")] = "has no converter for qwen3_moe"
    lines = section(made).splitlines()
    assert max(map(len, lines)) <= 100
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    rows = [line.split() for line in lines[rule + 1 : lines.index("", rule)]]
    assert [row[:4] for row in rows][:3] == [
        ["1", "128", "transformers", "float32"],
        ["1", "128", "oneroof", "w8a16"],
        ["1", "128", "oneroof", "w8a8-dynamic"],
    ]
    assert (
        len({line.index(word) for line, word in zip(lines[rule + 1 :], ("trans", "oneroof"), strict=False)})
        == 1
    )
    assert "  1 x 128, 8 bits, decode: 2.00 (oneroof w8a16 / llama.cpp Q8_0)" in lines
    assert lines[-2:] == [
        "left out: ctranslate2 int8: has no converter for qwen3_moe",
        "stopped: transformers float32: was ended by SIGKILL",
    ]
    assert "qwen2.5-0.5b: 494M parameters, 494M for a token" in lines[0]
    assert "read 20.0-20.0 GB/s, multiply-add 300-300 GFLOP/s" in lines[1]


def test_a_model_that_nobody_ran_is_told_too() -> None:
    made = result()
    made.skipped[PEER] = "gguf not installed; pip install llama-cpp-python gguf"
    assert section(made).splitlines()[-1].startswith("left out: llama.cpp Q8_0: gguf not installed")


def test_every_number_is_a_record() -> None:
    told = list(records(result(*TURNS), {"threads": 2}, "cpu: here"))
    assert all(one.config["model"] == "qwen2.5-0.5b" and one.config["threads"] == 2 for one in told)
    (decode,) = [
        one.value
        for one in told
        if one.name == "decode throughput"
        and one.config["statistic"] == "median"
        and (one.config["form"], one.config["batch"]) == ("w8a16", 1)
    ]
    assert decode == 50
    ratios = [one for one in told if one.name == "decode over the best peer" and one.config["bits"] == 8]
    assert [one.value for one in ratios] == pytest.approx([2.0, 2.5])
    assert len([one for one in told if one.name == "bandwidth"]) == len(TURNS)
    assert {one.config["version"] for one in told if "version" in one.config} == {"1.2"}


def test_the_csv_has_a_line_a_row() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text([result(*TURNS)]))))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert [(line["peer"], line["batch"]) for line in lines] == [
        ("transformers", "1"),
        ("oneroof", "1"),
        ("oneroof", "1"),
        ("llama.cpp", "1"),
        ("oneroof", "8"),
        ("llama.cpp", "8"),
    ]
    assert float(lines[3]["decode tokens/s"]) == 25 and float(lines[3]["peak MB"]) == 2000


def test_the_picture_has_a_pair_of_panels_a_cell_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from oneroof.bench.peers import picture

    drawn = []
    monkeypatch.setattr(picture, "store", lambda figure, path: drawn.append(figure))
    findings = Findings("cpu: here", {"rounds": 3, "tokens": 64})
    findings.results += [result(*TURNS), result(TURNS[1], model="qwen3-moe-0.7b"), result()]
    findings.draw(tmp_path / "a.png")
    (figure,) = drawn
    titles = [axes.get_title() for axes in figure.axes]
    assert len(figure.axes) == 8
    assert titles[:2] == ["qwen2.5-0.5b\n1 x 128: prefill, tokens/s", "\n1 x 128: decode, tokens/s"]
    widths = sorted(bar.get_width() for bar in figure.axes[1].patches)
    assert widths == pytest.approx([10, 25, 1 / 0.03, 50])
