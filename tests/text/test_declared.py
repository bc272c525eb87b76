"""The side files say what transformers takes them to say: older forms, flags, roles and new ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vocabularies
from transformers import AutoTokenizer

from oneroof.text.declared import read_declared
from oneroof.text.tokenizer import load_tokenizer

TEXT = "yes<think>no <think> no</think> <|im_end|><|pad|> <extra> <|endoftext|>"
PAD = vocabularies.ENDOFTEXT + 1


def _agree(folder: Path) -> None:
    ours, reference = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode(TEXT, special=True) == reference.encode(TEXT, add_special_tokens=False)
    assert ours.encode(TEXT) == reference.encode(TEXT, add_special_tokens=False, split_special_tokens=True)
    assert ours.eos == reference.eos_token_id
    assert set(ours.special.values()) == {i for i, t in reference.added_tokens_decoder.items() if t.special}
    assert ours.size == len(reference)


def _put(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(value))


def test_the_older_form_of_three_files(tmp_path: Path) -> None:
    vocabularies.write_vocab(tmp_path)
    roles = {
        "eos_token": "<|endoftext|>",
        "pad_token": {"content": "<|pad|>", "lstrip": False, "rstrip": False},
    }
    _put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    _put(tmp_path, "special_tokens_map.json", roles)
    _put(tmp_path, "added_tokens.json", {"<|endoftext|>": PAD - 1, "<|pad|>": PAD, "<extra>": PAD + 1})
    assert read_declared(tmp_path).roles == {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    _agree(tmp_path)


def test_a_role_without_an_id_gets_the_next(tmp_path: Path) -> None:
    vocabularies.write_vocab(tmp_path)
    roles = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "unk_token": None}
    _put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", **roles})
    _agree(tmp_path)


@pytest.mark.parametrize("special", [False, True])
def test_flags_of_the_config_win(tmp_path: Path, special: bool) -> None:
    vocabularies.write_json(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for entry in config["added_tokens_decoder"].values():
        if entry["content"] == "<think>":
            entry["special"] = special
    _put(tmp_path, "tokenizer_config.json", config)
    _agree(tmp_path)
    assert ("<think>" in load_tokenizer(tmp_path).special) is special


@pytest.mark.parametrize("key", ["eos_token", "additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("flags", [{"special": False}, {"special": True, "lstrip": True, "normalized": True}])
@pytest.mark.parametrize("listed", [True, False])
def test_a_token_with_a_role_is_special_whatever_its_flags(
    tmp_path: Path, key: str, flags: dict[str, bool], listed: bool
) -> None:
    vocabularies.write_json(tmp_path)
    config, tokenizer = (
        json.loads((tmp_path / name).read_text()) for name in ("tokenizer_config.json", "tokenizer.json")
    )
    for entry in (*config["added_tokens_decoder"].values(), *tokenizer["added_tokens"]):
        if entry["content"] == "<think>":
            entry.update(flags)
    config[key] = "<think>" if key == "eos_token" else ["<think>"]
    if not listed:
        del config["added_tokens_decoder"]
    _put(tmp_path, "tokenizer_config.json", config)
    _put(tmp_path, "tokenizer.json", tokenizer)
    _agree(tmp_path)
    assert "<think>" in load_tokenizer(tmp_path).special


def test_a_folder_without_side_files_has_its_end_of_text(tmp_path: Path) -> None:
    vocabularies.write_vocab(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special == {"<|endoftext|>": vocabularies.ENDOFTEXT}
    assert tokenizer.eos is None
