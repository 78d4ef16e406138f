"""Metrics for OpenTelemetry: ``TCPConnector(observers=[trioconn.opentelemetry.MetricsObserver()])``.

The names are those of the semantic conventions 1.44 (their status there: development), and .NET's for the time in the
queue, which has none there yet. Instruments are made once per process and meter provider: a set of them for each
connector would be kept for ever by the SDK (open-telemetry/opentelemetry-python-contrib#4991).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from trioconn import Route, events

try:
    from opentelemetry import metrics
except ImportError as _error:
    raise ImportError(
        "trioconn.opentelemetry needs opentelemetry-api: pip install 'trioconn[opentelemetry]'"
    ) from _error

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    Attributes = dict[str, str | int]

__all__ = ["MetricsObserver"]

OPEN_CONNECTIONS = "http.client.open_connections"
CONNECTION_DURATION = "http.client.connection.duration"
TIME_IN_QUEUE = "http.client.request.time_in_queue"
LOOKUP_DURATION = "dns.lookup.duration"

_DURATIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_QUEUE = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class _Instruments:
    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("trioconn")
        self.open = meter.create_up_down_counter(
            OPEN_CONNECTIONS, unit="{connection}", description="Connections that are open, active or idle."
        )
        self.duration = meter.create_histogram(
            CONNECTION_DURATION,
            unit="s",
            description="How long connections lasted.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self.queue = meter.create_histogram(
            TIME_IN_QUEUE,
            unit="s",
            description="How long requests waited for a connection.",
            explicit_bucket_boundaries_advisory=_QUEUE,
        )
        self.lookup = meter.create_histogram(
            LOOKUP_DURATION,
            unit="s",
            description="How long lookups of names took.",
            explicit_bucket_boundaries_advisory=_QUEUE,
        )


_made: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()


class MetricsObserver:
    """An observer that records the standard metrics of HTTP clients. One may serve several connectors.

    ``http.client.open_connections`` {connection}, by ``http.connection.state`` (``active``, ``idle``);
    ``http.client.connection.duration`` s; ``http.client.request.time_in_queue`` s, for requests that found no idle
    connection; ``dns.lookup.duration`` s, by ``dns.question.name`` and, where it failed, ``error.type``. All but the
    last carry ``server.address``, ``server.port`` and ``url.scheme``: those of the target, or of the proxy that
    forwards.

    Args:
      meter_provider: default: the global one.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
        instruments = _made.get(provider)
        if instruments is None:
            instruments = _made[provider] = _Instruments(provider)
        self._instruments = instruments
        self._attributes: dict[Route, Attributes] = {}
        # Numbers are counted per connector, and equal routes may be of several: `maker` tells whose they are.
        self._states: dict[tuple[object, int], str] = {}
        self._lookups: dict[tuple[object, int], dict[str, float]] = {}
        self._waiting: Counter[tuple[object, Route]] = Counter()
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.Queued: self._queued,
            events.QueueEnded: self._queue_ended,
            events.LookupStarted: self._lookup_started,
            events.LookupFinished: self._lookup_finished,
            events.Created: self._created,
            events.DialFailed: self._dial_ended,
            events.DialAborted: self._dial_ended,
            events.Reused: self._reused,
            events.Released: self._released,
            events.Closed: self._closed,
        }

    def __call__(self, event: events.Event) -> None:
        """Record `event`."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _of(self, route: Route) -> Attributes:
        known = self._attributes.get(route)
        if known is None:
            if len(self._attributes) >= 1000:
                self._attributes.clear()
            made: Attributes = {"server.address": route.host or route.path or "", "url.scheme": route.scheme}
            if route.port is not None:
                made["server.port"] = route.port
            known = self._attributes[route] = made
        return known

    # Whether a connection is active or idle follows from the events in their order; a new one is active if somebody
    # waits for it.

    def _enter(self, event: events.ConnectionEvent, state: str | None) -> None:
        key = (event.route.maker, event.connection)
        before = self._states.pop(key, None)
        if state is not None:
            self._states[key] = state
        attributes = self._of(event.route)
        for name, change in ((before, -1), (state, 1)):
            if name is not None:
                self._instruments.open.add(change, {**attributes, "http.connection.state": name})

    def _queued(self, event: events.Queued) -> None:
        self._waiting[event.route.maker, event.route] += 1

    def _queue_ended(self, event: events.QueueEnded) -> None:
        key = (event.route.maker, event.route)
        self._waiting[key] -= 1
        if self._waiting[key] <= 0:
            del self._waiting[key]
        self._instruments.queue.record(event.waited, self._of(event.route))

    def _created(self, event: events.Created) -> None:
        self._lookups.pop((event.route.maker, event.dial), None)
        self._enter(event, "active" if self._waiting[event.route.maker, event.route] > 0 else "idle")

    def _dial_ended(self, event: events.DialFailed | events.DialAborted) -> None:
        self._lookups.pop((event.route.maker, event.dial), None)

    def _reused(self, event: events.Reused) -> None:
        self._enter(event, "active")

    def _released(self, event: events.Released) -> None:
        self._enter(event, "idle")

    def _closed(self, event: events.Closed) -> None:
        self._enter(event, None)
        self._instruments.duration.record(event.age, self._of(event.route))

    def _lookup_started(self, event: events.LookupStarted) -> None:
        self._lookups.setdefault((event.route.maker, event.dial), {})[event.host] = event.at

    def _lookup_finished(self, event: events.LookupFinished) -> None:
        began = self._lookups.get((event.route.maker, event.dial), {}).pop(event.host, None)
        if began is not None:
            attributes: Attributes = {"dns.question.name": event.host}
            if event.error is not None:
                attributes["error.type"] = "ResolveError"  # the text of the error has as many values as there are hosts
            self._instruments.lookup.record(event.at - began, attributes)
