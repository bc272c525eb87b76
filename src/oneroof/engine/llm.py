"""`LLM`: prompts in, outputs back in their order. The face of the engine for programs."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from msgspec.structs import replace

from oneroof.comm.joined import joined
from oneroof.engine.admission import context_of
from oneroof.engine.engine import Engine, Event
from oneroof.engine.fleet import Fleet
from oneroof.engine.intake import Intake, Messages, Params, Prompt
from oneroof.engine.options import EngineOptions
from oneroof.engine.plain import PlainLoop
from oneroof.engine.pooling import unit
from oneroof.engine.ranks import Assembled, assemble_engine, grid_of
from oneroof.engine.relevance import TASK, probability
from oneroof.engine.request import SEEDS, Output, Piece, Reading, Request, Vector, whole
from oneroof.engine.stats import Speed, Stats
from oneroof.engine.whole import WholeTexts
from oneroof.engine.wire import Load
from oneroof.errors import RankLost, UserError
from oneroof.hub import locate
from oneroof.layout import check
from oneroof.load import Front, Loaded, load, read_front
from oneroof.models import read_config
from oneroof.quant.schemes import SCHEMES

_PLAIN_ROWS = 8192  # of one forward, where texts are read without the engine


class LLM:
    """A loaded model that writes. A context manager; `close` gives its memory back.

    With `tp`, `pp` or `ep` the model is cut for ranks, and with `dp` there are several engines: processes
    that are started here and end with this one, or ranks that `torchrun` has started, of which all but one
    follow and never come back from here. They share out the machine's cores; `threads` are those of each,
    `bind_cpu` keeps them on its cores, and their logs go to `log_dir`.

    `model` is a folder, a hub id, `demo`, or what `load` returned. Raises UserError for what the user can
    mend, among it every option that this version knows the name of but cannot serve.
    """

    _runs: PlainLoop | Engine | Fleet | None

    def __init__(
        self,
        model: str | Path | Loaded,
        *,
        device: str = "auto",
        dtype: str = "auto",
        tp: int = 1,
        pp: int = 1,
        ep: int = 1,
        dp: int = 1,
        quantization: str | None = None,
        packed_cache: bool = False,
        kv: Literal["float", "kv8"] = "float",
        kv_memory: float | None = None,
        max_model_len: int | None = None,
        max_batch_tokens: int = 2048,
        max_batch: int = 8,
        page_size: int = 16,
        device_memory: float | None = None,
        reserve_memory: float | None = None,
        prefix_cache: bool = True,
        engine: str = "paged",
        execution: str = "eager",
        random_weights: bool = False,
        layers: int | None = None,
        threads: int | Literal["auto"] = "auto",
        bind_cpu: bool = True,
        log_dir: str | Path | None = None,
        seed: int | None = None,
        revision: str = "main",
        hub: str = "huggingface",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`seed` serves requests that bring none: request i of a call draws with ``seed + i``. None: anew.

        Memory is in GB of 10^9 bytes, as in `EngineOptions`; `progress(done, all)` is told bytes while
        weights are read.
        """
        ranks = {"tp": tp, "pp": pp, "ep": ep, "dp": dp}
        served = {"quantization": quantization, "kv": kv, "engine": engine, "execution": execution}
        _refuse_unserved(served, ranks, isinstance(model, Loaded))
        sizes: dict[str, Any] = {"kv": kv, "kv_memory": kv_memory, "page_size": page_size}
        sizes |= {
            "max_model_len": max_model_len,
            "max_batch": max_batch,
            "max_batch_tokens": max_batch_tokens,
        }
        sizes |= {"device_memory": device_memory, "reserve_memory": reserve_memory}
        self.options = EngineOptions(prefix_cache=prefix_cache, **sizes)
        if seed is not None:
            whole("seed", seed, *SEEDS, "any number of 64 bits")
        self._assembled: Assembled | None = None
        if isinstance(model, Loaded):
            self._runs, context = _runs(model, self.options, engine)
            self._intake = Intake.of(model, context=context, seed=seed)
        else:
            where: dict[str, Any] = {
                "device": device,
                "dtype": dtype,
                "threads": threads,
                "bind_cpu": bind_cpu,
            }
            where |= {"revision": revision, "hub": hub, "tp": tp, "pp": pp, "ep": ep}
            what: dict[str, Any] = {"random_weights": random_weights, "layers": layers, "seed": seed or 0}
            what |= {"quantization": quantization or "none", "packed_cache": packed_cache}
            folder = None if log_dir is None else str(log_dir)
            order = Load(model=str(model), options=self.options, log_dir=folder, **where, **what)
            self._start(order, engine, dp, seed, progress)
        self._keys = itertools.count()
        self._boxes: dict[int, deque[tuple[int, Event]]] = {}

    def _start(
        self, order: Load, engine: str, dp: int, seed: int | None, progress: Callable[[int, int], None] | None
    ) -> None:
        if dp > 1:
            if joined() is not None:
                raise UserError(f"dp is {dp} among ranks that were started; 1 is allowed; start more jobs")
            folder = locate(order.model, revision=order.revision, hub=order.hub)
            front = read_front(folder)
            check(front.config, grid_of(order))
            self._runs = fleet = Fleet(replace(order, model=str(folder)), dp, progress)
            ready = fleet.ready
            self._intake = Intake(front, context=ready.context, writes=ready.writes, seed=seed)
            return
        if engine == "plain":
            folder = locate(order.model, revision=order.revision, hub=order.hub)
            context_of(read_config(folder), self.options.max_model_len)  # before the weights are read
            loaded = load(
                folder,
                device=order.device,
                dtype=order.dtype,
                random_weights=order.random_weights,
                layers=order.layers,
                quantization=order.quantization,
                packed_cache=order.packed_cache,
                seed=order.seed,
                progress=progress,
            )
            self._runs, context = _runs(loaded, self.options, engine)
        else:
            self._assembled = assemble_engine(order, progress)
            self._runs = self._assembled.engine
            loaded, context = self._runs.loaded, self._runs.context
        self._intake = Intake.of(loaded, context=context, seed=seed)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, special: bool = False
    ) -> list[Output]:
        """One output a prompt, in order. A prompt is a string, a list of token ids, or a list of messages.

        `params`: one for all, one each, or None for what the model's authors recommend. `special`: special
        tokens written in a string become their ids. Raises UserError before anything runs if a prompt cannot
        be served.
        """
        return _outputs(self.stream(prompts, params, special=special))

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        special: bool = False,
        switches: Mapping[str, object] | None = None,
    ) -> Iterator[Piece]:
        """The same as it is written: pieces of all prompts mixed; `Piece.index` says whose. Checked at once.

        `switches` are for prompts that are messages, as in `chat`. To leave early ends what is under way.
        """
        self._open()
        return self._write(self._intake.requests(prompts, params, special=special, switches=switches))

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: Params = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        switches: Mapping[str, object] | None = None,
    ) -> list[Output]:
        """The assistant's next turn of one conversation, or of each of several, in order.

        `tools` and `switches` (such as ``{"enable_thinking": False}``) are handed to the chat template.
        """
        self._open()
        return _outputs(
            self._write(self._intake.conversations(messages, params, tools=tools, switches=switches))
        )

    def embed(
        self, texts: str | Sequence[str], *, instruction: str | None = None, prompt: str | None = None
    ) -> list[list[float]]:
        """One vector of length 1 a text, in order, by the model's own pooling.

        `instruction`: what the texts are queries for, in words; `prompt`: one of the folder's own, by name.
        """
        self._open()
        return [
            unit(v) for v in self._read(self._intake.embedding(texts, instruction=instruction, prompt=prompt))
        ]

    def score(self, query: str, documents: str | Sequence[str], *, instruction: str = TASK) -> list[float]:
        """How well each document answers `query`: a reranker's probability of "yes", in order."""
        self._open()
        readings = self._intake.relevance(query, documents, instruction=instruction)
        return [probability(v) for v in self._read(readings)]

    @property
    def front(self) -> Front:
        """The model's config, tokenizer and template; UserError once closed."""
        self._open()
        return self._intake.front

    @property
    def writes(self) -> bool:
        """It has a head; without one it gives vectors alone."""
        return self._intake.writes

    @property
    def loaded(self) -> Loaded:
        """The same with the weights of this process; UserError once closed, or where they are elsewhere."""
        runs = self._open()
        if isinstance(runs, Fleet):
            raise UserError(
                "the weights are in other processes; dp 1 is allowed where they are asked for; use front"
            )
        return runs.loaded

    @property
    def context(self) -> int:
        """Tokens that prompt and text may have together here."""
        return self._intake.context

    @property
    def speed(self) -> Speed:
        """Tokens and seconds so far."""
        return self._open().speed

    def stats(self) -> Stats:
        """What the paged engine did and has; UserError for the plain loop, which counts nothing."""
        runs = self._open()
        if isinstance(runs, PlainLoop):
            raise UserError("the plain loop has no stats; engine 'paged' is allowed; leave engine out")
        return runs.stats()

    def close(self) -> None:
        """Let go of the model; asking for more is an error. Closing twice is not."""
        runs, self._runs = self._runs, None
        if isinstance(runs, Fleet):
            runs.close()
        if self._assembled is not None:
            self._assembled.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> PlainLoop | Engine | Fleet:
        if self._runs is None:
            raise UserError("this LLM is closed; no more prompts are allowed; make another")
        return self._runs

    def _write(self, requests: Sequence[Request]) -> Iterator[Piece]:
        runs = self._open()
        if isinstance(runs, PlainLoop):
            return runs.run(requests)
        if isinstance(runs, Fleet):
            return (event for event in runs.run(requests) if isinstance(event, Piece))
        return (event for event in self._served(runs, requests) if isinstance(event, Piece))

    def _read(self, readings: Sequence[Reading]) -> list[Vector]:
        runs = self._open()
        if isinstance(runs, PlainLoop):
            texts = WholeTexts(runs.loaded, _PLAIN_ROWS)
            for i, reading in enumerate(readings):
                texts.add(i, reading)
            found: list[Vector] = []
            while len(texts):
                found += [vector for _, vector in texts.step()]
        elif isinstance(runs, Fleet):
            found = [event for event in runs.run(readings) if isinstance(event, Vector)]
        else:
            found = [event for event in self._served(runs, readings) if isinstance(event, Vector)]
        return sorted(found, key=lambda vector: vector.index)

    def _served(self, engine: Engine, wanted: Sequence[Request | Reading]) -> Iterator[Event]:
        """What `wanted` bring, as it comes: they are checked at once, and run from the first `next`."""
        for one in wanted:
            engine.check(one)
        return self._events(engine, wanted)

    def _events(self, engine: Engine, wanted: Sequence[Request | Reading]) -> Iterator[Event]:
        box: deque[tuple[int, Event]] = deque()
        left: set[int] = set()
        try:
            for one in wanted:
                key = next(self._keys)
                engine.add(key, one)
                left.add(key)
                self._boxes[key] = box
            while left:
                if not box:
                    for key, event in self._step(engine):  # others' too, where several streams are read
                        self._boxes[key].append((key, event))
                while box:
                    key, event = box.popleft()
                    if isinstance(event, Vector) or event.output is not None:
                        left.discard(key)
                        del self._boxes[key]
                    yield event
        finally:
            for key in left:
                engine.abort(key)
                self._boxes.pop(key, None)

    def _step(self, engine: Engine) -> list[tuple[int, Event]]:
        """A step; where a rank was lost, the last one."""
        try:
            return engine.step()
        except RankLost:
            self.close()
            raise


def _runs(loaded: Loaded, options: EngineOptions, engine: str) -> tuple[PlainLoop | Engine, int]:
    """The engine of that name, and the tokens that a sequence can have in it."""
    if engine == "paged":
        made = Engine(loaded, options)
        return made, made.context
    loop = PlainLoop(
        loaded,
        max_batch=options.max_batch,
        max_batch_tokens=options.max_batch_tokens,
        kv_memory=options.kv_memory,
        kv=options.kv,
    )
    return loop, context_of(loaded.config, options.max_model_len)


def _outputs(pieces: Iterator[Piece]) -> list[Output]:
    outputs = [piece.output for piece in pieces if piece.output is not None]
    return sorted(outputs, key=lambda output: output.index)


_SERVED: dict[str, tuple[object, ...]] = {
    "quantization": (None, *SCHEMES),
    "kv": ("float", "kv8"),
    "engine": ("paged", "plain"),
    "execution": ("eager",),
}


def _refuse_unserved(options: Mapping[str, object], ranks: Mapping[str, object], loaded: bool) -> None:
    if loaded and options["quantization"] not in (None, "none"):
        raise UserError(
            f"quantization is {options['quantization']!r}, and the model is loaded; give it to `load`"
        )
    for name, value in options.items():
        allowed = _SERVED[name]
        if value not in allowed:
            served = " and ".join(repr(one) for one in allowed if one is not None)
            raise UserError(f"{name} is {value!r}; {served} is served in this version; leave it out")
    for name, value in ranks.items():
        whole(name, value, 1, None, "leave it out for one")
        if value != 1 and (loaded or options["engine"] == "plain"):
            why = "the model is loaded" if loaded else "engine is 'plain'"
            raise UserError(f"{name} is {value!r}, and {why}; 1 is allowed there; leave one of them out")
