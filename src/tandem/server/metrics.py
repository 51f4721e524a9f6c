"""What Prometheus is told: counts and times of calls, and of each engine what its last step said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem.server.model import ServedModel

_LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The histograms and counters that calls write, and the collector that reads the engines."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.registry = registry = CollectorRegistry()
        self.responses = Counter(
            "tandem_http_responses", "Responses by path and status.", ("path", "status"), registry=registry
        )
        self.calls = Counter(
            "tandem_requests", "Requests to a model, by how they ended.", ("model", "outcome"), registry=registry
        )
        self.prompt_tokens = Counter("tandem_prompt_tokens", "Tokens of prompts.", ("model",), registry=registry)
        self.tokens = Counter("tandem_generated_tokens", "Tokens generated.", ("model",), registry=registry)
        self.first_token = Histogram(
            "tandem_time_to_first_token_seconds", "From the request to its first token.", ("model",),
            buckets=_LATENCIES, registry=registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "tandem_inter_token_seconds", "Between the steps that brought a request's tokens.", ("model",),
            buckets=_STEPS, registry=registry,
        )  # fmt: skip
        self.latency = Histogram(
            "tandem_request_seconds", "From the request to its end.", ("model",), buckets=_LATENCIES, registry=registry
        )
        registry.register(_Engines(models))


class _Engines(Collector):
    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        models = list(self._models)
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=("model",))
            for model in models:
                gauge.add_metric((model.name,), read(model))
            yield gauge
        for name, text, total in _TOTALS:
            counter = CounterMetricFamily(name, text, labels=("model",))
            for model in models:
                counter.add_metric((model.name,), total(model))
            yield counter
        yield _pages(models)
        yield _device_memory(models)
        busy = CounterMetricFamily("tandem_busy_seconds", "Seconds of steps, by lane.", labels=("model", "lane"))
        for model in models:
            for lane, seconds in model.busy.items():
                busy.add_metric((model.name, lane), seconds)
        yield busy


def _pages(models: Iterable[ServedModel]) -> Metric:
    gauge = GaugeMetricFamily("tandem_kv_pages", "Pages by KV group and state.", labels=("model", "group", "state"))
    for model in models:
        for group, pages in enumerate(model.stats.pages if model.stats else ()):
            states = {"used": pages.used, "cached": pages.cached, "free": pages.total - pages.used - pages.cached}
            for state, count in states.items():
                gauge.add_metric((model.name, str(group), state), count)
    return gauge


def _device_memory(models: Iterable[ServedModel]) -> Metric:
    gauge = GaugeMetricFamily(
        "tandem_device_memory_bytes", "Planned bytes by device and use.", labels=("model", "device", "use")
    )
    for model in models:
        for device in model.ready.plan["devices"] if model.ready else ():
            for use in ("weights", "kv", "workspace", "host"):
                gauge.add_metric((model.name, device["device"], use), device[use])
    return gauge


def _of_stats(name: str) -> Callable[[ServedModel], float]:
    return lambda model: getattr(model.stats, name) if model.stats else 0


_GAUGES: tuple[tuple[str, str, Callable[[ServedModel], float]], ...] = (
    ("tandem_model_ready", "Whether the model's engine is ready.", lambda model: model.state == "ready"),
    ("tandem_running_sequences", "Sequences that run.", _of_stats("running")),
    ("tandem_queued_sequences", "Sequences that wait in the engine.", _of_stats("waiting")),
    ("tandem_live_samples", "Samples of all calls, running or queued.", lambda model: model.samples),
    ("tandem_batch_rows", "Rows of the last step.", _of_stats("rows")),
)
_TOTALS: tuple[tuple[str, str, Callable[[ServedModel], float]], ...] = (
    ("tandem_engine_restarts", "Times the engine died and was started again.", lambda model: model.restarts),
    ("tandem_steps", "Steps since the engine started.", _of_stats("steps")),
    ("tandem_step_rows", "Rows of all steps.", lambda model: model.rows),
    ("tandem_prefix_cached_tokens", "Prompt tokens that the prefix cache had.", _of_stats("cached_tokens")),
    ("tandem_preemptions", "Sequences that gave their pages back to be computed again.", _of_stats("preemptions")),
    (
        "tandem_wasted_rows",
        "Rows computed ahead for sequences that had ended or went on otherwise.",
        _of_stats("wasted_rows"),
    ),
    (
        "tandem_whole_logits_rows",
        "Rows of logits that a device which picks candidates had to bring.",
        _of_stats("whole_rows"),
    ),
    ("tandem_step_allocations", "Native allocations of 4 KiB or more, in steps.", _of_stats("allocations")),
    ("tandem_copied_bytes", "KV pages copied on write.", _of_stats("bytes_copied")),
)
