"""Prometheus figures: the engine's own counts read at every scrape, and times per request.

Names are vLLM's where the meaning is the same, behind a prefix of the operator's choice. Counts
of tokens and drafts go up with every round, histograms with every text: its beginning wherever
there was one, its whole where it ended by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from paceline import EngineStats
from paceline.server.gate import Gate
from paceline.server.generation import Generation
from paceline.server.record import Record

_MODEL = "model_name"
_PATHS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/warm", "/tokenize",
          "/detokenize")  # fmt: skip
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
          10.0, 20.0, 40.0, 80.0, 160.0, 640.0)  # fmt: skip
_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
          0.75, 1.0, 2.5)  # fmt: skip
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
          60.0, 120.0, 240.0, 480.0, 960.0)  # fmt: skip
_REASONS = {"cancelled": "abort"}  # vLLM's word for it
_DRAFTED = {
    "draft": "Tokens drafted",
    "evaluated": "Draft tokens tested",
    "accepted": "Draft tokens accepted",
}
_SHARE = tuple(n / 10 for n in range(1, 11))
_TOKENS = tuple(float(1 << power) for power in range(15))


class EngineCollector(Collector):
    """`Engine.stats()` as metric families."""

    def __init__(
        self, stats: Callable[[], EngineStats], gate: Gate, prefix: str, model: str
    ) -> None:
        self._stats, self._gate, self._prefix, self._model = stats, gate, prefix, model

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the engine."""
        return []

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield from self._state(stats)
        yield from self._work(stats)
        yield from self._drafts(stats)

    def _state(self, stats: EngineStats) -> Iterable[Metric]:
        gauge = self._gauge
        yield gauge("num_requests_running", "Texts being written", stats.running)
        yield gauge("num_requests_waiting", "Texts waiting for a slot", stats.waiting)
        usage = stats.pages_used / stats.pages if stats.pages else 0.0
        yield gauge("kv_cache_usage_perc", "Share of the cache's pages in use, 0 to 1", usage)
        pages = GaugeMetricFamily(f"{self._prefix}:kv_cache_pages", "Pages of the cache by state",
                                  labels=[_MODEL, "state"])  # fmt: skip
        free = stats.pages - stats.pages_used - stats.pages_cached
        counts = (("used", stats.pages_used), ("cached", stats.pages_cached), ("free", free))
        for state, count in counts:
            pages.add_metric([self._model, state], max(0, count))
        yield pages
        yield gauge("draining", "1 while the server takes no requests", not self._gate.ready)

    def _work(self, stats: EngineStats) -> Iterable[Metric]:
        counter = self._counter
        yield counter("num_preemptions", "Texts that gave their pages back", stats.preemptions)
        yield counter("prompt_tokens", "Tokens of prompts", stats.prompt_tokens)
        yield counter("generation_tokens", "Tokens written", stats.emitted)
        yield counter("prefix_cache_queries", "Prompt tokens looked up", stats.prefix_asked)
        yield counter("prefix_cache_hits", "Prompt tokens found there", stats.prefix_hits)
        yield counter("rounds", "Rounds of the engine", stats.rounds)
        for name, seconds in (
            ("prefill", stats.prefill_seconds),
            ("decode", stats.decode_seconds),
            ("draft", stats.draft_seconds),
            ("verify", stats.verify_seconds),
        ):
            yield counter(f"{name}_seconds", f"The engine's seconds in {name}", seconds)
        yield counter(
            "wasted_seconds",
            "Of the seconds in draft and verify, the share of draft tokens not accepted",
            stats.wasted_seconds,
        )
        yield self._labelled(
            "requests_refused", "Requests refused", "reason", self._gate.refused.items()
        )

    def _drafts(self, stats: EngineStats) -> Iterable[Metric]:
        counter, evaluated = self._counter, stats.evaluated_by_position
        drafts = evaluated[0] if evaluated else 0
        yield counter("spec_decode_num_drafts", "Drafts verified", drafts)
        yield counter("spec_decode_num_draft_tokens", "Tokens drafted", stats.drafted)
        yield counter("spec_decode_num_accepted_tokens", "Draft tokens accepted", stats.accepted)
        yield counter(
            "spec_decode_num_evaluated_tokens",
            "Draft tokens tested: all before them were accepted",
            stats.evaluated,
        )
        wasted = stats.drafted - stats.accepted
        yield counter("spec_decode_num_wasted_tokens", "Draft tokens not accepted", wasted)
        for name, counts in (
            ("accepted", stats.accepted_by_position),
            ("evaluated", stats.evaluated_by_position),
        ):
            yield self._labelled(
                f"spec_decode_num_{name}_tokens_per_pos",
                f"Draft tokens {name}, by their place in the draft",
                "position",
                [(str(place), count) for place, count in enumerate(counts)],
            )
        for name, by_source in (
            ("draft", stats.drafted_by_source),
            ("evaluated", stats.evaluated_by_source),
            ("accepted", stats.accepted_by_source),
        ):
            yield self._labelled(
                f"spec_decode_num_{name}_tokens_per_drafter",
                f"{_DRAFTED[name]}, by the drafter that proposed them",
                "drafter",
                sorted(by_source.items()),
            )
        yield self._labelled(
            "spec_decode_num_rounds_per_k",
            "Rounds by the draft tokens chosen for them; 0 is plain decoding",
            "k",
            [(str(k), count) for k, count in enumerate(stats.rounds_by_k)],
        )

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=[_MODEL])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"{self._prefix}:{name}", text, labels=[_MODEL])
        family.add_metric([self._model], value)
        return family

    def _labelled(
        self, name: str, text: str, label: str, values: Iterable[tuple[str, float]]
    ) -> Metric:
        family = CounterMetricFamily(f"{self._prefix}:{name}", text, labels=[_MODEL, label])
        for value, count in values:
            family.add_metric([self._model, value], count)
        return family


class Metrics:
    """The server's registry, and what is observed at the end of each request."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(
        self, stats: Callable[[], EngineStats], gate: Gate, prefix: str, model: str
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._model = model
        registry.register(EngineCollector(stats, gate, prefix, model))
        ProcessCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"{prefix}:{name}", text, [_MODEL], buckets=buckets, registry=registry)
            return made.labels(model)

        self._first = histogram("time_to_first_token_seconds", "From request to text", _FIRST)
        self._token = histogram(
            "request_time_per_output_token_seconds", "Seconds a token after the first", _TOKEN
        )
        self._whole = histogram("e2e_request_latency_seconds", "From request to end", _WHOLE)
        self._queue = histogram("request_queue_time_seconds", "Until there was a slot", _WHOLE)
        self._prefill = histogram("request_prefill_time_seconds", "Slot to text", _WHOLE)
        self._decode = histogram("request_decode_time_seconds", "First text to last", _WHOLE)
        self._prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._written = histogram("request_generation_tokens", "Tokens of a text", _TOKENS)
        self._acceptance = histogram(
            "request_spec_decode_acceptance_rate", "Of a text's tested draft tokens those accepted",
            _SHARE,
        )  # fmt: skip
        self._success = Counter(
            f"{prefix}:request_success", "Texts that ended", [_MODEL, "finished_reason"],
            registry=registry,
        )  # fmt: skip
        self._requests = Counter(
            f"{prefix}:http_requests", "Requests answered", ["path", "status"], registry=registry
        )

    def ended(self, generation: Generation) -> None:
        """Observe the texts of a request that ended."""
        for text in generation.texts:
            reason = text.finish or "cancelled"
            self._success.labels(self._model, _REASONS.get(reason, reason)).inc()
            if text.first_at is None:
                continue
            # Also of a text that its reader gave up: those that waited long are among them.
            queued = text.stats.queue_seconds
            self._first.observe(text.first_at - generation.began)
            self._queue.observe(queued)
            self._prefill.observe(max(0.0, text.first_at - text.submitted - queued))
            if text.finish not in ("stop", "length"):
                continue
            self._whole.observe(text.last_at - generation.began)
            self._written.observe(text.tokens)
            self._decode.observe(text.last_at - text.first_at)
            if text.token_seconds is not None:
                self._token.observe(text.token_seconds)
            if text.stats.acceptance_rate is not None:
                self._acceptance.observe(text.stats.acceptance_rate)
        for prompt in generation.ask.prompts:
            self._prompt.observe(len(prompt))

    def answered(self, record: Record) -> None:
        """Count a request by its path and status; unknown paths are one."""
        path = record.path if record.path in _PATHS else "other"
        self._requests.labels(path, str(record.status)).inc()

    def text(self) -> bytes:
        """The figures, as Prometheus reads them."""
        return generate_latest(self._registry)
