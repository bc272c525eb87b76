"""The options that every command which loads a model shares; a command inherits them and adds its own.

A field is a flag, a YAML key and, by the string behind it, its help, which says what this version serves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Literal

from oneroof.comm.crew import summon
from oneroof.comm.joined import joined
from oneroof.errors import UserError
from oneroof.hub import locate
from oneroof.layout import Grid

_SUMMONED = 16  # ranks: more are not started before it is known that the model can be cut so
_MOST_THREADS = 4  # of a core; more only wait for each other, and very many crash
# How fast, with how much memory, and what is told beside: the text stays the same.
_EFFORT = {
    "packed_cache",
    *("threads", "bind_cpu", "tp", "pp", "ep", "dp", "engine", "execution", "kv_memory", "page_size"),
    *("max_batch_tokens", "max_batch", "device_memory", "reserve_memory", "profile", "log_dir"),
}


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

    bind_cpu: bool = True
    """Keep the threads on one NUMA node where its cores are enough for them, within the affinity mask."""

    tp: int = 1
    """Tensor parallel ranks: each has some of the heads and some of every width."""

    pp: int = 1
    """Pipeline stages: each has some of the layers."""

    ep: int = 1
    """Groups of ranks that share out the experts; alone it implies as many tensor parallel ranks."""

    dp: int = 1
    """Engines side by side, each with a copy of the model; prompts are shared out."""

    quantization: Literal["none", "w8a16", "w8a8-dynamic", "w4a16", "w4a8-dynamic"] = "none"
    """Weights made smaller while they are read: w8 to int8, w4 to int4 in groups of 128, the output head to
    int8. a16 leaves inputs as they are, a8-dynamic makes them int8 as they come."""

    packed_cache: bool = False
    """Keep weights as the CPU kernels read them beside the checkpoint, in .oneroof, for a quicker start."""

    kv: Literal["float", "kv8"] = "float"
    """How keys and values are kept: float is the model's own number format, kv8 is int8 with a scale for each
    position and head."""

    kv_memory: float | None = None
    """GB (10^9 bytes) for the cache of keys and values, of each rank; from free memory where not given."""

    page_size: int = 16
    """Positions in a page of the cache."""

    max_model_len: int | None = None
    """Longest prompt and text together, in tokens; what the model and the cache can where not given."""

    max_batch_tokens: int = 2048
    """Most tokens of one step; a longer prompt is read in chunks."""

    max_batch: int = 8
    """Most texts that are written together."""

    device_memory: float | None = None
    """GB (10^9 bytes) of the device that may be used in all; what is free where not given."""

    reserve_memory: float | None = None
    """GB (10^9 bytes) of the device to leave free."""

    engine: Literal["paged", "plain"] = "paged"
    """How text is made: paged shares one cache among requests that come and go, plain is the simple loop."""

    execution: Literal["eager"] = "eager"
    """How steps run: eager is one operation after the other, the one of this version."""

    adapter: tuple[str, ...] = ()
    """NAME=FOLDER, a LoRA adapter; none in this version."""

    random_weights: bool = False
    """Draw weights at random from the shapes in config.json instead of reading them, for measuring."""

    layers: int | None = None
    """Keep the first N layers only, for measuring; all where not given."""

    profile: Path | None = None
    """A folder for a trace of the run by torch.profiler, as JSON for chrome://tracing or ui.perfetto.dev."""

    log_dir: Path | None = None
    """A folder for what is logged, with times and all details, besides standard error."""

    seed: int = 0
    """Seed of sampling and of random weights: the same seed gives the same text."""

    revision: str = "main"
    """Branch, tag or commit, where MODEL is a hub id."""

    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked for; modelscope needs the package of that name."""

    def __post_init__(self) -> None:
        counts = ("threads", "tp", "pp", "ep", "dp", "page_size", "max_model_len")
        for name in (*counts, "max_batch_tokens", "max_batch", "layers"):
            self._check(name, isinstance(count := getattr(self, name), int) and count < 1, "1 or more")
        most = _MOST_THREADS * (os.cpu_count() or 1)
        crowded = isinstance(self.threads, int) and self.threads > most
        self._check("threads", crowded, f"1 to {most}, which is {_MOST_THREADS} for each core here,")
        for name in ("kv_memory", "device_memory"):
            self._check(name, (size := getattr(self, name)) is not None and not size > 0, "more than 0 GB")
        self._check("reserve_memory", not (self.reserve_memory or 0) >= 0, "0 GB or more")
        if self.adapter:
            raise UserError(
                f"--adapter {self.adapter[0]} was given; this version serves no adapters; leave it out"
            )

    def _check(self, name: str, wrong: bool, allowed: str) -> None:
        if wrong:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(self, name)} was given; {allowed} is allowed; "
                "leave it out if unsure"
            )

    def summon(self) -> None:
        """Start the other ranks' processes, before torch is imported here: it takes as long there."""
        ranks = Grid.of(self.tp, self.pp, self.ep).ranks
        if 1 < ranks <= _SUMMONED and self.dp == 1 and self.engine == "paged" and joined() is None:
            summon("oneroof.engine.ranks", ranks - 1)

    def facts(self, free: Collection[str] = ()) -> dict[str, object]:
        """What decides the results, as plain JSON data, for a journal's fingerprint.

        `free` are fields of the command that decide nothing, or that it tells in its own way.
        """
        named = [field.name for field in fields(self) if field.name not in _EFFORT.union(free)]
        found: dict[str, object] = {name: getattr(self, name) for name in named}
        folder = locate("demo") if self.model == "demo" else Path(self.model).expanduser()
        if folder.is_dir():
            found["model"] = [str(folder.resolve()), *_state(folder)]
        return found


@contextmanager
def as_flags(names: Iterable[str]) -> Iterator[None]:
    """Whatever UserError begins with one of these names inside begins with its flag outside: `--top-p is 2`.

    The hints of a program, where None is a value, become those of a command line.
    """
    try:
        yield
    except UserError as error:
        said = str(error)
        word = re.match(r"\w+", said)
        if word is None or word[0] not in names:
            raise
        said = re.sub("; try (leave it )?None [^;]*$", "; leave it out", said)
        raise UserError(f"--{word[0].replace('_', '-')}{said[word.end() :]}") from error


def _state(folder: Path) -> list[list[str | int]]:
    """Size and time of every file of a model: another model under the same name is another run."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
