"""`oneroof generate`: prompts in, text out, with a journal that an interrupted run continues from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from oneroof import log
from oneroof.cli.lines import check_unicode
from oneroof.cli.options import ModelOptions
from oneroof.cli.prompts import Asked, Turns, read_prompts
from oneroof.cli.records import heading, record
from oneroof.cli.results import Record, print_record, told
from oneroof.cli.sampling import ReportOptions
from oneroof.cli.switches import read_switches
from oneroof.engine.request import Piece, SamplingParams
from oneroof.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Generate(ReportOptions, ModelOptions):
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
        if read_switches(self.switch) and not templated:
            raise UserError("--switch is for the chat template; no prompt goes through it; add --chat")
        check_unicode(self.system or "", "--system")
        for name, count in (("--logprobs", self.logprobs), ("--prompt-logprobs", self.prompt_logprobs)):
            if count is not None and not self.json and self.output is None:
                raise UserError(
                    f"{name} is told in JSON alone; --json or --output is allowed with it; add --json"
                )
        shared = self.params({})
        for one in asked:
            one.params(shared)  # what can be refused without the model is refused before it is loaded
        facts = self.facts(("json", "output", "prompt", "prompts_file"))
        facts["prompts"] = [[one.prompt, one.sampling] for one in asked]
        written = set[int]()
        make = partial(self._made, asked, written)
        alone = len(asked) == 1 and asked[0].params(shared).n == 1
        return self._print(told(len(asked), make, output=self.output, facts=facts), written, alone)

    def _made(
        self, asked: Sequence[Asked], written: set[int], left: Sequence[int]
    ) -> Iterator[tuple[int, Record]]:
        """(index, record) of each prompt in `left`; one that is alone is `written` as it comes."""
        streamed = len(asked) == 1 and not self.json and asked[0].params(self.params({})).n == 1
        for piece in self._pieces([asked[i] for i in left], left):
            index = left[piece.index]
            if streamed:
                written.add(index)
                sys.stdout.write(piece.text)
                sys.stdout.flush()
            if piece.output is not None:
                yield index, record(index, asked[index].prompt, piece.output)

    def _pieces(self, asked: Sequence[Asked], indices: Sequence[int]) -> Iterator[Piece]:
        """Load the model and write; the n-th of `asked` is prompt ``indices[n]``, which decides its seed."""
        self.summon()
        from oneroof.cli.model import opened  # torch: not for --help, nor for a complete journal

        with opened(self) as llm:
            shared = self.params(llm.front.generation)
            params = [
                _seeded(one.params(shared), self.seed, i) for one, i in zip(asked, indices, strict=True)
            ]
            prompts = [self._turns(one.prompt) for one in asked]
            switches = read_switches(self.switch)
            try:
                pieces = llm.stream(prompts, params, special=self.special, switches=switches)  # not begun
            except UserError as error:

                def check(prompt: str | Turns, one: SamplingParams) -> None:
                    llm.stream([prompt], [one], special=self.special, switches=switches)

                raise _placed(check, prompts, params, [one.where for one in asked]) or error from None
            yield from pieces

    def _turns(self, prompt: str | Turns) -> str | Turns:
        if not self.chat or not isinstance(prompt, str):
            return prompt
        system: Turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]

    def _print(self, records: Iterator[Record], written: Collection[int], alone: bool) -> int:
        """`written` are on the screen already; the text of a prompt that is `alone` needs no heading."""
        status = 0
        for one in records:
            if self.json:
                print_record(one)
            elif one["index"] in written:
                print(flush=True)
            else:
                print(one["text"] if alone else heading(one), flush=True)
            if one["finish_reason"] == "error":
                why = one.get("error", "its logits are not numbers")
                log.warning(f"prompt {one['index']} failed: {why}")
                status = 1
        return status


def _placed(
    check: Callable[[str | Turns, SamplingParams], None],
    prompts: Sequence[str | Turns],
    params: Sequence[SamplingParams],
    places: Sequence[str],
) -> UserError | None:
    """What `check` refuses the first prompt with that cannot be served, with the place where that stands."""
    for prompt, one, where in zip(prompts, params, places, strict=True):
        try:
            check(prompt, one)
        except UserError as error:
            said = str(error)
            if said.startswith("prompt 0 "):
                return UserError(where + said.removeprefix("prompt 0"))
            return error if isinstance(prompt, str) else UserError(f"{where}: {said}")
    return None


def _seeded(params: SamplingParams, seed: int, index: int) -> SamplingParams:
    from oneroof.engine.seeds import nth_seed  # torch

    return params if params.seed is not None else replace(params, seed=nth_seed(seed, index))
