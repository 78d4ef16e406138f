"""Connections for trio: made, secured, pooled, shared fairly, and never lost.

A map of the package, in the order in which a connection comes to be:

* `_route`, `_names`, `_proxy`, and ``_establish/plan``: what was asked for becomes a `Route`, the key of the pool and
  all that is dialled from.
* `_pool`: decides who gets which connection, what to open and what to close. Pure.
* ``_establish``: a route becomes a stream: lookups, the race of addresses, tunnels, TLS.
* `_shell`, `_crew`, `_attempt`, `_watch`: own the tasks, the timers and the sockets.
* `_connector`, `_connectors`, `_connection`: what users hold.
* `events`, `testing`, `happyeyeballs`: public modules. The adapters for other libraries are imported by name.

docs/design.md says why it is so.
"""

from __future__ import annotations

from . import events
from ._connection import Connection, ConnectionInfo, HalfCloseableLeasedStream, LeasedStream, TLSInfo
from ._connector import BaseConnector
from ._connectors import NamedPipeConnector, TCPConnector, UnixConnector
from ._errors import (
    AddressDeniedError,
    CertificateError,
    ConnectError,
    ConnectorClosedError,
    ConnectorError,
    ConnectTimeoutError,
    FingerprintMismatchError,
    InvalidTargetError,
    NamedPipeConnectError,
    ProxyConnectError,
    ProxyError,
    ProxyRefusedError,
    ResolveError,
    TLSError,
    UnixConnectError,
)
from ._establish.dial import start_tls
from ._establish.dns_cache import ResolveResult
from ._establish.dns_resolver import DNSResolver
from ._establish.environment import proxy_for
from ._establish.policy import public_addresses_only
from ._establish.resolve import Resolver
from ._establish.system_resolver import SystemResolver
from ._establish.tls import TLSStream
from ._proxy import Proxy, ProxyChoice
from ._route import Fingerprint, Route
from ._statistics import ConnectorStatistics, HostStatistics, LeaseInfo

__version__ = "0.1.0"

__all__ = [
    "AddressDeniedError",
    "BaseConnector",
    "CertificateError",
    "ConnectError",
    "ConnectTimeoutError",
    "Connection",
    "ConnectionInfo",
    "ConnectorClosedError",
    "ConnectorError",
    "ConnectorStatistics",
    "DNSResolver",
    "Fingerprint",
    "FingerprintMismatchError",
    "HalfCloseableLeasedStream",
    "HostStatistics",
    "InvalidTargetError",
    "LeaseInfo",
    "LeasedStream",
    "NamedPipeConnectError",
    "NamedPipeConnector",
    "Proxy",
    "ProxyChoice",
    "ProxyConnectError",
    "ProxyError",
    "ProxyRefusedError",
    "ResolveError",
    "ResolveResult",
    "Resolver",
    "Route",
    "SystemResolver",
    "TCPConnector",
    "TLSError",
    "TLSInfo",
    "TLSStream",
    "UnixConnectError",
    "UnixConnector",
    "events",
    "proxy_for",
    "public_addresses_only",
    "start_tls",
]
