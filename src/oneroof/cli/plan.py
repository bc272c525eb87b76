"""The command `plan`: will it fit and how fast, from a `config.json` alone."""

from __future__ import annotations

import json
import math
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Literal

from oneroof.audit.memory import Storage
from oneroof.audit.plan import Ask, plan
from oneroof.audit.plan_report import as_object, as_text
from oneroof.audit.speed import Rates
from oneroof.audit.training import training
from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.hub import locate
from oneroof.models import read_config

_USUAL = 4096  # tokens of a text where none were asked for
_MOST_DEVICES = 4096
_UNTOLD = "bfloat16"  # of a config.json that names no number format, as Qwen-1's


@dataclass(frozen=True)
class Plan:
    """Whether a model fits some devices, how fast it is there, and how to share it out among them.

    It reads config.json alone: the weights need not be there. Every way to make dp engines of pp stages of tp
    ranks of the devices is told (of a model's experts, also ep groups), with the bytes of its heaviest rank,
    and the fastest of those that fit is recommended; where none fits, what is missing and what would do.
    Speeds are those with the whole context behind each text, on the rates that are given, or on those that
    this CPU gives now, which its ranks share. Give what devices reach, not what their data sheets say: 60 to
    80% of it is usual. Experts are taken to be chosen evenly; what lies between kernels is a CPU's.
    """

    model: str
    """A folder with a config.json, a hub id, or demo: a small model that comes along."""

    _: KW_ONLY

    device: Literal["cpu", "cuda", "npu"] = "cpu"
    """What the devices are: on a CPU weights lie as the native kernels read them, in whole panels."""

    devices: int | None = None
    """How many; tp x pp, or ep, or 1, where not given."""

    device_memory: float | None = None
    """GB (10^9 bytes) of each; for a CPU what is free here, shared out, where not given."""

    bandwidth: float | None = None
    """GB/s at which each reads its memory; for a CPU what is measured, where not given."""

    arithmetic: float | None = None
    """TFLOP/s of each in products of this number format; for a CPU what is measured, where not given."""

    link: float | None = None
    """GB/s from one to another; for a CPU half of its memory's, for others latency alone, where not given."""

    context: int | None = None
    """Tokens of each text, prompt and all; 4096, or the model's most, where not given."""

    batch: int = 8
    """Texts that are written together, over all engines; with --train those of a micro-batch."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations; auto takes the checkpoint's."""

    quantization: Literal["none", "w8a16", "w8a8-dynamic", "w4a16", "w4a8-dynamic"] = "none"
    """Weights made smaller while they are read, as generate has it."""

    kv: Literal["float", "kv8"] = "float"
    """How keys and values are kept, as generate has it."""

    tp: int | None = None
    """Tensor parallel ranks; every number that can be, where not given."""

    pp: int | None = None
    """Pipeline stages; every number that can be, where not given."""

    ep: int | None = None
    """Groups that share out the experts; every number that can be, where not given."""

    max_batch_tokens: int = 2048
    """Most tokens of one step; a longer prompt is read in chunks."""

    page_size: int = 16
    """Positions in a page of the cache."""

    train: bool = False
    """Tell also what training takes: gradients, AdamW's states, and activations kept or recomputed."""

    json: bool = False
    """Print one JSON object instead of text; it lists every layout, rank by rank."""

    output: Path | None = None
    """Write the same object into a file."""

    revision: str = "main"
    """Branch, tag or commit, where MODEL is a hub id."""

    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked for; modelscope needs the package of that name."""

    def __post_init__(self) -> None:
        for name in ("devices", "context", "batch", "tp", "pp", "ep", "max_batch_tokens", "page_size"):
            value = getattr(self, name)
            self._check(name, value is not None and value < 1, "1 or more")
        self._check("devices", (self.devices or 1) > _MOST_DEVICES, f"1 to {_MOST_DEVICES}")
        for name in ("device_memory", "bandwidth", "arithmetic", "link"):
            value = getattr(self, name)
            wrong = value is not None and not (value > 0 and math.isfinite(value))
            self._check(name, wrong, "a number of more than 0")
        if self.device != "cpu" and self.device_memory is None:
            raise UserError(
                f"--device {self.device} has no memory; --device-memory GB is needed for what is not this "
                "CPU; try --device-memory 64"
            )

    def run(self) -> int:
        """Tell the plan; status 0 also where nothing fits, which is an answer."""
        config = read_config(locate(self.model, revision=self.revision, hub=self.hub, only=("config.json",)))
        ask = self._ask(config)
        found = plan(ask)
        trained = training(ask) if self.train else ()
        name = "demo" if self.model == "demo" else Path(self.model).expanduser().resolve().name
        told = json.dumps(as_object(name, ask, found, trained), ensure_ascii=False, indent=2)
        try:
            if self.output is not None:
                self._write(told)
        finally:
            print(told if self.json else as_text(name, ask, found, trained), flush=True)
        return 0

    def _ask(self, config: ModelConfig) -> Ask:
        """The options with what is left open found out; torch is imported where this CPU is asked."""
        devices = self.devices or (self.tp or self.ep or 1) * (self.pp or 1)
        named = _UNTOLD if config.dtype == "stored" else config.dtype
        storage = Storage(
            dtype=named if self.dtype == "auto" else self.dtype,
            quantization=self.quantization,
            kv=self.kv,
            panels=self.device == "cpu",
        )
        memory = math.inf if self.device_memory is None else self.device_memory * 1e9
        given = (self.bandwidth, self.arithmetic, self.link)
        bandwidth, arithmetic, link = (None if rate is None else rate * 1e9 for rate in given)
        rates = Rates(
            bandwidth=bandwidth, arithmetic=None if arithmetic is None else arithmetic * 1e3, link=link
        )
        if self.device == "cpu" and (memory == math.inf or bandwidth is None or arithmetic is None):
            from oneroof.audit import machine

            if self.dtype == "auto":
                storage = replace(storage, dtype=machine.natural(named))
            storage = replace(storage, panels=machine.native())
            memory = machine.free() / devices if memory == math.inf else memory
            here = machine.measured(storage).shared(devices)
            rates = Rates(
                bandwidth=rates.bandwidth or here.bandwidth,
                arithmetic=rates.arithmetic or here.arithmetic,
                link=rates.link or here.link,
                head=None if rates.arithmetic else here.head,
            )
        return Ask(
            config=config,
            storage=storage,
            devices=devices,
            memory=memory,
            context=self._context(config),
            batch=self.batch,
            rates=rates,
            at_once=self.max_batch_tokens,
            page=self.page_size,
            tp=self.tp,
            pp=self.pp,
            ep=self.ep,
        )

    def _context(self, config: ModelConfig) -> int:
        if self.context is None:
            return min(_USUAL, config.max_positions)
        stretches = config.rope.kind in ("dynamic", "ntk-by-doubling")
        most = config.max_positions
        self._check("context", self.context > most and not stretches, f"1 to {most} of this model")
        return self.context

    def _write(self, told: str) -> None:
        assert self.output is not None
        try:
            self.output.write_text(told + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{self.output} cannot be written ({error.strerror}); a writable file is allowed; try another"
            ) from None

    def _check(self, name: str, wrong: bool, allowed: str) -> None:
        if wrong:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(self, name)} was given; {allowed} is allowed; "
                "leave it out if unsure"
            )
