"""`LLM`: prompts in, outputs back in their order. The face of the engine for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeGuard

from oneroof.engine.admission import admit, context_of, end_tokens
from oneroof.engine.noise import fresh_seed, nth_seed
from oneroof.engine.plain import PlainLoop
from oneroof.engine.pooling import embed
from oneroof.engine.relevance import TASK, score
from oneroof.engine.request import SEEDS, Output, Piece, Request, SamplingParams, defaults, whole
from oneroof.engine.stats import Speed
from oneroof.errors import UserError
from oneroof.hub import locate
from oneroof.load import Loaded, load
from oneroof.models import read_config
from oneroof.text.chatml import END, START
from oneroof.text.conversation import Message

Messages = Sequence[Message]
Prompt = str | Sequence[int] | Messages
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model that writes. A context manager; `close` gives its memory back.

    `model` is a folder, a hub id, `demo`, or what `load` returned. Raises UserError for what the user can
    mend, among it every option that this version knows the name of but cannot serve.
    """

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
        kv: str = "float",
        kv_memory: float | None = None,
        max_model_len: int | None = None,
        max_batch_tokens: int = 8192,
        max_batch: int = 8,
        engine: str = "plain",
        execution: str = "eager",
        random_weights: bool = False,
        layers: int | None = None,
        seed: int | None = None,
        revision: str = "main",
        hub: str = "huggingface",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`seed` serves requests that bring none: request i of a call draws with ``seed + i``. None: anew.

        `kv_memory` is in GB of 10^9 bytes; `progress(done, all)` is told bytes while weights are read.
        """
        wanted = {"tp": tp, "pp": pp, "ep": ep, "dp": dp, "quantization": quantization, "kv": kv}
        _refuse_unserved({**wanted, "engine": engine, "execution": execution})
        whole("max_batch", max_batch, 1, None, "leave it out for the usual number")
        whole("max_batch_tokens", max_batch_tokens, 1, None, "leave it out for the usual number")
        if seed is not None:
            whole("seed", seed, *SEEDS, "any number of 64 bits")
        if kv_memory is not None and not kv_memory > 0:
            raise UserError(f"kv_memory is {kv_memory}; more than 0 GB is allowed; leave it out for no limit")
        if isinstance(model, Loaded):
            loaded = model
        else:
            folder = locate(model, revision=revision, hub=hub)
            context_of(read_config(folder), max_model_len)  # refused before a byte of the weights is read
            loaded = load(
                folder,
                device=device,
                dtype=dtype,
                random_weights=random_weights,
                layers=layers,
                seed=seed or 0,
                progress=progress,
            )
        self._seed = seed
        self._context = context_of(loaded.config, max_model_len)
        self._loop: PlainLoop | None = PlainLoop(
            loaded, max_batch=max_batch, max_batch_tokens=max_batch_tokens, kv_memory=kv_memory
        )

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, special: bool = False
    ) -> list[Output]:
        """One output a prompt, in order. A prompt is a string, a list of token ids, or a list of messages.

        `params`: one for all, one each, or None for what the model's authors recommend. `special`: special
        tokens written in a string become their ids. Raises UserError before anything runs if a prompt cannot
        be served.
        """
        outputs = [piece.output for piece in self.stream(prompts, params, special=special)]
        return sorted((o for o in outputs if o is not None), key=lambda o: o.index)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        special: bool = False,
        switches: Mapping[str, object] | None = None,
    ) -> Iterator[Piece]:
        """The same as it is written: pieces of all prompts mixed; `Piece.index` says whose. Checked at once.

        `switches` are for prompts that are messages, as in `chat`.
        """
        if isinstance(prompts, Mapping):
            raise UserError("a prompt is one message; a list of messages is allowed; put it into a list")
        listed: Sequence[Prompt] = [prompts] if _is_one(prompts) else prompts  # type: ignore[assignment]
        ids = [self._tokens(prompt, special, switches or {}) for prompt in listed]
        return self._run(listed, ids, params)

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
        several: Sequence[Messages] = [messages] if _is_messages(messages) else messages  # type: ignore[assignment]
        ids = [self._conversation(m, tools, switches or {}) for m in several]
        outputs = [piece.output for piece in self._run(several, ids, params)]
        return sorted((o for o in outputs if o is not None), key=lambda o: o.index)

    def embed(
        self, texts: str | Sequence[str], *, instruction: str | None = None, prompt: str | None = None
    ) -> list[list[float]]:
        """One vector of length 1 a text, in order, by the model's own pooling.

        `instruction`: what the texts are queries for, in words; `prompt`: one of the folder's own, by name.
        """
        several = [texts] if isinstance(texts, str) else texts
        vectors: list[list[float]] = embed(
            self.loaded, several, instruction=instruction, prompt=prompt
        ).tolist()
        return vectors

    def score(self, query: str, documents: str | Sequence[str], *, instruction: str = TASK) -> list[float]:
        """How well each document answers `query`: a reranker's probability of "yes", in order."""
        several = [documents] if isinstance(documents, str) else documents
        return score(self.loaded, query, several, instruction=instruction)

    @property
    def loaded(self) -> Loaded:
        """The model with its config, tokenizer and template; UserError once closed."""
        return self._open().loaded

    @property
    def speed(self) -> Speed:
        """Tokens and seconds so far."""
        return self._open().speed

    def close(self) -> None:
        """Let go of the model; asking for more is an error. Closing twice is not."""
        self._loop = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> PlainLoop:
        if self._loop is None:
            raise UserError("this LLM is closed; no more prompts are allowed; make another")
        return self._loop

    def _run(
        self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], params: Params
    ) -> Iterator[Piece]:
        loop = self._open()
        _check_writes(loop.loaded)
        each = self._params(params, len(ids))
        return loop.run([self._admit(i, prompts[i], ids[i], each[i]) for i in range(len(ids))])

    def _admit(self, index: int, prompt: Prompt, ids: Sequence[int], params: SamplingParams) -> Request:
        loaded = self.loaded
        if params.stops:
            loaded.text()  # stop strings need a tokenizer
        ends = end_tokens(loaded.config, loaded.generation)
        if _is_messages(prompt):  # a turn ends at its mark, whatever else ends a text
            special = loaded.text().special
            ends |= {special[mark] for mark in (START, END) if mark in special}
        return admit(
            index,
            prompt if isinstance(prompt, str) else None,
            ids,
            params,
            config=loaded.config,
            context=self._context,
            ends=ends,
            seed=fresh_seed() if self._seed is None else nth_seed(self._seed, index),
        )

    def _params(self, params: Params, count: int) -> Sequence[SamplingParams]:
        if params is None:
            params = defaults(self.loaded.generation)
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise UserError(
                f"{len(params)} SamplingParams for {count} prompts; one for all or one each is allowed"
            )
        return params

    def _tokens(self, prompt: Prompt, special: bool, switches: Mapping[str, object]) -> Sequence[int]:
        if isinstance(prompt, str):
            tokenizer = self.loaded.text()
            ids = tokenizer.encode(prompt, special=special)
            return [*tokenizer.prepended, *ids] if ids else ids
        if _is_ids(prompt):
            return prompt
        if _is_messages(prompt):
            return self._conversation(prompt, None, switches)
        raise UserError(
            f"a prompt is {prompt!r:.80}; a string, a list of token ids or a list of messages is allowed"
        )

    def _conversation(
        self, messages: Messages, tools: Sequence[Mapping[str, object]] | None, switches: Mapping[str, object]
    ) -> Sequence[int]:
        template = self.loaded.template
        if template is None:
            raise UserError(
                f"{self.loaded.folder} has no tokenizer; prompts of token ids are allowed; use those"
            )
        window = self.loaded.generation.get("max_window_size")  # stands where there is no template of its own
        most = window if isinstance(window, int) else None
        return template.tokens(messages, tools=tools, switches=switches, window=most)


def _check_writes(loaded: Loaded) -> None:
    """UserError for a model that gives vectors alone."""
    if not loaded.config.causal:
        raise UserError(
            f"{loaded.folder} sees in both directions; embeddings are allowed, text is not; use embed"
        )
    if loaded.model.head is None:
        raise UserError(
            f"{loaded.folder} has no lm_head.weight; embeddings are allowed, text is not; use embed"
        )


_SERVED: dict[str, tuple[object, ...]] = {
    "tp": (1,),
    "pp": (1,),
    "ep": (1,),
    "dp": (1,),
    "quantization": (None, "none"),
    "kv": ("float",),
    "engine": ("plain",),
    "execution": ("eager",),
}


def _refuse_unserved(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        allowed = _SERVED[name]
        if value not in allowed:
            raise UserError(
                f"{name} is {value!r}; only {allowed[-1]!r} is served in this version; leave it out"
            )


def _is_one(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    return isinstance(prompts, str) or _is_ids(prompts) or _is_messages(prompts)


def _is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(t, int) for t in prompt)


def _is_messages(prompt: object) -> TypeGuard[Messages]:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(m, Mapping) for m in prompt)
