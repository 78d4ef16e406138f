"""What a connection is to: first hop, steps, and the `Route` that is both the key of the pool and all we dial from.

Theory of operation
-------------------
Pools have leaked connections between callers again and again because the key was computed in one place and the
connection made in another: an option was dialled with and not keyed. Here one frozen object is both. Planning
(``_establish/plan.py``) turns a target and every option into a `Route`; establishing reads nothing else. So whatever
decides whom we talk to, as whom, over what and how far trusted is compared, by value, when a connection is reused.

A route is a *first hop* (TCP, Unix socket, pipe, or a connector's own ``create_stream``) and *steps* that each turn a
stream into another stream: `ConnectStep`, `SocksStep`, `TLSStep`. TLS in TLS is two TLS steps with a tunnel between.

Absence is a value: no login is unequal to an empty one. Secrets and paths are compared byte for byte and never shown.
An `ssl.SSLContext` cannot be compared by value (Python cannot show its certificates): it counts by identity, with a
strong reference so that the identity cannot be recycled, and with a snapshot of the policy that can be read.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from hashlib import sha256, sha384, sha512
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias, cast

from ._errors import InvalidTargetError, shown
from ._values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._names import Host

Isolation: TypeAlias = "str | bytes | int | tuple[Isolation, ...]"
"""An opaque partition of the pool: connections are never shared between two different values."""

Endpoint: TypeAlias = "tuple[str, int, bool] | str"
"""Whom a lease speaks to: (host, port, TLS) of the target or of the forwarding proxy; a path for Unix and pipes."""

HeaderPairs: TypeAlias = "tuple[tuple[bytes, bytes], ...]"

_ALGORITHMS: Final = {32: sha256, 48: sha384, 64: sha512}
_REFUSED: Final = {16: "MD5", 20: "SHA-1"}
TARGET: Final = -1
"""The number of the target among the hops; proxies are counted from 0."""


@dataclass(frozen=True, slots=True, init=False)
class Fingerprint:
    """A pin: the digest that the peer's leaf certificate (its DER form) must have.

    Without a `context` the pin alone decides: neither issuer nor name nor dates are looked at. With one, both are
    enforced. A pinned connection never resumes a TLS session, since a resumed one shows the remembered certificate.

    Args:
      digest: 32, 48 or 64 bytes (SHA-256, SHA-384, SHA-512), or the same in hexadecimal, with or without colons.
      context: an `ssl.SSLContext` that has to be satisfied as well.

    Raises:
      ValueError: the digest is of no accepted length; MD5 and SHA-1 are refused by name.
      TypeError: an argument is of the wrong type.
    """

    digest: bytes
    context: ssl.SSLContext | None = field(repr=False)

    def __init__(self, digest: bytes | str, *, context: ssl.SSLContext | None = None) -> None:
        if isinstance(digest, str):
            try:
                digest = bytes.fromhex(digest.replace(":", ""))
            except ValueError:
                raise ValueError(f"a fingerprint in hexadecimal digits is needed, not {shown(digest)!r}") from None
        elif not isinstance(digest, bytes):
            raise TypeError(f"digest must be bytes or a str of hexadecimal digits, not {type(digest).__name__}")
        if context is not None and not isinstance(context, ssl.SSLContext):
            raise TypeError(f"context must be an ssl.SSLContext or None, not {type(context).__name__}")
        if len(digest) not in _ALGORITHMS:
            name = _REFUSED.get(len(digest))
            raise ValueError(
                f"{name} fingerprints are insecure: use the SHA-256 of the certificate"
                if name
                else f"a SHA-256, SHA-384 or SHA-512 digest has 32, 48 or 64 bytes, this one has {len(digest)}"
            )
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "context", context)

    def digest_of(self, certificate: bytes) -> bytes:
        """The digest of a certificate (DER) by this pin's algorithm."""
        return _ALGORITHMS[len(self.digest)](certificate).digest()

    def matches(self, certificate: bytes) -> bool:
        """Whether `certificate` (DER) is the pinned one. An empty one never is."""
        return bool(certificate) and compare_digest(self.digest, self.digest_of(certificate))


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A value that takes part in comparisons and is never shown."""

    value: Any

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DefaultTrust(Value):
    """A context that this library makes: with the system's authorities, or verifying nothing."""

    verified: bool

    def is_current(self) -> bool:
        """Always: nobody else gets hold of these contexts."""
        return True


@dataclass(frozen=True, slots=True, eq=False)
class ContextTrust:
    """A caller's context, by identity, with what could be read of its policy when the route was made."""

    context: ssl.SSLContext = field(repr=False)
    policy: tuple[object, ...]
    authorities: int

    @classmethod
    def of(cls, context: ssl.SSLContext) -> ContextTrust:
        """Snapshot `context` as it is now."""
        return cls(context, _policy(context), context.cert_store_stats()["x509_ca"])

    def is_current(self) -> bool:
        """Whether the readable policy is still the one of the snapshot.

        The number of authorities is left out: OpenSSL loads them from a directory as it meets them.
        """
        return _policy(self.context) == self.policy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ContextTrust):
            return NotImplemented
        return self.context is other.context and (self.policy, self.authorities) == (other.policy, other.authorities)

    def __hash__(self) -> int:
        return hash((id(self.context), self.policy))


Trust: TypeAlias = DefaultTrust | ContextTrust


def _policy(context: ssl.SSLContext) -> tuple[object, ...]:
    return (
        context.verify_mode,
        context.check_hostname,
        context.verify_flags,
        context.minimum_version,
        context.maximum_version,
        context.options,
        getattr(context, "hostname_checks_common_name", None),
    )


# First hops


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TCPHop(Value):
    """A TCP connection to `host`, raced over its addresses, bound to `local_addr` if given."""

    host: Host
    port: int
    local_addr: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class UnixHop(Value):
    """A Unix socket: an absolute path, or a Linux abstract name that begins with NUL."""

    path: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PipeHop(Value):
    """A Windows named pipe."""

    path: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CustomHop(Value):
    """What a connector's own ``create_stream`` makes, TLS included."""

    host: Host | None
    port: int | None


FirstHop: TypeAlias = TCPHop | UnixHop | PipeHop | CustomHop


# Steps: each turns a stream into a stream. `hop` says whose step it is: a proxy's number, or TARGET.


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TLSStep(Value):
    """A TLS handshake with a proxy or with the target.

    `server_name` is used for SNI and for verification: an A-label or an IP address, None for neither. `alpn` is
    offered by contexts that we make; a caller's context brings its own.
    """

    trust: Trust
    server_name: str | None
    alpn: tuple[str, ...] = ()
    pin: bytes | None = None
    hop: int = TARGET


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ConnectStep(Value):
    """An HTTP CONNECT to `host`:`port`. `headers` are for the proxy alone and hold its login, if it has one."""

    host: Host
    port: int
    auth: Secret | None
    headers: Secret
    hop: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SocksStep(Value):
    """A SOCKS request for `host`:`port`. Only `socks5` resolves the name here; the others let the proxy do it."""

    kind: Literal["socks4a", "socks5", "socks5h"]
    host: Host
    port: int
    auth: Secret | None
    hop: int


Step: TypeAlias = TLSStep | ConnectStep | SocksStep


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Hop(Value):
    """A proxy as a route holds it, fit to be shown: no login, no headers."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Route:
    """All that decides what a connection is to. Made by ``connector.route(...)``, accepted by that connector only.

    Two routes are equal if and only if a connection of one may serve the other. A route cannot be changed and its repr
    shows no secret.

    Attributes:
      scheme: ``"http"``, ``"https"``, ``"ws"``, ``"wss"``, ``"tcp"``, ``"tls"``, ``"unix"``, ``"npipe"``.
      host: A-label or IP address whom the stream reaches; the proxy's own where requests are forwarded, since such a
        connection serves every origin behind it; None where no host was named (Unix sockets, pipes).
      port: its port, or None.
      is_ssl: whether the stream is TLS to the target.
      endpoint: whom the lease speaks to; ``limit_per_host`` counts by it.
      server_name: the name used for SNI and verification of the target, or None.
      alpn_protocols: what is offered to the target, in order.
      proxies: the proxies on the way, without their secrets.
      local_addr: (host, port) the socket is bound to, or None.
      path: the path of a Unix socket or pipe, or None.
      isolation: the caller's partition, or None.
      forwarded: whether requests go to a proxy in absolute form.
    """

    scheme: str
    host: str | None
    port: int | None
    is_ssl: bool
    endpoint: Endpoint
    server_name: str | None = None
    alpn_protocols: tuple[str, ...] = ()
    proxies: tuple[Hop, ...] = ()
    local_addr: tuple[str, int] | None = None
    path: str | None = None
    isolation: Isolation | None = None
    forwarded: bool = False
    first: FirstHop
    steps: tuple[Step, ...] = ()
    request_headers: Secret | None = None
    maker: object = None
    # Derived once: both are read on every hand-out. The key is not kept: it is asked for only where two routes have the
    # same hash and are not the same, and would be a fifth of what a route takes.
    contexts: tuple[ContextTrust, ...] = field(init=False)
    _hash: int = field(init=False)

    def __post_init__(self) -> None:
        trusts = [step.trust for step in self.steps if isinstance(step, TLSStep)]
        contexts = tuple(trust for trust in trusts if isinstance(trust, ContextTrust))
        object.__setattr__(self, "contexts", contexts)
        object.__setattr__(self, "_hash", hash(self._key()))

    def _key(self) -> tuple[object, ...]:
        # Everything else that can be read is derived from these. A test holds that.
        return (
            self.scheme,
            self.host,
            self.port,
            self.is_ssl,
            self.endpoint,
            self.first,
            self.steps,
            self.proxies,
            self.forwarded,
            self.request_headers,
            None if self.isolation is None else _typed(self.isolation),
        )

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Route):
            return NotImplemented
        return self._hash == other._hash and self._key() == other._key()

    def __copy__(self) -> Route:
        return self

    def __deepcopy__(self, memo: object) -> Route:
        return self  # it cannot change, and a copy with another maker would be accepted by nobody

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Route cannot be pickled: it holds secrets, and is accepted by its own connector only")

    def __repr__(self) -> str:
        return f"<Route {self}>"

    def __str__(self) -> str:
        if self.path is not None:
            where = f"{self.scheme}+{self.path!r}" + (f" host {self.host}" if self.host else "")
        else:
            host = f"[{self.host}]" if self.host and ":" in self.host else self.host
            where = f"{self.scheme}://{host}:{self.port}"
        via = "".join(f" via {proxy}" for proxy in self.proxies)
        return where + via + (" (forwarded)" if self.forwarded else "")

    def changed_contexts(self) -> Iterator[ContextTrust]:
        """The contexts whose policy is no longer what it was when the route was made."""
        return (trust for trust in self.contexts if not trust.is_current())


def _typed(value: Isolation) -> tuple[object, ...]:
    """`value` with its types, so that 1, True and "1" are three values."""
    if isinstance(value, tuple):
        return ("tuple", tuple(_typed(part) for part in value))
    return (type(value).__name__, value)


def check_isolation(value: object) -> Isolation | None:
    """`value` itself if it may partition a pool.

    Raises:
      TypeError: it is, or contains, something else than str, bytes, int or tuples of these.
    """
    if value is None or _is_isolation(value):
        return value  # type: ignore[return-value]  # narrowed by _is_isolation, recursively
    raise TypeError(f"isolation must be str, bytes, int or a tuple of these, not {type(value).__name__}")


def _is_isolation(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_isolation, cast("tuple[object, ...]", value)))
    return type(value) in (str, bytes, int, bool)


def check_current(route: Route) -> None:
    """Refuse a route whose contexts were changed after it was made.

    Raises:
      InvalidTargetError: make the route again; connections made under the old policy are not handed out.
    """
    for _ in route.changed_contexts():
        raise InvalidTargetError(
            f"an SSLContext of {route} was changed after the route was made: make it again with connector.route()"
        )
