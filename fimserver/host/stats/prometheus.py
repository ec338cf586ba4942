"""Prometheus metrics of a host. No label ever holds text, a path or a user."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from fimserver.host.scheduler import Scheduler
from fimserver.types import Drafting
from fimserver.wire import Usage

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 2, 5, 10)


class Metrics:
    """Metrics of one host, in a separate registry."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        route_reason = ["route", "reason"]
        self._choices = Counter(
            "fimserver_choices", "Answers, by route and how they ended", route_reason, registry=self.registry
        )
        self._tokens = Counter("fimserver_tokens", "Tokens of middles", ["route"], registry=self.registry)
        self._forwards = Counter("fimserver_forwards", "Forward passes", ["route"], registry=self.registry)
        self._rounds = Counter(
            "fimserver_draft_rounds", "Passes of speculative decoding", registry=self.registry
        )
        self._drafted = Counter(
            "fimserver_drafted_tokens", "Tokens that drafters proposed", registry=self.registry
        )
        self._accepted = Counter(
            "fimserver_accepted_tokens",
            "Drafted tokens that stood, by place in the draft",
            ["place"],
            registry=self.registry,
        )
        self._switched_off = Counter(
            "fimserver_drafters_switched_off",
            "Times that a drafter was not asked because it would not pay",
            registry=self.registry,
        )
        self._first = self._histogram("fimserver_ttft_seconds", "Start of work to first text")
        self._total = self._histogram("fimserver_total_seconds", "Start of work to end")
        self._queue = self._histogram("fimserver_queue_seconds", "Arrival to start of work")
        running = Gauge("fimserver_running", "Jobs on the device", registry=self.registry)
        running.set_function(lambda: scheduler.depth[0])
        waiting = Gauge("fimserver_waiting", "Jobs in the queue", registry=self.registry)
        waiting.set_function(lambda: scheduler.depth[1])
        ready = Gauge("fimserver_ready", "1 when the models are loaded", registry=self.registry)
        ready.set_function(lambda: float(scheduler.state is None))

    def observe(self, usage: Usage) -> None:
        """Count one finished choice."""
        if not usage.model:  # it never ran, so it belongs to no route
            self._choices.labels("none", usage.reason).inc()
            return
        self._choices.labels(usage.route, usage.reason).inc()
        self._tokens.labels(usage.route).inc(usage.tokens)
        self._forwards.labels(usage.route).inc(usage.forwards)
        self._queue.labels(usage.route).observe(usage.queue_ms / 1000)
        if usage.drafting:
            self._observe_drafting(usage.drafting)
        if usage.ttft_ms:
            self._first.labels(usage.route).observe(usage.ttft_ms / 1000)
        if usage.total_ms:
            self._total.labels(usage.route).observe(usage.total_ms / 1000)

    def _observe_drafting(self, drafting: Drafting) -> None:
        self._rounds.inc(drafting.rounds)
        self._drafted.inc(drafting.drafted)
        self._switched_off.inc(drafting.switched_off)
        for place, count in enumerate(drafting.accepted, 1):
            self._accepted.labels(place).inc(count)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, words: str) -> Histogram:
        return Histogram(name, words, ["route"], registry=self.registry, buckets=_SECONDS)
