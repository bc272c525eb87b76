"""The programs that made the demo model work, and what they made is as small and as good as its card says."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.demo_model import card, corpora, measure, prepare, train, windows
from examples.demo_model.objective import balance, every_expert
from examples.demo_model.optimizer import orthogonal
from oneroof import load, ops
from oneroof.layers.moe import Routing

SHIPPED = Path(train.__file__).parents[2] / "src" / "oneroof" / "demo_model"
TEXT = " ".join(
    f"The {a} {b} went home, and the {b} was {a}."
    for a in ["old", "red", "sad", "big"]
    for b in ["dog", "cat"]
)
TINY = {
    "hidden_size": 32,
    "head_dim": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "moe_intermediate_size": 16,
    "vocab_size": 320,
}
PLAN = train.Plan(minutes=1.0, tokens=128, lengths=((1.0, 32),), warmup=1)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder as `prepare` leaves it, of one text and a tiny shape."""
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = prepare.train_tokenizer([TEXT], 320)
    prepare.write_tokenizer(tokenizer, folder)
    shape = json.loads((prepare.HERE / "config.json").read_text(encoding="utf-8")) | TINY
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    for name in train.STREAMS:
        np.save(tmp_path / f"{name}.npy", prepare.stream(tokenizer, [TEXT]))
    return tmp_path


def run_of(work: Path) -> train.Run:
    streams = {name: np.load(work / f"{name}.npy") for name in train.STREAMS}
    return train.Run(work, PLAN, streams, compiled=False)


def test_the_loss_falls_and_a_run_goes_on_where_it_was_saved(work: Path) -> None:
    run = run_of(work)
    before = run.validate()
    batches = windows.training(run.streams, train.SHARES, 32, PLAN.tokens, seed=0)
    for _ in range(25):
        run.step(*next(batches), 1.0)
    run.save()
    assert run.progress.valid_nats < before - 1.0
    again = run_of(work)
    assert again.progress == run.progress
    assert again.validate() == pytest.approx(run.progress.valid_nats, abs=1e-6)
    batch = next(batches)
    for one in (run, again):
        one.step(*batch, 1.0)
    for name, weight in run.optimizer.master.items():
        torch.testing.assert_close(again.optimizer.master[name], weight, rtol=0, atol=0)


def test_what_training_saves_is_a_folder_that_loads(work: Path) -> None:
    run = run_of(work)
    run.save()
    loaded = load(work / "model", dtype="float32")
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer.encode(TEXT)
    stream = np.array(ids, dtype=np.int16)
    (logits,) = loaded.logits([ids])
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
    assert measure.nats(loaded.model, stream) == pytest.approx(float(expected), rel=1e-5)


def test_every_expert_weighed_is_the_mixture() -> None:
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(9, 16), torch.randn(4, 24, 16), torch.randn(4, 16, 12)
    weights, chosen, _ = ops.route(torch.randn(9, 4), None, 2, True, 0.0)
    wanted = ops.mixture(x, weights, chosen, gate_up, down)
    torch.testing.assert_close(every_expert(x, weights, chosen, gate_up, down), wanted, rtol=1e-4, atol=1e-4)


def test_balance_is_one_where_loads_are_even_and_more_where_one_expert_has_all() -> None:
    even = Routing(torch.ones(4, 1), torch.arange(4)[:, None], torch.full((4, 4), 0.25))
    alone = Routing(torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.long), torch.eye(4)[[0, 0, 0, 0]])
    assert float(balance(even)) == pytest.approx(1.0)
    assert float(balance(alone)) == pytest.approx(4.0)


def test_orthogonal_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 48, 32)))
    assert float(values.min()) > 0.5 and float(values.max()) < 1.5


def test_windows_cover_a_stream_once_an_epoch_and_reading_once_in_all() -> None:
    stream = np.arange(103, dtype=np.int16)
    source = windows.epochs(stream, 10, np.random.default_rng(0))
    firsts = sorted(int(next(source)[0]) for _ in range(9))
    assert {b - a for a, b in pairwise(firsts)} == {10}
    targets = torch.cat([wanted for _, wanted in windows.reading(stream, 10, 20)])
    assert targets.tolist() == list(range(1, 103))


def test_conversations_are_what_the_template_writes() -> None:
    book = "\n\n".join(f"Paragraph {i}." for i in range(40))
    made = corpora.conversations([book], seed=0)
    assert any(corpora.NO_THOUGHT in text for text in made)
    user, assistant = (rf"<\|im_start\|>{role}\n" for role in ("user", "assistant"))
    turn = rf"{user}[^<]+<\|im_end\|>\n{assistant}(<think>\n\n</think>\n\n)?[^<]+<\|im_end\|>\n"
    assert all(re.fullmatch(f"({turn})+", text) for text in made)


def test_shipping_refuses_what_is_too_large(tmp_path: Path) -> None:
    for name in card.FILES:
        (tmp_path / name).write_bytes(b"")
    card.ship(tmp_path, tmp_path / "small")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(card.LIMIT)
    with pytest.raises(ValueError, match="less than 12000000"):
        card.ship(tmp_path, tmp_path / "large")
    assert not (tmp_path / "large").exists()


def test_the_shipped_files_are_small_and_complete() -> None:
    assert {path.name for path in SHIPPED.iterdir()} == set(card.FILES)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < card.LIMIT


def test_the_card_states_its_numbers_and_its_data() -> None:
    text = (SHIPPED / "README.md").read_text(encoding="utf-8")
    known = re.search(r"found in the training corpus \| ([\d.]+)% of (\d+)", text)
    bits = re.search(r"bits per byte, en_books.valid \| ([\d.]+)", text)
    assert known and float(known[1]) >= 95.0 and int(known[2]) > 1000
    assert bits and 1.0 < float(bits[1]) < 2.0
    assert all(
        word in text
        for word in ("en_books.train", "zh_d2l", "zh_classics", "Apache-2.0", "MIT", "public domain")
    )


def test_the_demo_loads_and_its_tokens_are_where_programs_look_for_them() -> None:
    demo = load("demo", dtype="float32")
    assert demo.tokenizer is not None and demo.template is not None
    assert demo.tokenizer.size == demo.config.vocabulary
    assert set(demo.tokenizer.special) == set(prepare.SPECIAL)
    assert all(len(demo.tokenizer.encode(mark)) == 1 for mark in prepare.MARKS)
    ids = demo.template.tokens(
        [{"role": "user", "content": "Tell me a story."}], switches={"enable_thinking": False}
    )
    text = demo.tokenizer.decode(ids, skip_special=False)
    assert (
        text == "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_the_demo_is_what_transformers_computes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "demo"
    shutil.copytree(SHIPPED, folder)
    demo = load(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Once upon a time there was a queen who lived by the sea, and 学而时习之，不亦说乎？"
    ids = tokenizer(text)["input_ids"]
    assert demo.tokenizer is not None and demo.tokenizer.encode(text) == ids
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        wanted = reference(torch.tensor([ids])).logits[0]
    (found,) = demo.logits([ids])
    assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
