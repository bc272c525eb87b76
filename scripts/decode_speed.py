"""Decode speed at batch 1 beside transformers: the same random weights, prompt and dtype, in interleaved
rounds.

The floor is the bytes of all weights that a token reads over the rate at which this machine streams memory,
read in the same run. `python scripts/decode_speed.py FOLDER [--dtype bfloat16] [--threads 2]`; FOLDER needs
config.json alone. transformers comes with the extra `test`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from oneroof import LLM, SamplingParams
from oneroof.load import load
from oneroof.models.sizes import sizes


def main() -> None:
    """Print one line a round, then medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)

    loaded = load(options.folder, device="cpu", dtype=options.dtype, random_weights=True)
    mine = torch.get_num_threads()  # 1 where the native kernels serve, which have threads of their own
    peer = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(options.folder), attn_implementation="sdpa", dtype=dtype
    ).eval()
    ours, theirs = loaded.model.tensors(), peer.state_dict()
    for name, place in ours.items():
        theirs[name].copy_(place if isinstance(place, Tensor) else place.dense())
    prompt = torch.randint(
        0, loaded.config.vocabulary, (1, options.prompt), generator=torch.Generator().manual_seed(0)
    )
    used = sizes(loaded.config).active * dtype.itemsize
    print(
        f"{options.folder.name} {options.dtype}, {options.threads} threads, "
        f"prompt {options.prompt}, {options.tokens} tokens"
    )
    ratios: list[float] = []
    for number in range(options.rounds):
        torch.set_num_threads(options.threads)
        floor, b = _streamed() / used, _theirs(peer, prompt, options.tokens)
        torch.set_num_threads(mine)
        a = _ours(loaded, prompt, options.tokens)
        ratios.append(a / b)
        print(
            f"round {number}: oneroof {a:.2f} tokens/s, transformers {b:.2f}, ratio {a / b:.2f}; "
            f"floor {floor:.1f} tokens/s, of which {a / floor:.0%}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _ours(loaded: object, prompt: torch.Tensor, tokens: int) -> float:
    with LLM(loaded, max_batch=1) as llm:  # type: ignore[arg-type]
        params = SamplingParams(max_tokens=tokens + 1, temperature=0.0, ignore_eos=True)
        llm.generate([prompt[0].tolist()], params)
        return llm.speed.tokens / llm.speed.seconds


@torch.inference_mode()
def _theirs(peer: torch.nn.Module, prompt: torch.Tensor, tokens: int) -> float:
    """The bare loop of forward and argmax, without `generate`'s own work around it."""
    out = peer(prompt, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    begin = time.perf_counter()
    for _ in range(tokens):
        out = peer(token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.item()
    return tokens / (time.perf_counter() - begin)


def _streamed() -> float:
    """Bytes a second of summing 1 GiB, the best of three."""
    block = torch.ones(1 << 28)
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - begin))
    return best


if __name__ == "__main__":
    main()
