"""From the word for a model to a folder; the hub is a stand-in that writes a folder, the network is never
asked.
"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from oneroof.errors import UserError
from oneroof.hub import DEMO, locate


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path
    assert locate(str(tmp_path)) == tmp_path


def test_demo_ships_with_the_package() -> None:
    assert locate("demo") == DEMO


@pytest.mark.parametrize("word", ["./missing", "missing", "/no/such", "a/b/c", "../x", "owner/na me", ""])
def test_neither_folder_nor_id(word: str) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        locate(word)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is not a folder"):
        locate(file)


def test_an_id_is_downloaded_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def snapshot(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["model.safetensors"])
    assert locate("owner/name", revision="v2") == tmp_path
    assert asked["name"] == "owner/name" and asked["revision"] == "v2"
    patterns = asked["patterns"]
    assert isinstance(patterns, list) and not any(p.endswith((".py", ".bin")) for p in patterns)


def test_old_weights_are_fetched_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def snapshot(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        seen.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["pytorch_model.bin"])
    locate("owner/name")
    assert "pytorch_model*.bin" in seen


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        locate("owner/name")
    assert "\n" not in str(caught.value)
