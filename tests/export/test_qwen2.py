"""Qwen-1 as Qwen2: same logits within the trained length, same tokens, config and template of one meaning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import vocabularies
from conftest import Checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneroof.batch import pack
from oneroof.errors import UserError
from oneroof.export.huggingface import convert
from oneroof.models import family_of, read_facts, read_keys
from oneroof.models.decoder import Decoder
from oneroof.weights.load import fill
from oneroof.weights.names import Names
from oneroof.weights.stored import StoredWeights


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "qwen2"
    convert(checkpoint("qwen1", files="sharded-bin"), out, to="qwen2", limit=200_000)
    return out


def keys_of(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "config.json").read_text())
    assert isinstance(found, dict)
    return found


def test_the_logits_are_those_of_the_original(checkpoint: Checkpoint, made: Path) -> None:
    old = checkpoint("qwen1")
    hf = read_keys(old)
    row, config = family_of(hf), read_facts(hf)
    decoder = Decoder(config)
    fill(decoder.tensors(), StoredWeights(old), Names(row.renames, row.ignored), tied=config.tied_head)
    ids = list(range(3, 30))  # within the length it was trained on, where NTK and logn change nothing
    with torch.inference_mode():
        want = AutoModelForCausalLM.from_pretrained(made)(torch.tensor([ids])).logits[0]
        got = decoder.logits(decoder(pack([ids])))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_every_weight_is_where_its_meaning_is(checkpoint: Checkpoint, made: Path) -> None:
    old = load_file(checkpoint("qwen1") / "model.safetensors")
    new = {name: x for path in made.glob("*.safetensors") for name, x in load_file(path).items()}
    h, layer = "transformer.h.2.", "model.layers.2."
    for kind in ("weight", "bias"):
        blocks = old[f"{h}attn.c_attn.{kind}"].chunk(3)
        for name, block in zip("qkv", blocks, strict=True):
            assert torch.equal(new[f"{layer}self_attn.{name}_proj.{kind}"], block)
    pairs = {
        "mlp.w2": "mlp.gate_proj",  # w1(x) * silu(w2(x)) in Qwen-1's code
        "mlp.w1": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
        "attn.c_proj": "self_attn.o_proj",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
    }
    assert all(torch.equal(new[f"{layer}{b}.weight"], old[f"{h}{a}.weight"]) for a, b in pairs.items())
    assert torch.equal(new["model.embed_tokens.weight"], old["transformer.wte.weight"])
    assert torch.equal(new["model.norm.weight"], old["transformer.ln_f.weight"])
    assert torch.equal(new["lm_head.weight"], old["lm_head.weight"])
    assert len(new) == 3 + 4 * 12


def test_the_config_says_the_same(checkpoint: Checkpoint, made: Path) -> None:
    old, new = keys_of(checkpoint("qwen1")), keys_of(made)
    assert new["architectures"] == ["Qwen2ForCausalLM"]
    assert new["intermediate_size"] == old["intermediate_size"] // 2  # type: ignore[operator]
    assert new["max_position_embeddings"] == old["seq_length"]
    assert new["rope_theta"] == old["rotary_emb_base"]
    assert new["rms_norm_eps"] == old["layer_norm_epsilon"]
    assert new["num_key_value_heads"] == old["num_attention_heads"]
    assert (new["eos_token_id"], new["bos_token_id"]) == (vocabularies.IM_END, vocabularies.ENDOFTEXT)
    assert read_facts(new).family == "qwen2"
    generation = json.loads((made / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [vocabularies.IM_END, vocabularies.ENDOFTEXT]
    assert "chat_format" not in generation


def test_a_base_model_stops_at_the_end_of_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen1"), tmp_path / "base"))
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "raw", "top_p": 0.8}))
    convert(folder, tmp_path / "out", to="qwen2")
    assert keys_of(tmp_path / "out")["eos_token_id"] == vocabularies.ENDOFTEXT
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|endoftext|>"


def test_transformers_reads_the_tokenizer_and_its_template(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer.decode(tokenizer("the 你好\n").input_ids) == "the 你好\n"
    assert tokenizer("<|im_end|><|extra_204|>").input_ids == [
        vocabularies.IM_END,
        vocabularies.ENDOFTEXT + 207,
    ]
    asked = [{"role": "user", "content": "Hi"}]
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    render = tokenizer.apply_chat_template
    assert render(asked, tokenize=False, add_generation_prompt=True) == start + "<|im_start|>assistant\n"
    assert render(asked, tokenize=False) == start
    told = [{"role": "system", "content": "Be brief."}, *asked]
    assert render(told, tokenize=False).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_nothing_of_the_old_form_is_left(made: Path) -> None:
    names = {path.name for path in made.iterdir()}
    assert not any(name.endswith((".tiktoken", ".py", ".bin")) for name in names)
    assert "auto_map" not in keys_of(made)


def test_what_is_lost_is_said(checkpoint: Checkpoint, tmp_path: Path) -> None:
    notes = convert(checkpoint("qwen1"), tmp_path / "a", to="qwen2")
    assert [note for note in notes if "dynamic NTK and logn attention are lost" in note]
    plain = checkpoint("qwen1", use_dynamic_ntk=False, use_logn_attn=False)
    assert convert(plain, tmp_path / "b", to="qwen2") == ()


def test_other_models_are_not_translated(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--to qwen2 is for Qwen-1"):
        convert(checkpoint("qwen2"), tmp_path / "out", to="qwen2")
    folder = checkpoint("qwen1", tokenizer="none")
    with pytest.raises(UserError, match=r"has no qwen\.tiktoken"):
        convert(folder, tmp_path / "out", to="qwen2")
    assert not (tmp_path / "out").exists()
