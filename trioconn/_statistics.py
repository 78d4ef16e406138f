"""What a connector counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._values import Value

if TYPE_CHECKING:
    from ._route import Endpoint, Route


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class HostStatistics(Value):
    """The present state of one endpoint; the fields mean what those of `ConnectorStatistics` do."""

    open: int
    leased: int
    idle: int
    connecting: int
    waiting: int
    oldest_wait: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ConnectorStatistics(Value):
    """The present state of a connector and its totals, as ``connector.statistics()`` returns them.

    Attributes:
      limit: how many connections may be open, 0 for any number.
      limit_per_host: how many per endpoint, 0 for any number.
      open: connections and attempts at this moment: ``leased + idle + connecting``.
      leased: connections that are handed out.
      idle: connections that wait to be used again.
      connecting: attempts, those included that were aborted and have not ended.
      waiting: callers in the queue.
      oldest_wait: seconds that the longest waiting of them has waited, 0.0 if nobody waits.
      created: connections made so far.
      reused: leases of connections that had been used before.
      resumed: connections whose handshake with the target resumed a TLS session.
      aborted: attempts that were given up because nobody needed them.
      failed: failed attempts by stage, as in `ConnectError.stage`; ``"other"`` for foreign exceptions.
      closed: closed connections by reason; the reasons are those of `trioconn.events.REASONS`.
      hosts: `HostStatistics` of each endpoint that has a connection, an attempt or a waiter.
    """

    limit: int
    limit_per_host: int
    open: int
    leased: int
    idle: int
    connecting: int
    waiting: int
    oldest_wait: float
    created: int
    reused: int
    resumed: int
    aborted: int
    failed: Mapping[str, int]
    closed: Mapping[str, int]
    hosts: Mapping[Endpoint, HostStatistics]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LeaseInfo(Value):
    """A lease that is held at this moment.

    Attributes:
      number: of the connection.
      route: whereto.
      seconds: how long it has been held.
      where: file and line that took it.
      stack: how that line was reached, as text; empty unless the connector has ``track_leases=True``.
    """

    number: int
    route: Route
    seconds: float
    where: str
    stack: str
