"""Speed of a batch beside transformers: the same random weights, prompts and dtype, in interleaved rounds.

`python scripts/batch_speed.py FOLDER [--batch 8] [--dtype bfloat16] [--threads 2] [--engine paged]`; FOLDER
needs config.json alone, and may be `demo`. Decode is all tokens after the first of each text; end to end is
all tokens from the call on. The floor is as in `oneroof bench model`: what a decode step has to read over the
rate at which memory is read in the same round. transformers comes with the extra `test`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from oneroof import LLM, SamplingParams
from oneroof.bench.floor import held_traffic, streamed
from oneroof.bench.grid import Case
from oneroof.bench.measure import measure, prompts
from oneroof.hub import locate
from oneroof.load import Loaded, load
from oneroof.models import family_of, read_keys
from oneroof.weights.save import save

Rates = tuple[float, float]  # tokens/s of decode, and from end to end


@dataclass(frozen=True)
class Peer:
    """transformers' model, and how it runs."""

    model: torch.nn.Module
    cache: str
    threads: int  # of torch, which has one while our native kernels serve


def main() -> None:
    """Print one line a round, then medians and ranges of the ratios."""
    options = _options()
    torch.set_num_threads(options.threads)
    folder = locate(options.folder)
    drawn = {"device": "cpu", "dtype": options.dtype, "random_weights": True, "layers": options.layers}
    peer = Peer(_peer(load(folder, plain=True, **drawn), folder), options.cache, options.threads)
    loaded = load(folder, **drawn)
    case = Case(options.prompt, options.tokens)
    generator = torch.Generator().manual_seed(0)
    print(
        f"{Path(options.folder).name} {options.dtype}, {loaded.config.depth} layers, "
        f"{options.threads} threads, batch {options.batch} of {case}; "
        f"{options.engine} engine beside a {options.cache} cache"
    )
    read = held_traffic(loaded, "float", options.batch, case.prompt + case.tokens / 2).bytes
    ratios: list[Rates] = []
    shares: list[float] = []
    sized = {"max_batch": options.batch, "max_model_len": case.positions, "engine": options.engine}
    with LLM(loaded, **sized) as llm:
        texts = prompts(case, options.batch, loaded.config.vocabulary, generator)
        _agreement(llm, peer, texts, min(8, case.tokens))
        for number in range(options.rounds):
            floor = options.batch * streamed(loaded.device) / read
            texts = prompts(case, options.batch, loaded.config.vocabulary, generator)  # no prefix is known
            if number % 2:  # each goes first in turn
                theirs = _theirs(peer, texts, case.tokens)
                ours = _ours(llm, texts, case.tokens)
            else:
                ours = _ours(llm, texts, case.tokens)
                theirs = _theirs(peer, texts, case.tokens)
            ratios.append((ours[0] / theirs[0], ours[1] / theirs[1]))
            shares.append(ours[0] / floor)
            print(
                f"round {number}: decode {_beside(ours[0], theirs[0])}; "
                f"end to end {_beside(ours[1], theirs[1])}; "
                f"floor {floor:.1f}, of which {shares[-1]:.0%}",
                flush=True,
            )
    print(
        f"median ratio: decode {_spread([decode for decode, _ in ratios])}, "
        f"end to end {_spread([end for _, end in ratios])}; "
        f"share of the floor {_spread(shares)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--engine", default="paged", choices=("paged", "plain"))
    parser.add_argument("--cache", default="dynamic", choices=("dynamic", "static"), help="transformers' own")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _peer(loaded: Loaded, folder: Path) -> torch.nn.Module:
    """transformers' model with the same weights, by way of a checkpoint: it keeps experts in its own way."""
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = loaded.config.depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: loaded.config.depth]
    with tempfile.TemporaryDirectory() as place:
        save(loaded.model.tensors(), Path(place), family_of(read_keys(folder)).renames)
        config.save_pretrained(place)
        peer: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            place, attn_implementation="sdpa", dtype=loaded.dtype
        )
        return peer.eval()


def _ours(llm: LLM, texts: Sequence[Sequence[int]], tokens: int) -> Rates:
    made = measure(llm, texts, tokens, counted=False)
    assert made.step is not None, (
        "the batch is never written all at once: fewer or shorter prompts, more tokens"
    )
    return len(texts) / made.step, len(texts) * tokens / made.total


def _theirs(peer: Peer, texts: Sequence[Sequence[int]], tokens: int) -> Rates:
    _, first, total = _loop(peer, texts, tokens)
    return len(texts) * (tokens - 1) / (total - first), len(texts) * tokens / total


@torch.inference_mode()
def _loop(peer: Peer, texts: Sequence[Sequence[int]], tokens: int) -> tuple[list[list[int]], float, float]:
    """The bare loop of forward and argmax, without `generate`'s own work around it.

    The tokens, step by step, the seconds until the first are there, and the seconds in all.
    """
    ours = torch.get_num_threads()
    torch.set_num_threads(peer.threads)
    began = time.perf_counter()
    length = len(texts[0]) + tokens
    past = StaticCache(peer.model.config, max_cache_len=length) if peer.cache == "static" else None
    read = torch.tensor(texts)
    made: list[list[int]] = []
    first = 0.0
    for step in range(tokens):
        out = peer.model(read, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, read = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        made.append(read[:, 0].tolist())
        if step == 0:
            first = time.perf_counter() - began
    total = time.perf_counter() - began
    torch.set_num_threads(ours)
    return made, first, total


def _agreement(llm: LLM, peer: Peer, texts: Sequence[Sequence[int]], tokens: int) -> None:
    """Warm both up, and show that they are the same model: in float32 all tokens agree."""
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    ours = [list(output.token_ids) for output in llm.generate(texts, params)]
    steps, _, _ = _loop(peer, texts, tokens)
    theirs = [list(one) for one in zip(*steps, strict=True)]
    same = sum(a == b for i in range(len(ours)) for a, b in zip(ours[i], theirs[i], strict=True))
    print(f"the first {tokens} tokens of {len(texts)} texts: {same} of {tokens * len(texts)} are the same")


def _beside(ours: float, theirs: float) -> str:
    return f"{ours:.1f} and {theirs:.1f} tokens/s, ratio {ours / theirs:.2f}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
