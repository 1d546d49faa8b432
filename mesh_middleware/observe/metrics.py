"""Prometheus metrics, made from `Report`s when somebody asks.

Needs the extra ``metrics`` (prometheus-client). Nothing is registered by importing this module:

>>> from prometheus_client import CollectorRegistry, generate_latest
>>> from mesh_middleware.testing import static_mesh
>>> registry = CollectorRegistry()
>>> register(static_mesh("api"), registry)
>>> b"mesh_generation" in generate_latest(registry)
True

Labels are bounded: outcome and reason are words of ours, the source is a service that a
certificate proves (see `observe.counts`), the worker a number. Never a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh_middleware.observe.report import Report, Reporter
from mesh_middleware.state import StateSource

Reports = Callable[[], Sequence[tuple[str, Report]]]
"""The newest report of each worker, by the worker's name."""


class MeshCollector(Collector):
    """The metrics of docs/reference/metrics.md from what `reports` gives when asked."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def describe(self) -> Iterable[Metric]:
        """Empty: registering must not ask for reports."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric with its values now."""
        found = self._reports()
        yield from _counters([report for _, report in found])
        yield from _gauges(found)


def register(mesh: StateSource, registry: CollectorRegistry) -> None:
    """Add this process's metrics about `mesh` to `registry`, and count from now on.

    ValueError from prometheus-client when they are there already.
    """
    reporter = Reporter(mesh)
    registry.register(MeshCollector(lambda: [("0", reporter.report())]))


def exposition(reports: Reports) -> bytes:
    """The text format 0.0.4 of these metrics alone."""
    registry = CollectorRegistry()
    registry.register(MeshCollector(reports))
    return generate_latest(registry)


def _counters(reports: Sequence[Report]) -> Iterator[Metric]:
    decisions: Counter[tuple[str, ...]] = Counter()
    handshakes: Counter[tuple[str, ...]] = Counter()
    rotations: Counter[tuple[str, ...]] = Counter()
    for report in reports:
        for outcome, reason, source, count in report.decisions:
            decisions[report.service, outcome, reason, source] += count
        for side, reason, count in report.handshakes:
            handshakes[report.service, side, reason] += count
        rotations[report.service,] += report.rotations
    families: tuple[tuple[str, str, tuple[str, ...], Counter[tuple[str, ...]]], ...] = (
        (
            "mesh_decisions",
            "Requests and WebSockets decided.",
            ("service", "decision", "reason", "source"),
            decisions,
        ),
        (
            "mesh_handshake_refusals",
            "Peers refused during the TLS handshake.",
            ("service", "side", "reason"),
            handshakes,
        ),
        ("mesh_rotations", "Certificates replaced by newer ones.", ("service",), rotations),
    )
    for name, text, labels, counter in families:
        family = CounterMetricFamily(name, text, labels=labels)
        for key, count in sorted(counter.items()):
            family.add_metric(key, count)
        yield family


def _gauges(reports: Sequence[tuple[str, Report]]) -> Iterator[Metric]:
    labels = ("service", "worker")
    generation = GaugeMetricFamily("mesh_generation", "Of the mesh state.", labels=labels)
    ready = GaugeMetricFamily("mesh_ready", "1 when requests can be decided.", labels=labels)
    intentions = GaugeMetricFamily("mesh_intentions", "Intentions known.", labels=labels)
    expires = GaugeMetricFamily(
        "mesh_leaf_expiry_timestamp_seconds", "When our certificate ends.", labels=labels
    )
    answered = GaugeMetricFamily(
        "mesh_agent_answer_timestamp_seconds",
        "When the Consul agent gave its last good answer.",
        labels=(*labels, "part"),
    )
    errors = GaugeMetricFamily(
        "mesh_agent_failing", "1 for what fails now.", labels=(*labels, "part")
    )
    for worker, report in reports:
        which = (report.service, worker)
        generation.add_metric(which, report.generation)
        ready.add_metric(which, not report.missing)
        intentions.add_metric(which, report.intentions)
        if report.leaf_expires is not None:
            expires.add_metric(which, report.leaf_expires)
        for part, at in sorted(report.updated.items()):
            answered.add_metric((*which, part), at)
        for part in sorted(report.errors):
            errors.add_metric((*which, part), 1)
    yield from (generation, ready, intentions, expires, answered, errors)
