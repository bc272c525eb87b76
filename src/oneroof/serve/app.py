"""The application: which path leads where, and who may go there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from oneroof import __version__
from oneroof.engine.remote import EngineDied
from oneroof.errors import UserError
from oneroof.serve import chat, completions, vectors
from oneroof.serve.answers import Json
from oneroof.serve.door import Admin, Doorman, Entrance, Keyed, Open, closed, refused
from oneroof.serve.errors import Refusal, TooLong
from oneroof.serve.gone import ClientGone
from oneroof.serve.openai import Chat, Completion, Embedding, Rerank, Score
from oneroof.serve.record import record_of
from oneroof.serve.service import Service

_METRICS = "text/plain; version=0.0.4; charset=utf-8"


def make_app(service: Service, doorman: Doorman) -> ASGIApp:
    """What uvicorn serves."""
    return Entrance(make_routes(service, doorman), service.limits, service.metrics)


def make_routes(service: Service, doorman: Doorman) -> FastAPI:
    """The routes by themselves, each of them a `Keyed`, `Open` or `Admin` one."""
    app = FastAPI(
        title="oneroof",
        version=__version__,
        docs_url=None,  # pages that load from elsewhere
        redoc_url=None,
        openapi_url=None,  # a route of ours gives it, closed as others are
        redirect_slashes=False,
    )
    app.state.doorman = doorman
    app.router.default = closed(doorman)
    for error in (
        HTTPException, RequestValidationError, UserError, TooLong, EngineDied, ClientGone, Exception
    ):  # fmt: skip
        app.add_exception_handler(error, refused)
    _add_watching(app, service)
    _add_openai(app, service)
    _add_later(app)
    return app


def _add_watching(app: FastAPI, service: Service) -> None:
    """What operators ask."""
    add = app.router.add_api_route

    async def health() -> Response:
        return Json({"status": "ok"})

    async def ready() -> Response:
        if service.ready and not service.draining:
            return Json({"status": "ready"})
        return Json({"status": "draining" if service.draining else "loading"}, 503, {"retry-after": "5"})

    async def metrics() -> Response:
        return Response(service.metrics.text(await service.stats()), media_type=_METRICS)

    async def openapi() -> Response:
        return Json(app.openapi())

    add("/health", health, methods=["GET"], route_class_override=Open, summary="The process is there")
    add("/ready", ready, methods=["GET"], route_class_override=Open, summary="A token was made")
    add("/metrics", metrics, methods=["GET"], route_class_override=Keyed, summary="Values for Prometheus")
    add("/openapi.json", openapi, methods=["GET"], route_class_override=Keyed, summary="This document")


def _add_openai(app: FastAPI, service: Service) -> None:
    """OpenAI's routes, and those that vLLM, Jina and Cohere have beside them."""

    def described(name: str) -> dict[str, object]:
        made: dict[str, object] = {"id": name, "object": "model", "created": service.created}
        made |= {"owned_by": "oneroof"}
        return made | ({} if service.said is None else {"max_model_len": service.said.context})

    async def models() -> Response:
        return Json({"object": "list", "data": [described(name) for name in service.names]})

    async def model(name: str, http: Request) -> Response:
        service.named(name, record_of(http))
        return Json(described(name))

    async def chat_completions(body: Chat, http: Request) -> Response:
        return await chat.answer(service, body, http)

    async def text_completions(body: Completion, http: Request) -> Response:
        return await completions.answer(service, body, http)

    async def embeddings(body: Embedding, http: Request) -> Response:
        return await vectors.embeddings(service, body, http)

    async def score(body: Score, http: Request) -> Response:
        return await vectors.score(service, body, http)

    async def rerank(body: Rerank, http: Request) -> Response:
        return await vectors.rerank(service, body, http)

    add = app.router.add_api_route
    add("/v1/models", models, methods=["GET"], route_class_override=Keyed, summary="The models")
    add("/v1/models/{name:path}", model, methods=["GET"], route_class_override=Keyed, summary="A model")
    posts = (
        ("/v1/chat/completions", chat_completions, "The next turn of a conversation"),
        ("/v1/completions", text_completions, "Texts that continue prompts"),
        ("/v1/embeddings", embeddings, "Vectors of texts"),
        ("/v1/score", score, "How well texts answer others"),
        ("/v1/rerank", rerank, "Documents in the order of how well they answer"),
    )
    for path, endpoint, summary in posts:
        add(path, endpoint, methods=["POST"], route_class_override=Keyed, summary=summary)


_LATER: Sequence[tuple[str, str, type[Keyed]]] = (
    ("/v1/responses", "/v1/chat/completions", Keyed),
    ("/v1/messages", "/v1/chat/completions", Keyed),
    ("/generate", "/v1/completions", Keyed),
    ("/generate_stream", "/v1/completions", Keyed),
    ("/tokenize", "", Keyed),
    ("/infer", "/v1/completions", Keyed),
    ("/v1/load_lora_adapter", "", Admin),
    ("/v1/unload_lora_adapter", "", Admin),
)


def _add_later(app: FastAPI) -> None:
    """Paths whose dialects this version does not speak: told plainly, lest one looks for a typing error."""
    for path, instead, kind in _LATER:
        app.router.add_api_route(
            path,
            _later(path, instead),
            methods=["POST"],
            route_class_override=kind,
            include_in_schema=False,
        )


def _later(path: str, instead: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def later() -> Response:
        hint = f"use {instead}" if instead else "a later version will have it"
        raise Refusal(400, f"{path} is not served in this version; {hint}", code="not_served")

    return later
