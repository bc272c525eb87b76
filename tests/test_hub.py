"""From the word for a model to a folder; the hub is a stand-in that writes a folder, the network is never
asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

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


class Hub:
    """A stand-in: what a model has there, what lies in the cache, and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.listed: list[str] | Exception = []
        self.asked: list[tuple[list[str], bool]] = []  # patterns, and whether the cache alone is to be used
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(huggingface_hub, "model_info", self._model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self._snapshot_download)

    def _model_info(self, name: str, *, revision: str, timeout: float) -> SimpleNamespace:
        assert (name, revision) == ("owner/name", "v2") and timeout <= 10
        if isinstance(self.listed, Exception):
            raise self.listed
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in self.listed])

    def _snapshot_download(
        self, name: str, *, revision: str, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        assert (name, revision) == ("owner/name", "v2")
        self.asked.append((allow_patterns, local_files_only))
        if not self.folder.exists():
            raise FileNotFoundError("no copy\nin the cache")
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return Hub(monkeypatch, tmp_path)


def test_an_id_is_downloaded_without_code(hub: Hub) -> None:
    hub.listed = ["model.safetensors", "pytorch_model.bin"]
    assert locate("owner/name", revision="v2") == hub.folder
    [(patterns, cache)] = hub.asked
    assert not cache and not any(p.endswith((".py", ".bin")) for p in patterns)


def test_old_weights_are_fetched_alone(hub: Hub) -> None:
    hub.listed = ["pytorch_model.bin"]
    locate("owner/name", revision="v2")
    [(patterns, cache)] = hub.asked
    assert not cache and "pytorch_model*.bin" in patterns


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("switch", ["0", "1"])
def test_without_a_network_a_copy_in_the_cache_will_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, file: str, switch: str
) -> None:
    hub.listed = ConnectionError("no route to host")
    monkeypatch.setenv("HF_HUB_OFFLINE", switch)
    (hub.folder / file).touch()
    assert locate("owner/name", revision="v2") == hub.folder
    assert all(cache for _, cache in hub.asked)  # no second attempt at the network
    assert ("pytorch_model*.bin" in hub.asked[-1][0]) is file.endswith(".bin")


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub) -> None:
    hub.listed, hub.folder = ConnectionError("no route\nto host"), hub.folder / "none"
    with pytest.raises(UserError, match=r"could not be downloaded .*no route") as caught:
        locate("owner/name", revision="v2")
    assert "\n" not in str(caught.value)


def test_modelscope_by_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its library: the default branch bears another name there."""
    asked: list[str] = []

    def snapshot(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.extend((name, revision))
        assert not any(pattern.endswith(".py") for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot))
    assert locate("owner/name", hub="modelscope") == tmp_path
    assert asked == ["owner/name", "master"]


def test_modelscope_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="pip install modelscope"):
        locate("owner/name", hub="modelscope")


def test_a_plan_needs_no_weights_of_a_hub(hub: Hub) -> None:
    hub.listed = ["model.safetensors"]
    locate("owner/name", revision="v2", only=("config.json",))
    assert hub.asked == [(["config.json"], False)]
    hub.listed = OSError("no network")
    hub.folder.joinpath("model.safetensors").unlink(missing_ok=True)
