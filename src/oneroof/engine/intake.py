"""From what people write to what the engine runs: prompts become requests, or one line says why not.

It needs no weights, so that it can stand on the other side of a socket. Checked here: whatever can be known
before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from oneroof.engine.admission import admit, end_tokens
from oneroof.engine.pooling import read_pooling
from oneroof.engine.relevance import TASK, judged
from oneroof.engine.request import Reading, Request, SamplingParams, defaults
from oneroof.engine.seeds import fresh_seed, nth_seed
from oneroof.errors import UserError
from oneroof.load import Front, Loaded
from oneroof.text.chatml import END, START
from oneroof.text.conversation import Message

Messages = Sequence[Message]
Prompt = str | Sequence[int] | Messages
Params = SamplingParams | Sequence[SamplingParams] | None
Tools = Sequence[Mapping[str, object]] | None


class Intake:
    """The entrance of one model with a context of so many tokens."""

    def __init__(self, front: Front, *, context: int, writes: bool, seed: int | None) -> None:
        """`writes`: the model has a head. `seed` serves requests that bring none; None: each its own."""
        self.front = front
        self.context = context
        self.writes = writes
        self._seed = seed

    @staticmethod
    def of(loaded: Loaded, *, context: int, seed: int | None) -> Intake:
        """The entrance of a model that is here."""
        return Intake(loaded, context=context, writes=loaded.model.head is not None, seed=seed)

    def requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        special: bool = False,
        switches: Mapping[str, object] | None = None,
        tools: Tools = None,
        namespace: str = "",
        first: int = 0,
    ) -> list[Request]:
        """One a prompt, numbered from `first`; a prompt is a string, a list of token ids, or of messages.

        `params`: one for all, one each, or None for what the model's authors recommend. `special`: special
        tokens written in a string become their ids. `switches` and `tools` are for the chat template.
        """
        if isinstance(prompts, Mapping):
            raise UserError("a prompt is one message; a list of messages is allowed; put it into a list")
        listed: Sequence[Prompt] = [prompts] if _is_one(prompts) else prompts  # type: ignore[assignment]
        self._check_writes()
        each = self._params(params, len(listed))
        ids = [self._tokens(prompt, special, switches or {}, tools) for prompt in listed]
        return [self._admit(first + i, listed[i], ids[i], each[i], namespace) for i in range(len(listed))]

    def conversations(
        self,
        messages: Messages | Sequence[Messages],
        params: Params = None,
        *,
        tools: Tools = None,
        switches: Mapping[str, object] | None = None,
    ) -> list[Request]:
        """One a conversation: its next turn is wanted."""
        several: Sequence[Messages] = [messages] if is_messages(messages) else messages  # type: ignore[assignment]
        if not all(is_messages(one) for one in several):
            raise UserError("a conversation is a list of messages, each with role and content; try [{...}]")
        return self.requests(several, params, tools=tools, switches=switches)

    def embedding(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | None = None,
        prompt: str | None = None,
        namespace: str = "",
    ) -> list[Reading]:
        """One a text, whose final state makes its vector.

        `instruction`: what the texts are queries for, in words; `prompt`: one of the folder's own, by name.
        """
        several = [texts] if isinstance(texts, str) else texts
        tokenizer = self.front.text()
        prefix = read_pooling(self.front.folder).prefix(instruction, prompt)
        end = tokenizer.appended or (() if tokenizer.eos is None else (tokenizer.eos,))
        sequences = [(*tokenizer.prepended, *tokenizer.encode(prefix + text), *end) for text in several]
        return self._readings("text", sequences, (), namespace)

    def relevance(
        self, query: str, documents: str | Sequence[str], *, instruction: str = TASK, namespace: str = ""
    ) -> list[Reading]:
        """One a document: how likely "no" and "yes" are at the end of a reranker's prompt."""
        several = [documents] if isinstance(documents, str) else documents
        if not self.writes:
            raise UserError(f"{self.front.folder} has no lm_head.weight; scores need one; use a reranker")
        words, sequences = judged(self.front.text(), query, several, instruction)
        return self._readings("document", sequences, words, namespace)

    def _readings(
        self, what: str, sequences: Sequence[tuple[int, ...]], words: tuple[int, ...], namespace: str
    ) -> list[Reading]:
        for i, ids in enumerate(sequences):
            if not 0 < len(ids) <= self.context:
                raise UserError(
                    f"{what} {i} has {len(ids)} tokens; 1 to {self.context} are allowed; cut it into parts"
                )
        return [Reading(i, ids, words, namespace) for i, ids in enumerate(sequences)]

    def _check_writes(self) -> None:
        """UserError for a model that gives vectors alone."""
        if not self.front.config.causal:
            raise UserError(
                f"{self.front.folder} sees in both directions; embeddings are allowed, text is not; use embed"
            )
        if not self.writes:
            raise UserError(
                f"{self.front.folder} has no lm_head.weight; embeddings are allowed, text is not; use embed"
            )

    def _admit(
        self, index: int, prompt: Prompt, ids: Sequence[int], params: SamplingParams, namespace: str
    ) -> Request:
        if params.stops:
            self.front.text()  # stop strings need a tokenizer
        ends = end_tokens(self.front.config, self.front.generation)
        if is_messages(prompt):  # a turn ends at its mark, whatever else ends a text
            special = self.front.text().special
            ends |= {special[mark] for mark in (START, END) if mark in special}
        return admit(
            index,
            prompt if isinstance(prompt, str) else None,
            ids,
            params,
            config=self.front.config,
            context=self.context,
            ends=ends,
            seed=fresh_seed() if self._seed is None else nth_seed(self._seed, index),
            namespace=namespace,
        )

    def _params(self, params: Params, count: int) -> Sequence[SamplingParams]:
        if params is None:
            params = defaults(self.front.generation)
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise UserError(
                f"{len(params)} SamplingParams for {count} prompts; one for all or one each is allowed"
            )
        return params

    def _tokens(
        self, prompt: Prompt, special: bool, switches: Mapping[str, object], tools: Tools
    ) -> Sequence[int]:
        if isinstance(prompt, str):
            tokenizer = self.front.text()
            ids = tokenizer.encode(prompt, special=special)
            return [*tokenizer.prepended, *ids] if ids else ids
        if _is_ids(prompt):
            return prompt
        if is_messages(prompt):
            return self._rendered(prompt, tools, switches)
        raise UserError(
            f"a prompt is {prompt!r:.80}; a string, a list of token ids or a list of messages is allowed"
        )

    def _rendered(self, messages: Messages, tools: Tools, switches: Mapping[str, object]) -> Sequence[int]:
        template = self.front.template
        if template is None:
            raise UserError(
                f"{self.front.folder} has no tokenizer; prompts of token ids are allowed; use those"
            )
        window = self.front.generation.get("max_window_size")  # stands where there is no template of its own
        most = window if isinstance(window, int) else None
        return template.tokens(messages, tools=tools, switches=switches, window=most)


def is_messages(prompt: object) -> TypeGuard[Messages]:
    """Whether `prompt` is a conversation."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(m, Mapping) for m in prompt)


def _is_one(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    return isinstance(prompts, str) or _is_ids(prompts) or is_messages(prompts)


def _is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(t, int) for t in prompt)
