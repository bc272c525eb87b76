"""What Prometheus reads: values under our names, and the same under those that boards exist for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from oneroof.engine.stats import Stats

_SECONDS = (
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.15,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

# Our name without its head -> the same value's names elsewhere.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "requests_running": ("vllm:num_requests_running", "tgi_batch_current_size"),
    "requests_waiting": ("vllm:num_requests_waiting", "tgi_queue_size"),
    "cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "prompt_tokens_begun": ("vllm:prefix_cache_queries",),
    "cached_tokens": ("vllm:prefix_cache_hits",),
    "preemptions": ("vllm:num_preemptions",),
    "prompt_tokens": ("vllm:prompt_tokens",),
    "generation_tokens": ("vllm:generation_tokens",),
    "requests_finished": ("vllm:request_success", "tgi_request_success"),
    "requests_begun": ("tgi_request_count",),
    "time_to_first_token_seconds": ("vllm:time_to_first_token_seconds",),
    "inter_token_seconds": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "tgi_request_mean_time_per_token_duration",
    ),
    "request_seconds": ("vllm:e2e_request_latency_seconds", "tgi_request_duration"),
    "request_prompt_tokens": ("vllm:request_prompt_tokens", "tgi_request_input_length"),
    "request_generation_tokens": ("vllm:request_generation_tokens", "tgi_request_generated_tokens"),
}
_HEAD = "oneroof_"


class Metrics:
    """The values of one server."""

    def __init__(self, model: str) -> None:
        """`model` is the label that boards choose by."""
        self._registry = CollectorRegistry()
        self._model = model
        self._stats: Stats | None = None
        self.began = time.time()

        def histogram(name: str, told: str, buckets: Iterable[float]) -> Histogram:
            made = Histogram(
                _HEAD + name, told, ["model_name"], registry=self._registry, buckets=tuple(buckets)
            )
            return made.labels(model)

        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request to its first token", _SECONDS
        )
        self.between_tokens = histogram("inter_token_seconds", "From one token to the next", _SECONDS)
        self.seconds = histogram("request_seconds", "From a request to its end", _SECONDS)
        self.prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.answer = histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)
        self._finished = self._counter("requests_finished", "Requests by why they ended", "finished_reason")
        self._answers = self._counter("http_answers", "Answers by route and status", "route", "status")
        self.begun = self._counter("requests_begun", "Requests that were taken on").labels(model)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts").labels(model)
        self.tokens = self._counter("generation_tokens", "Tokens that were made").labels(model)
        self.ready = Gauge(_HEAD + "ready", "1 once a token was made", registry=self._registry)
        self._registry.register(_EngineValues(self))

    def finished(self, reason: str) -> None:
        """A request is over: stop, length, error, abort or timeout."""
        self._finished.labels(self._model, reason).inc()

    def answered(self, route: str, status: int) -> None:
        """An answer has gone out."""
        self._answers.labels(self._model, route, str(status)).inc()

    def text(self, stats: Stats | None) -> bytes:
        """The page; `stats` are the engine's, None where it could not be asked: then the last that were."""
        self._stats = stats or self._stats
        ours = list(self._registry.collect())
        return generate_latest(_Given([*map(_without_created, ours), *_aliased(ours)]))

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(_HEAD + name, told, ["model_name", *labels], registry=self._registry)

    def engine_values(self) -> Iterable[Metric]:
        """What the engine itself counts."""
        stats = self._stats
        if stats is None:
            return
        used = stats.pages - stats.pages_free - stats.pages_cached
        gauges = {
            "requests_running": (stats.running, "Texts that are written now"),
            "requests_waiting": (stats.waiting, "Requests that wait for their turn"),
            "cache_usage_ratio": (used / max(stats.pages, 1), "Share of the cache's pages that are held"),
            "cache_pages": (stats.pages, "Pages of the cache"),
            "cache_pages_used": (used, "Pages that a text holds"),
            "cache_pages_cached": (stats.pages_cached, "Pages kept for prompts that begin alike"),
        }
        counters = {
            "prompt_tokens_begun": (stats.prompt_tokens, "Tokens of prompts that began to run"),
            "cached_tokens": (stats.cached_tokens, "Tokens of prompts that had been read before"),
            "preemptions": (stats.preemptions, "Texts that gave their pages up for a while"),
            "steps": (stats.steps, "Steps of the engine"),
            "requests_aborted": (stats.aborted, "Requests whose client has left"),
            "requests_failed": (stats.failed, "Requests that failed"),
        }
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, (value, told) in values.items():
                metric = Metric(_HEAD + name, told, kind)
                suffix = "_total" if kind == "counter" else ""
                metric.add_sample(_HEAD + name + suffix, {"model_name": self._model}, value)
                yield metric


class _EngineValues(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.engine_values()

    def describe(self) -> Iterable[Metric]:
        return []


class _Given(CollectorRegistry):
    """Families as they are given."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _without_created(metric: Metric) -> Metric:
    return _renamed(metric, metric.name)


def _aliased(ours: Iterable[Metric]) -> Iterable[Metric]:
    for metric in ours:
        for name in ALIASES.get(metric.name.removeprefix(_HEAD), ()):
            yield _renamed(metric, name)


def _renamed(metric: Metric, name: str) -> Metric:
    """`metric` under `name`; TGI's counters do not end in _total."""
    bare = name.startswith("tgi_") and metric.type == "counter"
    made = Metric(name, metric.documentation, "unknown" if bare else metric.type)
    for sample in metric.samples:
        suffix = sample.name.removeprefix(metric.name)
        if suffix != "_created":
            made.add_sample(name + ("" if bare else suffix), sample.labels, sample.value)
    return made
