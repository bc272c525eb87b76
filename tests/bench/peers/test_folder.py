"""The folder that all peers read: ours, transformers and the tokenizers can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oneroof.bench.peers.folder import check, facts_of, prepare
from oneroof.bench.peers.shapes import SHAPES
from oneroof.engine.llm import LLM
from oneroof.engine.request import SamplingParams
from oneroof.errors import UserError
from oneroof.load import load


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "ernie4_5_moe"])
def test_what_is_written_can_be_run(family: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    keys = json.loads((checkpoint(family) / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(keys))
    made = prepare(str(bare), tmp_path, 3)
    assert made == tmp_path / "weights-3" == prepare(str(bare), tmp_path, 3)
    drawn, read = (
        load(f, dtype="bfloat16", random_weights=r, seed=3) for f, r in ((bare, True), (made, False))
    )
    assert torch.equal(drawn.logits([[1, 2, 3]])[0], read.logits([[1, 2, 3]])[0])
    assert read.tokenizer is not None
    with LLM(made, device="cpu") as llm:
        params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
        assert len(llm.generate([[5, 6]], params)[0].token_ids) == 3
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.bfloat16)
    assert theirs.config.vocab_size == keys["vocab_size"]
    assert len(transformers.AutoTokenizer.from_pretrained(made)) == keys["vocab_size"]


def test_a_model_with_weights_is_read_where_it_lies(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    assert prepare(str(checkpoint("qwen3")), tmp_path, 0) == checkpoint("qwen3")
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_none_or_too_short_is_told() -> None:
    assert facts_of("qwen3-0.6b") is SHAPES["qwen3-0.6b"]
    with pytest.raises(UserError, match=r"the model nowhere was given .* or a folder with a config\.json"):
        facts_of("nowhere")
    with pytest.raises(UserError, match=r"32769 tokens a text were asked of qwen2\.5-0\.5b; 32768 are"):
        check("qwen2.5-0.5b", 32769)
