"""`oneroof generate`: prompts in, text out, with a journal that an interrupted run continues from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

from oneroof import log
from oneroof.cli.options import ModelOptions
from oneroof.cli.prompts import Asked, Turns, read_prompts
from oneroof.cli.records import heading, record
from oneroof.cli.sampling import SamplingOptions
from oneroof.engine.journal import Journal
from oneroof.engine.request import Piece, SamplingParams
from oneroof.errors import UserError

Record = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Generate(SamplingOptions, ModelOptions):
    """Write text that continues prompts, or answers them with --chat."""

    prompt: tuple[str, ...] = ()
    """A text to continue; - reads it from standard input."""

    prompts_file: Path | None = None
    """One prompt a line; in a .jsonl file objects with `prompt` or `messages` and sampling fields."""

    chat: bool = False
    """Render each prompt through the model's chat template, as a user's message; `messages` always are."""

    system: str | None = None
    """With --chat: the system message before each prompt."""

    switch: tuple[str, ...] = ()
    """NAME=VALUE, handed to the chat template, such as enable_thinking=false."""

    special: bool = False
    """Special tokens written in a prompt become their ids; otherwise they are plain text."""

    json: bool = False
    """Print one JSON object a prompt."""

    output: Path | None = None
    """Journal of results as JSON lines; an interrupted run, given again, goes on from it."""

    def run(self) -> int:
        """Read prompts and journal, load the model if work is left, write; 1 if a text failed, else 0."""
        asked = read_prompts(self.prompt, self.prompts_file)
        if self.system is not None and not self.chat:
            raise UserError("--system is for --chat only; put a system message into messages; or add --chat")
        templated = self.chat or any(not isinstance(one.prompt, str) for one in asked)
        if _switches(self.switch) and not templated:
            raise UserError("--switch is for the chat template; no prompt goes through it; add --chat")
        shared = self.params({})
        for one in asked:
            one.params(shared)  # what can be refused without the model is refused before it is loaded
        with Journal(self.output, self._facts(asked)) if self.output else nullcontext() as journal:
            done = journal.done if journal else {}
            records = _in_order(len(asked), done, self._made(asked, journal))
            return self._print(records, streamed=self._streams(asked) and not done)

    def _made(self, asked: Sequence[Asked], journal: Journal | None) -> Iterator[tuple[int, Record]]:
        """(index, record) of each prompt that the journal does not have, once finished and journalled."""
        left = [i for i in range(len(asked)) if journal is None or i not in journal.done]
        if not left:
            return
        for piece in self._pieces([asked[i] for i in left], left):
            if self._streams(asked):
                sys.stdout.write(piece.text)
                sys.stdout.flush()
            if piece.output is not None:
                index = left[piece.index]
                made = record(index, asked[index].prompt, piece.output)
                if journal is not None:
                    journal.write(made)
                yield index, made

    def _pieces(self, asked: Sequence[Asked], indices: Sequence[int]) -> Iterator[Piece]:
        """Load the model and write; the n-th of `asked` is prompt ``indices[n]``, which decides its seed."""
        from oneroof.device import use_threads  # torch: not for --help, nor for a journal that is complete
        from oneroof.engine.llm import LLM

        use_threads(self.threads)
        with LLM(
            self.model,
            device=self.device,
            dtype=self.dtype,
            random_weights=self.random_weights,
            layers=self.layers,
            seed=self.seed,
            revision=self.revision,
            hub=self.hub,
            progress=log.progress("loading"),
            max_model_len=self.max_model_len,
            max_batch=self.max_batch,
            engine=self.engine,
        ) as llm:
            shared = self.params(llm.loaded.generation)
            params = [
                _seeded(one.params(shared), self.seed, i) for one, i in zip(asked, indices, strict=True)
            ]
            prompts = [self._turns(one.prompt) for one in asked]
            yield from llm.stream(prompts, params, special=self.special, switches=_switches(self.switch))
            speed = llm.speed
            log.info(
                f"read {speed.prompt_tokens} tokens at {_rate(speed.prompt_tokens, speed.prompt_seconds)}, "
                f"wrote {speed.tokens} at {_rate(speed.tokens, speed.seconds)}"
            )

    def _turns(self, prompt: str | Turns) -> str | Turns:
        if not self.chat or not isinstance(prompt, str):
            return prompt
        system: Turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]

    def _streams(self, asked: Sequence[Asked]) -> bool:
        """One text alone is printed as it is written."""
        return len(asked) == 1 and not self.json and asked[0].params(self.params({})).n == 1

    def _print(self, records: Iterable[Record], *, streamed: bool) -> int:
        status = 0
        for one in records:
            if self.json:
                print(json.dumps(one, ensure_ascii=False, allow_nan=False), flush=True)
            elif streamed:
                print(flush=True)
            else:
                print(heading(one), flush=True)
            if one["finish_reason"] == "error":
                log.warning(f"prompt {one['index']} failed: its logits are not numbers")
                status = 1
        return status

    def _facts(self, asked: Sequence[Asked]) -> dict[str, object]:
        """All that decides the results, for the journal's fingerprint."""
        free = {"threads", "json", "output", "prompt", "prompts_file"}
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            facts["model"] = [str(folder.resolve()), *_state(folder)]
        facts["prompts"] = [[one.prompt, one.sampling] for one in asked]
        return facts


def _in_order(count: int, done: Mapping[int, Record], made: Iterator[tuple[int, Record]]) -> Iterator[Record]:
    """Records 0..count-1, each as soon as those before it are there; `made` brings what `done` lacks."""
    known = dict(done)
    for index in range(count):
        while index not in known:
            late, one = next(made)
            known[late] = one
        yield known.pop(index)
    for _ in made:  # nothing is left, but its last words are not said yet
        raise AssertionError("more records than prompts")


def _seeded(params: SamplingParams, seed: int, index: int) -> SamplingParams:
    from oneroof.engine.noise import nth_seed  # torch

    return params if params.seed is not None else replace(params, seed=nth_seed(seed, index))


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Size and time of every file of a model: another model under the same name is another run."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _switches(words: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE, where VALUE is JSON if it reads as such, else text."""
    found: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UserError(f"--switch {word} was given; NAME=VALUE is allowed; try enable_thinking=false")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if seconds else "no time"
