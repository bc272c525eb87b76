"""From what a user types for MODEL to a folder on disk: a path, `demo`, or an id on a hub to download from.

Nothing is fetched unless the word is an id, and then weights, configs and tokenizer files only: no code.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from oneroof import log
from oneroof.errors import UserError

DEMO = Path(__file__).parent / "demo_model"

_WANTED = [
    "*.json",
    "*.safetensors",
    "*.tiktoken",
    "tokenizer.model",
    "merges.txt",
    "*.jinja",
    "pytorch_model*.bin",
]
_MODERN = _WANTED[:-1]
_PATIENCE = 10.0  # s that the hub may take to list a model's files
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(
    model: str | Path, *, revision: str = "main", hub: str = "huggingface", only: tuple[str, ...] = ()
) -> Path:
    """The folder of `model`; a hub id is downloaded (or found in the hub's own cache) at `revision`.

    `only`: of a hub id, no other files than these are wanted.
    Raises UserError where there is neither folder nor such a model.
    """
    word = str(model)
    if word == "demo":
        return DEMO
    folder = Path(model).expanduser()
    if word and folder.is_dir():
        return folder
    if folder.exists() or not _ID.fullmatch(word) or word.startswith("."):
        raise UserError(
            f"{word} is not a folder; a folder, a hub id (owner/name) or demo is allowed; check the path"
        )
    wanted = list(only)
    return (
        _modelscope(word, revision, wanted) if hub == "modelscope" else _huggingface(word, revision, wanted)
    )


def _huggingface(word: str, revision: str, only: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            return _cached(word, revision, only)
        try:
            wanted = only or _chosen(word, revision)
        except Exception:  # no network, most often: a copy in the cache will do
            with contextlib.suppress(Exception):
                folder = _cached(word, revision, only)
                log.warning(f"{word}: the hub does not answer; taken is the copy in its cache")
                return folder
            raise
        return Path(snapshot_download(word, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the library raises a dozen kinds: offline, unknown, gated, full disk
        raise UserError(
            f"{word} could not be downloaded ({error}); a folder is allowed too; check name and network"
        ) from error


def _chosen(word: str, revision: str) -> list[str]:
    """Patterns to fetch: `.bin` files only where the repository has no safetensors. One request."""
    from huggingface_hub import model_info

    files = model_info(word, revision=revision, timeout=_PATIENCE).siblings or []
    return _MODERN if any(file.rfilename.endswith(".safetensors") for file in files) else _WANTED


def _cached(word: str, revision: str, only: list[str]) -> Path:
    """What was downloaded before. New clients refuse a copy that lacks a file of the patterns."""
    from huggingface_hub import snapshot_download

    if only:
        return Path(snapshot_download(word, revision=revision, allow_patterns=only, local_files_only=True))
    with contextlib.suppress(Exception):
        folder = Path(
            snapshot_download(word, revision=revision, allow_patterns=_MODERN, local_files_only=True)
        )
        if any(folder.glob("*.safetensors")):
            return folder
    return Path(snapshot_download(word, revision=revision, allow_patterns=_WANTED, local_files_only=True))


def _modelscope(word: str, revision: str, only: list[str]) -> Path:
    try:
        from modelscope import snapshot_download  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(
            "modelscope is not installed; hub huggingface or modelscope is allowed; pip install modelscope"
        ) from None
    branch = "master" if revision == "main" else revision  # its name for the default branch
    try:
        return Path(snapshot_download(word, revision=branch, allow_patterns=only or _WANTED))
    except Exception as error:
        raise UserError(
            f"{word} could not be downloaded ({error}); a folder is allowed too; check name and network"
        ) from error
