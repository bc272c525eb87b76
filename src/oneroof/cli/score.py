"""`oneroof score`: how well documents answer a query, by a reranker, as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path

from oneroof.cli.lines import check_text, check_unicode, given_texts, holds_objects, read_lines
from oneroof.cli.options import ModelOptions
from oneroof.cli.results import Record, groups, print_record, told
from oneroof.errors import UserError


@dataclass(frozen=True)
class Pair:
    """What is scored."""

    query: str
    document: str
    where: str  # the document's place, as a message names it


@dataclass(frozen=True, kw_only=True)
class Score(ModelOptions):
    """Score how well documents answer a query, with a reranker model, as JSON lines."""

    query: str | None = None
    """What is asked."""

    document: tuple[str, ...] = ()
    """A document; - reads it from standard input."""

    documents_file: Path | None = None
    """One document a line; in a .jsonl file objects with `document` and, if it has its own, `query`."""

    instruction: str | None = None
    """What makes a document a good one, in words; that of a web search where not given."""

    output: Path | None = None
    """Journal of results as JSON lines; an interrupted run, given again, goes on from it."""

    def run(self) -> int:
        """Read documents and journal, load the model if work is left, print a record a document."""
        check_unicode(self.instruction or "", "--instruction")
        pairs = self._pairs()
        facts = self.facts(("query", "document", "documents_file", "output")) | {
            "pairs": [[pair.query, pair.document] for pair in pairs]
        }
        for one in told(len(pairs), partial(self._made, pairs), output=self.output, facts=facts):
            print_record(one)
        return 0

    def _pairs(self) -> list[Pair]:
        found = [(line.where, self.query, line.text) for line in given_texts(self.document, "document")]
        if self.documents_file is not None:
            for line in read_lines(self.documents_file):
                objects = holds_objects(self.documents_file)
                given = line.texts("document", "query") if objects else {"document": line.text}
                found.append((line.where, given.get("query", self.query), given["document"]))
        if not found:
            raise UserError(
                'there is no document; --document and --documents-file are allowed; try --document "The sea"'
            )
        pairs = list[Pair]()
        for where, query, document in found:
            if query is None:
                raise UserError(f'{where} has no query; --query is needed; try --query "What is deep?"')
            check_text(query, f"the query of {where}")
            check_text(document, where)
            pairs.append(Pair(query, document, where))
        return pairs

    def _made(self, pairs: Sequence[Pair], left: Sequence[int]) -> Iterator[tuple[int, Record]]:
        self.summon()
        from oneroof.cli.model import check_lengths, opened  # torch: not for --help
        from oneroof.engine.intake import Intake
        from oneroof.engine.relevance import TASK

        task = TASK if self.instruction is None else self.instruction
        with opened(self) as llm:
            endless = Intake(llm.front, context=sys.maxsize, writes=llm.writes, seed=None)

            @cache
            def tokens_for(query: str) -> Callable[[str], int]:
                return lambda text: len(endless.relevance(query, text, instruction=task)[0].token_ids)

            check_lengths(
                ((pairs[i].where, pairs[i].document, tokens_for(pairs[i].query)) for i in left), llm.context
            )
            for group in groups(left, [len(pair.document) for pair in pairs], "scoring"):
                for query, same in groupby(group, key=lambda index: pairs[index].query):
                    indices = list(same)
                    documents = [pairs[index].document for index in indices]
                    scores = llm.score(query, documents, instruction=task)
                    for index, document, score in zip(indices, documents, scores, strict=True):
                        yield index, {"index": index, "query": query, "document": document, "score": score}
