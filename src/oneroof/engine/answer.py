"""One completion as it grows: its tokens, its text, and when and why it ends. No tensors."""

from __future__ import annotations

from collections.abc import Mapping

from oneroof.engine.request import Completion, Logprob, Request
from oneroof.engine.seeds import branch
from oneroof.engine.stops import StopWatch
from oneroof.text.tokenizer import Tokenizer

BAD = -1  # stands for the token of a row whose logits are not numbers


class Answer:
    """Takes one token after another, gives text that is never taken back, and knows when to stop."""

    def __init__(self, request: Request, number: int, tokenizer: Tokenizer | None) -> None:
        """Completion `number` of `request`. Without a tokenizer the text stays empty."""
        params = request.params
        self.request = request
        self.number = number
        self.seed = branch(request.seed, number)
        self.token_ids: list[int] = []
        self.logprobs: list[Mapping[int, Logprob]] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.error: str | None = None
        self._text: list[str] = []
        self._stream = None if tokenizer is None else tokenizer.stream()
        self._watch = StopWatch(params.stops)
        self._stop_tokens = frozenset(params.stop_token_ids)

    def add(self, token: int, logprob: Mapping[int, Logprob] | None = None) -> str:
        """The text that `token` sets free; `finish_reason` is set if it is the last one."""
        piece = self._advance(token, logprob)
        if piece:
            self._text.append(piece)
        return piece

    def fail(self, message: str) -> None:
        """It ends here, with what it has; `message` says why."""
        self.finish_reason, self.error = "error", message

    def completion(self) -> Completion:
        """The finished text; to be asked for once `finish_reason` is set."""
        assert self.finish_reason is not None
        asked = self.request.params.logprobs is not None
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=tuple(self.logprobs) if asked else None,
            error=self.error,
        )

    def _advance(self, token: int, logprob: Mapping[int, Logprob] | None) -> str:
        if token == BAD:
            piece = self._end("error", None)
            self.stop_reason = None  # an error it stays, whatever the end of its text would have stopped
            self.fail("its logits are not numbers")
            return piece
        self.token_ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self._stop_tokens:
            return self._end("stop", token)
        if token in self.request.ends:
            return self._end("stop", None)
        piece = "" if self._stream is None else self._watch.push(self._stream.push((token,)))
        if self._watch.found is not None:
            self.finish_reason, self.stop_reason = "stop", self._watch.found
        elif len(self.token_ids) >= self.request.limit:
            piece += self._end("length", None)
        return piece

    def _end(self, finish_reason: str, stop_reason: str | int | None) -> str:
        """Flush what was held back. A stop string that the flush completes is why it ended, then."""
        piece = "" if self._stream is None else self._watch.push(self._stream.finish())
        if self._watch.found is None:
            piece += self._watch.finish()
            self.finish_reason, self.stop_reason = finish_reason, stop_reason
        else:
            self.finish_reason, self.stop_reason = "stop", self._watch.found
        return piece
