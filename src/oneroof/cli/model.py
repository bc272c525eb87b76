"""From a command's options to a model that writes: the one way there for all commands that load one.

This file imports torch; a command imports it when it runs, not for its `--help`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path

import torch.profiler

from oneroof import __version__, log
from oneroof.cli.interruption import check_interrupted
from oneroof.cli.options import ModelOptions, as_flags
from oneroof.comm.joined import joined
from oneroof.device import bind_threads, use_threads
from oneroof.engine.llm import LLM
from oneroof.errors import UserError
from oneroof.layout import Grid
from oneroof.load import Loaded
from oneroof.ops.cpu import backend

_SLACK = 16  # tokens that a text may have beyond its bytes, where a tokenizer changes letters


@contextmanager
def opened(options: ModelOptions) -> Iterator[LLM]:
    """The model of `options` with its threads, log file and trace; closed, and its work told, at the end.

    Raises UserError for whatever the user can mend, before a weight is read wherever that can be known.
    """
    check_interrupted()  # of torch's import, which may swallow it
    if options.log_dir is not None:
        log.to_file(options.log_dir / f"rank{_rank(options)}.log")
    log.debug(f"oneroof {__version__}: {options}")
    threads = use_threads(options.threads)
    backend.set_threads(threads)
    if options.bind_cpu:
        log.debug(bind_threads(threads))
    trace = None if options.profile is None else _trace_file(options.profile)
    with load_llm(options) as llm, nullcontext() if trace is None else _traced(trace):
        yield llm
        with suppress(UserError):  # it was closed inside, by one who only wanted its weights
            if work := _work(llm, options):
                log.info(work)


def _rank(options: ModelOptions) -> int:
    """The number of this process among the ranks."""
    place = joined()
    return Grid.of(options.tp, options.pp, options.ep).driver if place is None else place.rank


def load_llm(options: ModelOptions, loaded: Loaded | None = None) -> LLM:
    """The model of `options` by itself; `loaded`: with its weights in memory already."""
    with as_flags([field.name for field in fields(options) if field.kw_only]):
        return LLM(
            loaded or options.model,
            device=options.device,
            dtype=options.dtype,
            tp=options.tp,
            pp=options.pp,
            ep=options.ep,
            dp=options.dp,
            quantization=None if loaded is not None else options.quantization,
            threads=options.threads,
            bind_cpu=options.bind_cpu,
            log_dir=options.log_dir,
            packed_cache=options.packed_cache,
            kv=options.kv,
            kv_memory=options.kv_memory,
            page_size=options.page_size,
            max_model_len=options.max_model_len,
            max_batch_tokens=options.max_batch_tokens,
            max_batch=options.max_batch,
            device_memory=options.device_memory,
            reserve_memory=options.reserve_memory,
            engine=options.engine,
            execution=options.execution,
            random_weights=options.random_weights,
            layers=options.layers,
            seed=options.seed,
            revision=options.revision,
            hub=options.hub,
            progress=log.progress("loading"),
        )


def check_lengths(texts: Iterable[tuple[str, str, Callable[[str], int]]], context: int) -> None:
    """UserError for the first text that is longer than the context, before any is worked on.

    `texts`: place, text, and how its tokens are counted, with those that go around it. A token has a byte or
    more, so that only long texts are counted.
    """
    around = dict[Callable[[str], int], int]()
    for where, text, tokens in texts:
        if tokens not in around:
            around[tokens] = tokens(".") + _SLACK
        if len(text.encode(errors="replace")) + around[tokens] > context and (size := tokens(text)) > context:
            raise UserError(f"{where} has {size} tokens; at most {context} are allowed; cut it into parts")


def _work(llm: LLM, options: ModelOptions) -> str:
    """Tokens and speed so far, in words; of the paged engine also what its cache saved and could not hold."""
    speed = llm.speed
    words = list[str]()
    if speed.prompt_tokens:
        words.append(
            f"read {speed.prompt_tokens} tokens at {_rate(speed.prompt_tokens, speed.prompt_seconds)}"
        )
    later = f"after the first at {_rate(speed.tokens, speed.seconds)}" if speed.tokens else ""
    if options.engine == "plain":  # which does not count the first ones
        words += [f"wrote {speed.tokens} {later}"] * bool(later)
    else:
        stats = llm.stats()
        told = f"wrote {stats.tokens}" + (f" ({later})" if later else "")
        words += [told] * bool(stats.tokens)
        words += [f"{stats.cached_tokens} tokens of prompts were cached"] * bool(stats.cached_tokens)
        words += [f"{stats.preemptions} preemptions"] * bool(stats.preemptions)
    return ", ".join(words)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if seconds else "no time"


def _trace_file(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); a trace goes into any writable folder; "
            "try another"
        ) from None
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-rank0.json"


@contextmanager
def _traced(path: Path) -> Iterator[None]:
    """What happens inside, written to `path` at the end, also where it fails or is interrupted."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes to standard error that it has begun
    profiler = torch.profiler.profile()
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()
        profiler.export_chrome_trace(str(path))
        log.info(f"the trace of the run is {path}")
