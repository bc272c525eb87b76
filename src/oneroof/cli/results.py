"""The records of a run, told in their order and, where there is a journal, each made only once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from oneroof import log
from oneroof.engine.journal import Journal

Record = Mapping[str, object]

_TOGETHER = 1 << 13  # characters: about a step of a model, and little to do again if it is lost


def told(
    count: int,
    make: Callable[[Sequence[int]], Iterator[tuple[int, Record]]],
    *,
    output: Path | None,
    facts: object,
) -> Iterator[Record]:
    """Records 0..count-1, each as soon as it and those before it are there.

    The journal at `output`, of the run that `facts` describe, brings what it has. `make` is called with the
    indices that are left, if any, and brings (index, record) in any order; they are journalled at once.
    """
    with Journal(output, facts) if output is not None else nullcontext() as journal:
        known: dict[int, Record] = dict(journal.done) if journal is not None else {}
        left = [index for index in range(count) if index not in known]
        made = make(left) if left else iter(())
        for index in range(count):
            while index not in known:
                late, one = next(made)
                if journal is not None:
                    journal.write(one)
                known[late] = one
            yield known.pop(index)
        for _ in made:  # nothing is left, but its last words are not said yet
            raise AssertionError("more records than were asked for")


def print_record(record: Record) -> None:
    """A line of JSON on standard output, with escapes where its encoding lacks letters."""
    escaped = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(record, ensure_ascii=escaped, allow_nan=False), flush=True)


def groups(indices: Sequence[int], sizes: Sequence[int], what: str) -> Iterator[list[int]]:
    """`indices` some at a time: as many as have a good number of characters, ``sizes[index]``, together.

    Progress is reported as `what`, unless the results are printed on the same screen.
    """
    report = None if sys.stdout.isatty() else log.progress(what)
    group, filled = list[int](), 0
    for done, index in enumerate(indices):
        if filled >= _TOGETHER:
            yield group
            group, filled = [], 0
            if report is not None:
                report(done, len(indices))
        group.append(index)
        filled += sizes[index] + 1
    yield group
    if report is not None:
        report(len(indices), len(indices))
