"""A model's reply taken apart while it comes in: what it thinks, what it says, which tools it calls.

One parser serves streams and whole replies: what its events add up to does not depend on how the text was
cut. Nothing is lost: a text that is no well-formed call of an offered tool is content, as it stands. Only
what may yet be a mark or the head of a call is held back (at most `parse_calls.HELD` characters), and values
that have to be whole to be typed. The time is linear in the text.

Line breaks and spaces beside a mark belong to it, as the templates write them: line breaks after ``<think>``
and ``</think>``, up to two before ``</think>`` and before a call, space between calls and after the last.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from functools import cache

from oneroof.text.parse_calls import CallReader, JsonCall
from oneroof.text.parse_events import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Reasoning,
    Reply,
    gathered,
)
from oneroof.text.parse_formats import ANSWER, ANSWERED, CALL, CALLED, FUNCTION, THINK, THOUGHT, ParserFormat
from oneroof.text.parse_tagged import TaggedCall

Schemas = Mapping[str, Mapping[str, object]]  # name of an offered tool -> JSON schema of its arguments

SPACE = 64  # characters of white space that are held back at most where only a mark may follow
BREAKS = 2  # line breaks before a mark that belong to it at most

_SPACE = re.compile(r"\s*")


def random_id(index: int) -> str:
    """The id of a call, as OpenAI's look."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ReplyParser:
    """Parses one reply."""

    def __init__(
        self,
        format: ParserFormat,
        tools: Schemas | None = None,
        *,
        thinking: bool = False,
        whole_calls: bool = False,
        name_call: Callable[[int], str] = random_id,
    ) -> None:
        """`tools` are those that may be called: without any, the marks of calls are content.

        `thinking`: the prompt ends inside thinking (`opens_thinking`). `whole_calls`: a call is told when it
        has come to its end, and one that does not is content from its first character; otherwise its
        arguments are told as they come, and what cannot be taken back is a call that is not `whole`.
        """
        self._format = format
        self._tools: Schemas = (tools or {}) if format.calls != "none" else {}
        opening = (CALL, FUNCTION) if format.calls == "tagged" else (CALL,)
        self._calling = opening if self._tools else ()  # the marks with which a call begins
        self._whole_calls = whole_calls
        self._name_call = name_call
        self._text, self._at = "", 0
        self._events: list[Event] = []
        self._thinking = thinking and format.thinking
        self._skip = self._thinking  # line breaks, and after <think> another one, are left out
        self._blank = True  # in the answer: nothing but space since it began, or since the last mark
        self._pending = ""  # what has been read since then: left out if a mark follows
        self._droppable = False  # ... or if the text ends
        self._close_due = False  # </tool_call> is still to come
        self._in_answer = False
        self._calls = 0
        self._reader: CallReader | None = None
        self._source: list[str] = []  # of the call that is being read, where it may yet become content
        self._told: list[Event] = []  # of it, where calls are told whole
        self._shown = False  # it has begun, as far as the client knows
        self._refused = False  # its tool is not offered: it is content

    def push(self, piece: str) -> list[Event]:
        """The events that `piece` brings, often none."""
        self._text, self._at = self._text[self._at :] + piece, 0
        return self._run(final=False)

    def finish(self) -> list[Event]:
        """The events of what was held back, and the end of a call that is open."""
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Event]:
        while True:
            if self._reader is not None:
                moved = self._read_call(self._reader, final)
            elif self._thinking:
                moved = self._think(final)
            else:
                moved = self._answer(final)
            if not moved:
                break
        events, self._events = self._events, []
        return events

    # Thinking

    def _think(self, final: bool) -> bool:
        text = self._text
        if self._skip and not self._skipped(THINK, final):
            return False
        found = text.find(THOUGHT, self._at)
        if found < 0:
            end = len(text) if final else self._before_breaks(_partial(text, self._at, (THOUGHT,)))
            self._say(Reasoning, text[self._at : end])
            self._at = end
            return False
        self._say(Reasoning, text[self._at : self._before_breaks(found)])
        self._at = found + len(THOUGHT)
        self._thinking, self._skip = False, True
        self._boundary(droppable=False)
        return True

    def _skipped(self, mark: str, final: bool) -> bool:
        """Skips line breaks and then `mark`, if there is one; whether all of it is known to be over."""
        text = self._text
        while True:
            while self._at < len(text) and text[self._at] == "\n":
                self._at += 1
            if mark and text.startswith(mark, self._at):
                self._at += len(mark)
                continue
            waits = self._at == len(text) or (mark != "" and _begins(text, self._at, (mark,)))
            if waits and not final:
                return False
            self._skip = False
            return True

    # The answer

    def _answer(self, final: bool) -> bool:
        text = self._text
        if self._skip and not self._skipped("", final):
            return False
        if self._blank:
            return self._after_boundary(final)
        marks = self._marks()
        if marks and (mark := _any_of(marks).search(text, self._at)):
            start = self._before_breaks(mark.start())
            self._say(Content, text[self._at : start])
            self._pending, self._at = text[start : mark.start()], mark.start()
            self._mark(mark[0])
            return True
        end = len(text)
        if marks and not final:
            end = self._before_breaks(_partial(text, self._at, marks))
        self._say(Content, text[self._at : end])
        self._at = end
        return False

    def _after_boundary(self, final: bool) -> bool:
        """Where nothing but space has been said since a mark: more marks are known here than elsewhere."""
        text, at, marks = self._text, self._at, self._marks()
        if not marks:
            self._say_pending()
            return True
        run = _SPACE.match(text, at, min(len(text), at + SPACE + 1 - self._space_pending()))
        end = run.end() if run else at
        self._pending, self._at = self._pending + text[at:end], end
        if self._space_pending() > SPACE:
            self._say_pending()
            return True
        if end < len(text):
            if mark := _any_of(marks).match(text, end):
                self._mark(mark[0])
                return True
            if not final and _begins(text, end, marks):
                return False
            if final and self._close_due and CALLED.startswith(text[end:]):
                self._at = len(text)  # a call's end cut off: the call is whole
                return True
        elif not final:
            return False
        elif self._droppable:
            self._pending = ""
        if end == len(text) and not self._pending:
            return False
        self._say_pending()
        return True

    def _space_pending(self) -> int:
        return len(self._pending) - len(self._pending.rstrip())

    def _say_pending(self) -> None:
        self._say(Content, self._pending)
        self._pending, self._blank, self._close_due = "", False, False

    def _boundary(self, *, droppable: bool) -> None:
        self._blank, self._pending, self._droppable = True, "", droppable

    def _marks(self) -> tuple[str, ...]:
        """The marks that count at this place."""
        marks = (*self._calling, ANSWERED) if self._in_answer else self._calling
        if not self._blank:
            return marks
        more = [THINK] if self._format.thinking else []
        more += [ANSWER] if self._format.answer and not self._in_answer else []
        if self._close_due:
            more += [CALLED, "{"] if self._format.calls == "json" else [CALLED]
        return (*marks, *more)

    def _mark(self, mark: str) -> None:
        """`mark` stands at the present place."""
        self._at += len(mark)
        if mark == THINK:
            self._thinking = self._skip = True
        elif mark == ANSWER:
            self._in_answer = self._skip = True
            self._boundary(droppable=False)
        elif mark == ANSWERED:
            self._blank, self._droppable = True, True
            self._pending += mark
        elif mark == CALLED:
            self._close_due = False
            self._boundary(droppable=True)
        else:
            self._begin_call(mark)

    # Calls

    def _begin_call(self, mark: str) -> None:
        if self._format.calls == "tagged":
            self._reader = TaggedCall(self._tools, inside=mark == FUNCTION)
        else:
            self._reader = JsonCall()
        self._source = [self._pending, mark]
        if mark == "{":
            self._source, self._at = [self._pending], self._at - 1
        self._told, self._pending = [], ""
        self._shown = self._refused = False

    def _read_call(self, reader: CallReader, final: bool) -> bool:
        before = self._at
        self._at = reader.feed(self._text, before)
        read = self._text[before : self._at]
        if self._refused:
            self._say(Content, read)
        elif self._whole_calls or not reader.begun:
            self._source.append(read)
        if reader.begun and not self._shown and not self._refused:
            if reader.name in self._tools:
                self._shown = True
                self._tell(CallBegun(self._calls, self._name_call(self._calls), reader.name))
            else:
                self._refused = True
                self._source += [] if self._whole_calls else [read]
                self._say(Content, "".join(self._source))
        self._tell_arguments(reader)
        if reader.done:
            self._end_call()
        elif reader.fault:
            self._break_call(reader, "")
        elif final:
            rest, self._at = self._text[self._at :], len(self._text)
            self._break_call(reader, rest)
        else:
            return False
        return True

    def _tell(self, event: Event) -> None:
        (self._told if self._whole_calls else self._events).append(event)

    def _tell_arguments(self, reader: CallReader) -> None:
        if reader.begun:
            text = "".join(reader.pieces)
            reader.pieces.clear()
            if text and not self._refused:
                self._tell(CallArguments(self._calls, text))

    def _end_call(self) -> None:
        self._reader = None
        if self._refused:
            self._blank = False
            return
        self._tell(CallEnded(self._calls, whole=True))
        self._events += self._told
        self._calls += 1
        self._close_due = True
        self._boundary(droppable=True)

    def _break_call(self, reader: CallReader, rest: str) -> None:
        """The call is none, or breaks off; `rest` is the end of the whole text, where that is why."""
        self._reader = None
        self._blank, self._close_due = False, False
        if self._refused:
            self._say(Content, rest)
        elif self._whole_calls or not self._shown:
            self._say(Content, "".join(self._source) + rest)
        else:
            unread = reader.finish(rest) if not reader.fault else ""
            self._tell_arguments(reader)
            self._tell(CallEnded(self._calls, whole=False))
            self._calls += 1
            self._say(Content, "".join(reader.unshown) + unread)

    def _before_breaks(self, end: int) -> int:
        """`end` without the line breaks before it that belong to a mark there."""
        start = end
        while start > max(self._at, end - BREAKS) and self._text[start - 1] == "\n":
            start -= 1
        return start

    def _say(self, kind: type[Reasoning] | type[Content], text: str) -> None:
        if text:
            self._events.append(kind(text))


def parsed(text: str, parser: ReplyParser) -> Reply:
    """A whole reply taken apart by a parser that has seen nothing yet."""
    return gathered([*parser.push(text), *parser.finish()])


@cache
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(mark) for mark in marks))


def _begins(text: str, at: int, marks: tuple[str, ...]) -> bool:
    """Whether the end of `text` from `at` on may yet become one of `marks`."""
    return len(text) - at < 16 and any(mark.startswith(text[at:]) for mark in marks)


def _partial(text: str, at: int, marks: tuple[str, ...]) -> int:
    """Where the end of `text` begins that may yet become one of `marks`; its length where there is none."""
    place = text.rfind("<", max(at, len(text) - 16))
    return place if place >= 0 and _begins(text, place, marks) else len(text)
