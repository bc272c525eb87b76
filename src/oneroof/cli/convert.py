"""The command `convert`: a checkpoint folder rewritten as a clean one, by `oneroof.export.huggingface`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal


@dataclass(frozen=True)
class Convert:
    """Rewrite a checkpoint (`.bin`, Qwen-1 layout, transformers-5 names) as a clean safetensors folder."""

    model: str
    """A folder in Hugging Face layout, a hub id, or demo."""

    out: str
    """The folder to write: new or empty. It appears under this name when it is complete."""

    _: KW_ONLY

    to: Literal["same", "qwen2"] = "same"
    """The form to write: the model's own, or Qwen-1 as Qwen2ForCausalLM with a tokenizer.json."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format to write; auto keeps each tensor's own."""

    max_shard_size: float = 5.0
    """Largest file of weights, in GB (10^9 bytes)."""

    revision: str = "main"
    """Branch, tag or commit, where MODEL is a hub id."""

    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked for; modelscope needs the package of that name."""

    def run(self) -> int:
        """Convert; what is lost or left out is said on standard error. Status 0."""
        from pathlib import Path

        from oneroof import log
        from oneroof.cli.interruption import check_interrupted
        from oneroof.errors import UserError
        from oneroof.export.huggingface import convert
        from oneroof.hub import locate

        check_interrupted()
        if not self.max_shard_size > 0:
            raise UserError(
                f"--max-shard-size is {self.max_shard_size}; more than 0 GB is allowed; leave it out for 5"
            )
        notes = convert(
            locate(self.model, revision=self.revision, hub=self.hub),
            Path(self.out),
            to=self.to,
            dtype=self.dtype,
            limit=int(self.max_shard_size * 1e9),
            report=log.progress("convert"),
        )
        for note in notes:
            log.warning(note)
        return 0
