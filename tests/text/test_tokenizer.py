"""Every tokenizer file gives the tokens that its library and transformers give; broken ones are refused."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import vocabularies
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from oneroof.errors import UserError
from oneroof.text.tokenizer import Tokenizer, load_tokenizer

Write = Callable[[Path], None]
FORMS: dict[str, Write] = {
    "json": vocabularies.write_json,
    "vocab": vocabularies.write_vocab,
    "tiktoken": vocabularies.write_tiktoken,
    "sentencepiece": vocabularies.write_sentencepiece,
}
PARTS = (
    *(
        "the ",
        "你好",
        "<|im_end|>",
        "<|im_start|>",
        "<|im",
        "_end|>",
        "<think>",
        "</think>",
        "<s>",
        "<mask:1>",
    ),
    *("\n", "  ", "é", "e\u0301", "😀", "<|endoftext|>", "<tool_call>", "<", "\x00", "\u3000"),
)
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("forms")
    for name, write in FORMS.items():
        (root / name).mkdir()
        write(root / name)
    return {name: root / name for name in FORMS}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("form", FORMS)
@given(text=TEXTS)
def test_text_comes_back(loaded: dict[str, Tokenizer], form: str, text: str) -> None:
    text = text.replace("\u2581", " ") if form == "sentencepiece" else unicodedata.normalize("NFC", text)
    for special in (False, True):
        ids = loaded[form].encode(text, special=special)
        assert all(0 <= i < loaded[form].size for i in ids)
        assert loaded[form].decode(ids, skip_special=False) == text


@pytest.mark.parametrize("form", FORMS)
@given(text=TEXTS)
def test_no_special_token_comes_out_of_plain_text(loaded: dict[str, Tokenizer], form: str, text: str) -> None:
    tokenizer = loaded[form]
    unknown = {tokenizer.special["<unk>"]} if "<unk>" in tokenizer.special else set()
    assert not set(tokenizer.encode(text)) & set(tokenizer.special.values()) - unknown


@given(text=TEXTS)
def test_the_byte_level_forms_agree(loaded: dict[str, Tokenizer], text: str) -> None:
    for special in (False, True):
        ids = loaded["json"].encode(text, special=special)
        assert loaded["vocab"].encode(text, special=special) == ids
        if "think>" not in text and "<tool_call>" not in text:  # not tokens of the rank file
            assert loaded["tiktoken"].encode(text, special=special) == ids


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, object]:
    return {name: AutoTokenizer.from_pretrained(folders[name]) for name in ("json", "vocab")}


@pytest.mark.parametrize("form", ["json", "vocab"])
@given(text=TEXTS)
def test_special_is_what_transformers_does(
    loaded: dict[str, Tokenizer], references: dict[str, object], form: str, text: str
) -> None:
    reference = references[form]
    ids = loaded[form].encode(text, special=True)
    assert ids == reference.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]
    for skip in (False, True):
        expected = reference.decode(ids, skip_special_tokens=skip)  # type: ignore[attr-defined]
        assert loaded[form].decode(ids, skip_special=skip) == expected


@given(ids=st.lists(st.integers(0, 328), max_size=30))
def test_any_ids_decode_as_in_transformers(
    loaded: dict[str, Tokenizer], references: dict[str, object], ids: list[int]
) -> None:
    for skip in (False, True):
        expected = references["json"].decode(ids, skip_special_tokens=skip)  # type: ignore[attr-defined]
        assert loaded["json"].decode(ids, skip_special=skip) == expected


def test_what_is_special_is_what_the_checkpoint_flags(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["json"]
    assert set(tokenizer.special) == set(vocabularies.SPECIALS)
    assert tokenizer.added["<think>"] not in tokenizer.special.values()
    ids = tokenizer.encode("<think>no<|im_end|>")
    assert ids[0] == tokenizer.added["<think>"]
    assert tokenizer.special["<|im_end|>"] not in ids
    assert tokenizer.decode([*ids, tokenizer.special["<|im_end|>"]]) == "<think>no<|im_end|>"


def test_the_end_of_text_is_the_folders(loaded: dict[str, Tokenizer]) -> None:
    assert loaded["json"].eos == loaded["vocab"].eos == vocabularies.IM_END
    assert loaded["tiktoken"].eos == vocabularies.ENDOFTEXT
    assert loaded["sentencepiece"].eos == loaded["sentencepiece"].special["</s>"]


def test_ids_beyond_the_vocabulary_leave_nothing(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        assert tokenizer.decode([-1, tokenizer.size, 1 << 40]) == ""
        assert tokenizer.token_bytes(tokenizer.size) == b""


def test_what_a_post_processor_adds_is_told_and_not_added(tmp_path: Path) -> None:
    vocabularies.write_json(tmp_path, appended=True)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.appended == (vocabularies.ENDOFTEXT,)
    assert tokenizer.prepended == ()
    assert tokenizer.encode("yes") == load_tokenizer(tmp_path).encode("yes", special=True)
    assert vocabularies.ENDOFTEXT not in tokenizer.encode("yes")


def test_add_eos_token_counts_as_appended(tmp_path: Path) -> None:
    vocabularies.write_vocab(tmp_path, add_eos=True)
    assert load_tokenizer(tmp_path).appended == (vocabularies.ENDOFTEXT,)


def test_half_a_surrogate_pair_is_a_replacement_character(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        assert tokenizer.decode(tokenizer.encode("a\ud800b"), skip_special=False) == "a\ufffdb"


def test_threads_get_their_own_answers(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["json"])  # fresh: the second tokenizer inside is made under way
    text = "yes <|im_end|> no <think>"
    plain, special = load_tokenizer(folders["json"]).encode(text), tokenizer.encode(text, special=True)
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda i: tokenizer.encode(text, special=i % 2 == 0), range(200)))
    assert done == [special, plain] * 100


def test_a_rank_file_takes_a_million_blanks(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["tiktoken"]
    text = "a" + " " * 300_000 + "\n" * 50_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_json_goes_first(tmp_path: Path) -> None:
    vocabularies.write_sentencepiece(tmp_path)
    vocabularies.write_tiktoken(tmp_path)
    assert load_tokenizer(tmp_path).size > vocabularies.IM_END + 200
    vocabularies.write_json(tmp_path)
    assert load_tokenizer(tmp_path).eos == vocabularies.IM_END


def _cut(name: str, size: int) -> Write:
    def cut(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return cut


def _put(name: str, content: str) -> Write:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


@pytest.mark.parametrize(
    ("form", "harm", "said"),
    [
        ("json", _cut("tokenizer.json", 3000), "tokenizer.json"),
        ("json", _put("tokenizer.json", "{}"), "tokenizer.json"),
        ("json", _put("tokenizer.json", ""), "tokenizer.json"),
        ("json", _put("tokenizer_config.json", "[1]"), "holds a list"),
        ("json", _cut("tokenizer_config.json", 100), "tokenizer_config.json"),
        (
            "json",
            _put("tokenizer_config.json", '{"added_tokens_decoder": {"7": "x"}}'),
            "added_tokens_decoder",
        ),
        (
            "json",
            _put("tokenizer_config.json", '{"added_tokens_decoder": {"999": {"content": "<x>"}}}'),
            "999",
        ),
        ("vocab", lambda folder: (folder / "merges.txt").unlink(), "merges.txt"),
        ("vocab", lambda folder: (folder / "vocab.json").unlink(), "vocab.json"),
        ("vocab", _cut("vocab.json", 500), "vocab.json"),
        ("vocab", _put("merges.txt", "#version: 0.2\nno such\n"), "merges.txt"),
        ("tiktoken", _put("qwen.tiktoken", "IQ== 0\nIg== 2\n"), "line 2"),
        ("tiktoken", _put("qwen.tiktoken", "IQ== 0\nI"), "line 2"),
        ("tiktoken", _put("qwen.tiktoken", "IQ== 0\n"), "256 bytes"),
        ("tiktoken", _put("qwen.tiktoken", ""), "256 bytes"),
        ("tiktoken", lambda folder: (folder / "qwen.tiktoken").unlink(), "no tokenizer"),
        ("sentencepiece", _cut("tokenizer.model", 1000), "sentencepiece"),
        ("sentencepiece", _put("tokenizer.model", ""), "sentencepiece"),
        ("sentencepiece", _put("tokenizer.model", "version https://git-lfs"), "sentencepiece"),
        ("sentencepiece", _put("added_tokens.json", '{"<x>": 9999}'), "9999"),
    ],
)
def test_a_broken_file_is_told_in_one_line(
    folders: dict[str, Path], tmp_path: Path, form: str, harm: Write, said: str
) -> None:
    shutil.copytree(folders[form], tmp_path / "broken")
    harm(tmp_path / "broken")
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / "broken")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def test_a_tokenizer_of_another_kind_is_foreign(tmp_path: Path) -> None:
    document = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }
    document["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="decodes by WordPiece"):
        load_tokenizer(tmp_path)


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    vocabularies.write_tiktoken(tmp_path)
    (tmp_path / "tokenization_qwen.py").write_text("raise SystemExit('was run')")
    assert load_tokenizer(tmp_path).encode("yes")


def _layout(shared: Path, name: str, root: Path) -> Path:
    """Qwen's vocabulary with the side files of one generation."""
    folder = root / name.replace("/", "-")
    folder.mkdir()
    for file in ("vocab.json", "merges.txt"):
        (folder / file).symlink_to(shared / "data/tokenizers/qwen2" / file)
    for path in (shared / "data/tokenizers" / name).glob("tokenizer*.json"):
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    ("name", "size", "eos"),
    [
        ("qwen2", 151646, "<|endoftext|>"),
        ("qwen2.5", 151665, "<|im_end|>"),
        ("qwen3/Qwen3-30B-A3B", 151669, "<|im_end|>"),
        ("qwen3/Qwen3-Coder", 151669, "<|im_end|>"),
    ],
)
def test_the_golden_tokenisations(shared: Path, tmp_path: Path, name: str, size: int, eos: str) -> None:
    tokenizer = load_tokenizer(_layout(shared, name, tmp_path))
    stem = shared / "data/tokenizers/qwen2/goldens/ggml-vocab-qwen2.gguf"
    inputs = stem.with_suffix(".gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    outputs = stem.with_suffix(".gguf.out").read_text(encoding="utf-8").split("\n")
    pairs = [(text, [int(i) for i in line.split()]) for text, line in zip(inputs, outputs, strict=False)]
    assert len(pairs) == 47
    assert [tokenizer.encode(text) for text, _ in pairs] == [ids for _, ids in pairs]
    assert tokenizer.size == size
    assert tokenizer.eos == tokenizer.special[eos]
