"""The options that every command which loads a model shares; a command inherits them and adds its own.

A field is a flag, a YAML key and, by the string behind it, its help. Only what works is listed.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from oneroof.errors import UserError


@dataclass(frozen=True)
class ModelOptions:
    """Which model, where it runs, and in what form.

    Fields before the `KW_ONLY` mark are positional on the command line; those behind it are flags.
    """

    model: str
    """A folder in Hugging Face layout, a hub id, or demo: a small model that comes along."""

    _: KW_ONLY

    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    """Where the model runs; auto takes the accelerator that is there, else the CPU."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations; auto takes the checkpoint's where that is quick."""

    threads: int | Literal["auto"] = "auto"
    """CPU threads of one operation; auto takes the cores that this process may use."""

    engine: Literal["plain"] = "plain"
    """How text is generated: plain is the contiguous loop."""

    max_model_len: int | None = None
    """Longest prompt and text together, in tokens; the model's own limit where not given."""

    max_batch: int = 8
    """Most sequences that are generated together."""

    random_weights: bool = False
    """Draw weights at random from the shapes in config.json instead of reading them, for measuring."""

    layers: int | None = None
    """Keep the first N layers only, for measuring; all where not given."""

    seed: int = 0
    """Seed of sampling and of random weights: the same seed gives the same text."""

    revision: str = "main"
    """Branch, tag or commit, where MODEL is a hub id."""

    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked for; modelscope needs the package of that name."""

    def __post_init__(self) -> None:
        counts = {"threads": self.threads, "max-batch": self.max_batch, "max-model-len": self.max_model_len}
        for name, count in (counts | {"layers": self.layers}).items():
            if isinstance(count, int) and count < 1:
                raise UserError(f"--{name} {count} was given; 1 or more is allowed; leave it out if unsure")
