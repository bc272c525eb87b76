"""Embeddings: a text's vector is the final hidden state of its last token, brought to length 1.

What the folder says of itself is followed: pooling and prompts in the layout of sentence-transformers, the
end token that its tokenizer appends. Letters: T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oneroof.batch import pack
from oneroof.errors import UserError
from oneroof.jsonfile import read_object
from oneroof.load import Loaded, check_tokens

_BATCH_TOKENS = 8192  # of one forward, unless a single text is longer


@dataclass(frozen=True)
class Pooling:
    """How a folder makes vectors of texts."""

    prompts: Mapping[str, str]  # name -> what stands before a text

    def prefix(self, instruction: str | None, prompt: str | None) -> str:
        """What stands before a text: the prompt of that name, or the query prompt with another task in it."""
        if instruction is not None and prompt is not None:
            raise UserError(
                "both an instruction and a prompt were given; one of them is allowed; leave one out"
            )
        if prompt is not None:
            if prompt not in self.prompts:
                raise UserError(
                    f"prompt {prompt!r} is unknown; this model has {sorted(self.prompts)}; leave it out"
                )
            return self.prompts[prompt]
        if instruction is None:
            return ""
        _, mark, tail = self.prompts.get("query", "Instruct: \nQuery:").partition("\n")
        return f"Instruct: {instruction}{mark}{tail}"


def read_pooling(folder: Path) -> Pooling:
    """The folder's pooling; UserError for a kind that is not the last token's."""
    kinds = read_object(folder / "1_Pooling" / "config.json")
    wrong = [
        k
        for k, v in kinds.items()
        if k.startswith("pooling_mode_") and v is True and k != "pooling_mode_lasttoken"
    ]
    if wrong or kinds.get("pooling_mode", "lasttoken") != "lasttoken":
        raise UserError(
            f"{folder} pools by {wrong or kinds['pooling_mode']}; only lasttoken is allowed; check 1_Pooling"
        )
    prompts = read_object(folder / "config_sentence_transformers.json").get("prompts", {})
    named = {str(k): str(v) for k, v in prompts.items()} if isinstance(prompts, dict) else {}
    return Pooling(prompts=named)


@torch.inference_mode()
def embed(
    loaded: Loaded, texts: Sequence[str], *, instruction: str | None = None, prompt: str | None = None
) -> Tensor:
    """[len(texts), D] float32 on the host, each row of length 1.

    `instruction` says in words what the texts are queries for; `prompt` names one of the folder's own
    prompts.
    """
    pooling, tokenizer = read_pooling(loaded.folder), loaded.text()
    prefix = pooling.prefix(instruction, prompt)
    end = tokenizer.appended or (() if tokenizer.eos is None else (tokenizer.eos,))
    sequences = [[*tokenizer.prepended, *tokenizer.encode(prefix + text), *end] for text in texts]
    check_tokens(sequences, loaded.config)
    rows = [last_states(loaded, group) for group in groups(sequences)]
    vectors = torch.cat(rows) if rows else torch.empty(0, loaded.config.dim)
    vectors = F.normalize(vectors.float(), dim=-1).cpu()
    check_numbers(vectors)
    return vectors


def check_numbers(found: Tensor) -> None:
    """UserError where results are not numbers: the weights are damaged, or the dtype is too narrow."""
    if not bool(found.isfinite().all()):
        raise UserError(
            "the model gave results that are not numbers; finite ones are allowed; try dtype float32"
        )


def last_states(loaded: Loaded, sequences: Sequence[Sequence[int]]) -> Tensor:
    """[S, D] the final hidden state of each sequence's last token, from one packed forward."""
    alphas = [loaded.model.ntk_alpha(len(s)) for s in sequences]
    stretched = alphas if any(a != 1.0 for a in alphas) else None
    batch = pack(sequences, alphas=stretched, device=loaded.device)
    hidden: Tensor = loaded.model(batch)
    return hidden[batch.last_rows]


def groups(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbours whose tokens fit one forward."""
    group: list[Sequence[int]] = []
    for sequence in sequences:
        if group and sum(map(len, group)) + len(sequence) > _BATCH_TOKENS:
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group
