"""aiohttp's tracing vocabulary, for observers: for people, and dashboards, that come from there.

::

    trace = TraceConfig()
    trace.on_connection_queued_start.append(lambda event: ...)
    trace.on_dns_cache_miss.append(lambda event: print(event.host))
    connector = trioconn.TCPConnector(observers=[trace])

The nine signals about connections have aiohttp's names and come in its order. What is different:

* Receivers are plain functions of one argument, the event: it has the time (``at``) and the ``route``, and of those
  about the DNS the ``host``.
* ``on_connection_queued_start`` is told of every caller that found no idle connection, not only of those that the limit
  makes wait. ``on_connection_queued_end`` follows always, also if nothing came of it: see ``event.outcome``.
* ``on_connection_create_start`` is about an attempt, which serves whoever waits longest when it is finished. One that
  fails has no ``on_connection_create_end``, as there; `trioconn.events.DialFailed` tells of it.

aiohttp itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable

from . import events


class TraceConfig:
    """An observer that passes events on under aiohttp's names. Append receivers to its lists.

    A receiver that raises ends the whole observer, as any observer that raises does.

    Attributes:
      on_connection_queued_start: `events.Queued`: a caller found no idle connection.
      on_connection_queued_end: `events.QueueEnded`: it waits no longer.
      on_connection_create_start: `events.DialStarted`: a connection is being made.
      on_connection_create_end: `events.Created`: it stands.
      on_connection_reuseconn: `events.Reused`: an idle connection was handed out.
      on_dns_resolvehost_start: `events.LookupStarted`: the resolver is asked.
      on_dns_resolvehost_end: `events.LookupFinished`: it answered, or failed.
      on_dns_cache_hit: `events.CacheHit`: the addresses were known.
      on_dns_cache_miss: `events.CacheMiss`: they were not.
    """

    def __init__(self) -> None:
        self.on_connection_queued_start: list[Callable[[events.Queued], object]] = []
        self.on_connection_queued_end: list[Callable[[events.QueueEnded], object]] = []
        self.on_connection_create_start: list[Callable[[events.DialStarted], object]] = []
        self.on_connection_create_end: list[Callable[[events.Created], object]] = []
        self.on_connection_reuseconn: list[Callable[[events.Reused], object]] = []
        self.on_dns_resolvehost_start: list[Callable[[events.LookupStarted], object]] = []
        self.on_dns_resolvehost_end: list[Callable[[events.LookupFinished], object]] = []
        self.on_dns_cache_hit: list[Callable[[events.CacheHit], object]] = []
        self.on_dns_cache_miss: list[Callable[[events.CacheMiss], object]] = []
        self._signals: dict[type[events.Event], list[Callable[..., object]]] = {
            events.Queued: self.on_connection_queued_start,
            events.QueueEnded: self.on_connection_queued_end,
            events.DialStarted: self.on_connection_create_start,
            events.Created: self.on_connection_create_end,
            events.Reused: self.on_connection_reuseconn,
            events.LookupStarted: self.on_dns_resolvehost_start,
            events.LookupFinished: self.on_dns_resolvehost_end,
            events.CacheHit: self.on_dns_cache_hit,
            events.CacheMiss: self.on_dns_cache_miss,
        }

    def __call__(self, event: events.Event) -> None:
        """Pass `event` on. Called by the connector."""
        for receiver in self._signals.get(type(event), ()):
            receiver(event)
