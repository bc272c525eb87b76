"""`/v1/embeddings`, `/v1/score` and `/v1/rerank`: texts that are read, none that is written."""

from __future__ import annotations

import base64
import math
import struct
import time
from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from oneroof.engine.admission import check_ids
from oneroof.engine.intake import Intake
from oneroof.engine.pooling import unit
from oneroof.engine.relevance import TASK, probability
from oneroof.engine.request import Reading, Vector
from oneroof.errors import UserError
from oneroof.serve.answers import Json
from oneroof.serve.gone import unless_gone
from oneroof.serve.openai import Embedding, Ids, Rerank, Score
from oneroof.serve.record import Record, record_of
from oneroof.serve.service import Make, Service


async def embeddings(service: Service, body: Embedding, http: HttpRequest) -> Response:
    """One vector of length 1 a text."""
    record = record_of(http)
    name, inputs = service.named(body.model, record), body.inputs()
    service.limits.count("inputs", inputs, "input")
    service.check_characters(one for one in inputs if isinstance(one, str))
    width = service.front.config.dim
    if body.dimensions is not None and body.dimensions > width:
        raise UserError(f"dimensions is {body.dimensions}; 1 to {width} are allowed; leave it out")

    def make(intake: Intake) -> list[Reading]:
        return [_reading(intake, body, one, record) for one in inputs]

    vectors = await unless_gone(http, _read(service, make, record))
    data = [
        {"object": "embedding", "index": i, "embedding": _shown(unit(vector), body)}
        for i, vector in enumerate(vectors)
    ]
    return Json({"object": "list", "data": data, "model": name, "usage": _usage(record)})


async def score(service: Service, body: Score, http: HttpRequest) -> Response:
    """How well each document answers its query, 0 to 1."""
    record = record_of(http)
    name, pairs = service.named(body.model, record), body.pairs()
    service.limits.count("inputs", pairs, "the list of pairs")
    scores = await unless_gone(http, _scores(service, pairs, body.instruction, record))
    data = [{"object": "score", "index": i, "score": one} for i, one in enumerate(scores)]
    head = {"id": f"score-{record.id}", "object": "list", "created": int(time.time())}
    return Json(head | {"model": name, "data": data, "usage": _usage(record)})


async def rerank(service: Service, body: Rerank, http: HttpRequest) -> Response:
    """The documents that answer the query best, the best one first."""
    record = record_of(http)
    name, texts = service.named(body.model, record), body.texts()
    service.limits.count("inputs", texts, "documents")
    pairs = [(body.query, text) for text in texts]
    scores = await unless_gone(http, _scores(service, pairs, body.instruction, record))
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: body.top_n]
    results = []
    for i in order:
        result: dict[str, object] = {"index": i, "relevance_score": scores[i]}
        results.append(result | ({"document": {"text": texts[i]}} if body.return_documents else {}))
    return Json({"id": f"rerank-{record.id}", "model": name, "results": results, "usage": _usage(record)})


async def _scores(
    service: Service, pairs: Sequence[tuple[str, str]], instruction: str | None, record: Record
) -> list[float]:
    service.check_characters(text for pair in pairs for text in pair)

    def make(intake: Intake) -> list[Reading]:
        task, space = instruction or TASK, record.namespace()
        return [
            one
            for query, text in pairs
            for one in intake.relevance(query, text, instruction=task, namespace=space)
        ]

    return [probability(vector) for vector in await _read(service, make, record)]


async def _read(service: Service, make: Make, record: Record) -> list[Vector]:
    return await service.read(await service.readings(make, record))


def _reading(intake: Intake, body: Embedding, one: str | Ids, record: Record) -> Reading:
    """A text through the model's own prompt, or token ids as they are."""
    space = record.namespace()
    if isinstance(one, str):
        [made] = intake.embedding(one, instruction=body.instruction, prompt=body.prompt_name, namespace=space)
        return made
    if not 0 < len(one) <= intake.context:
        raise UserError(f"input has {len(one)} tokens; 1 to {intake.context} are allowed; cut it into parts")
    check_ids("input has token", one, intake.front.config.vocabulary, "use this model's own tokenizer")
    return Reading(0, tuple(one), (), space)


def _shown(vector: list[float], body: Embedding) -> object:
    kept = vector[: body.dimensions]
    length = 1.0 if body.dimensions is None else math.hypot(*kept) or 1.0
    kept = [value / length for value in kept]
    if body.encoding_format == "float":
        return kept
    return base64.b64encode(struct.pack(f"<{len(kept)}f", *kept)).decode()


def _usage(record: Record) -> dict[str, object]:
    return {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens}
