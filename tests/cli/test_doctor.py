"""The command `doctor` as text and as JSON."""

from __future__ import annotations

import json

import pytest

from oneroof.cli.main import main


def test_json_is_one_object_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"versions", "devices", "cpu", "memory", "ops", "demo model"} <= set(said["sections"])


def test_text_has_a_line_for_each_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "versions" in rows and any(row.split()[:1] == ["torch"] for row in rows)
