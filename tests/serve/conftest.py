"""One server for all tests of a file that leave it as they found it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from served import Served, serving


@pytest.fixture(scope="session")
def model(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template shows how calls are written."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(checkpoint("qwen3", max_position_embeddings=1024), folder)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(template + "{#- <tool_call> -#}")
    return folder


@pytest.fixture(scope="package")
def server(model: Path) -> Iterator[Served]:
    with serving(model) as found:
        yield found
        assert found.idle()
