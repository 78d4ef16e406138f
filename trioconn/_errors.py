"""What can go wrong, as a tree.

::

    ConnectorError
    ├── ConnectorClosedError          also trio.ClosedResourceError
    ├── InvalidTargetError            also ValueError; always before any I/O
    └── ConnectError                  also OSError; .errno .route .stage .hop
        ├── ResolveError
        ├── ConnectTimeoutError       also TimeoutError
        ├── AddressDeniedError
        ├── UnixConnectError
        ├── NamedPipeConnectError     .winerror
        ├── TLSError
        │   ├── CertificateError      also ssl.SSLCertVerificationError
        │   └── FingerprintMismatchError
        └── ProxyError
            ├── ProxyConnectError
            └── ProxyRefusedError     .status .reason .headers .body

An error says what was attempted, with which value, and what to do about it. Bytes that a peer sent appear truncated
and escaped; credentials never appear. Where several addresses were tried, the error is that of the attempt that got
furthest, raised ``from`` an `ExceptionGroup` of all of them; a group never escapes otherwise.
"""

from __future__ import annotations

import copy
import ssl
from typing import TYPE_CHECKING, Literal, TypeVar, cast, get_args

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from ._route import Route

Stage = Literal["resolve", "connect", "proxy", "tls", "pin", "protocol"]
"""How far an attempt had come, in the order of progress."""

STAGES: tuple[Stage, ...] = get_args(Stage)
_MOST_PEER_BYTES_SHOWN = 200


class ConnectorError(Exception):
    """The base of every error that this library raises on its own account.

    It is *not* raised for the caller's cancel scopes: those work as everywhere in trio.
    """


class ConnectorClosedError(ConnectorError, trio.ClosedResourceError):
    """The connector was closed, before or while something was asked of it.

    It is *not* raised for a lease that was released: using its stream raises `trio.ClosedResourceError`.
    """


class InvalidTargetError(ConnectorError, ValueError):
    """The target, or an option given with it, cannot be honoured. Raised before any I/O.

    It is *not* about the network: the same call would fail again.
    """


class ConnectError(ConnectorError, OSError):
    """A connection could not be made.

    Attributes:
      errno: the operating system's number, or None where there is none.
      route: the `Route` that was being dialled, or None while no route is known. It is left out of pickles.
      stage: how far the attempt had come: one of ``"resolve"``, ``"connect"``, ``"proxy"``, ``"tls"``, ``"pin"``,
        ``"protocol"``.
      hop: which hop failed: 0 is the first proxy, 1 the second; -1 is the target.

    It is *not* raised for what happens on a connection after it was handed out: streams raise trio's errors.
    """

    route: Route | None
    stage: Stage
    hop: int

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        stage: Stage = "connect",
        hop: int = -1,
        route: Route | None = None,
    ) -> None:
        # OSError fills .errno only from a pair of arguments; with a single one it stays None.
        if errno is None:
            super().__init__(message)
        else:
            super().__init__(errno, message)
        self.message = message
        self.stage = stage
        self.hop = hop
        self.route = route

    def __str__(self) -> str:
        return self.message

    def __copy__(self) -> Self:
        return cast("Self", _rebuild(type(self), self.message, self.errno, dict(self.__dict__)))

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[object, ...]:
        # A pickle may go anywhere. The route holds logins and contexts, and means nothing to another process.
        return (_rebuild, (type(self), self.message, self.errno, {**self.__dict__, "route": None}))


def _rebuild(cls: type[ConnectError], message: str, errno: int | None, state: dict[str, object]) -> ConnectError:
    error = cls.__new__(cls)
    ConnectError.__init__(error, message, errno=errno)
    error.__dict__.update(state)
    return error


class ResolveError(ConnectError):
    """The host name could not be turned into an address.

    It is *not* raised when addresses were found and all of them refused: that is a `ConnectError`.
    """


class ConnectTimeoutError(ConnectError, TimeoutError):
    """An attempt was not finished within ``connect_timeout``, or the system gave up waiting for the peer.

    It is *not* raised for the caller's own `trio.fail_after`, nor for time spent in the queue.
    """


class AddressDeniedError(ConnectError):
    """The ``address_policy`` allowed none of the addresses, or a proxy would have resolved the name unseen."""


class UnixConnectError(ConnectError):
    """A Unix socket could not be connected."""


class NamedPipeConnectError(ConnectError):
    """A Windows named pipe could not be opened. ``winerror`` is the system's number, or None."""

    winerror: int | None = None


class TLSError(ConnectError):
    """The TLS handshake with the target failed (with a proxy: `ProxyConnectError`, raised from this)."""


class CertificateError(TLSError, ssl.SSLCertVerificationError):
    """The peer's certificate was not accepted: unknown issuer, wrong name, expired.

    ``verify_code`` and ``verify_message`` are OpenSSL's, ``reason`` and ``library`` what they are on errors of `ssl`.
    """

    reason: str = "CERTIFICATE_VERIFY_FAILED"
    library: str = "SSL"
    verify_code: int = 0
    verify_message: str = ""


class FingerprintMismatchError(TLSError):
    """The peer's certificate is not the pinned one. ``expected`` and ``got`` are the two digests."""

    expected: bytes = b""
    got: bytes = b""


class ProxyError(ConnectError):
    """The way through a proxy failed."""


class ProxyConnectError(ProxyError):
    """A proxy could not be reached, its TLS failed, or it did not speak its protocol."""


class ProxyRefusedError(ProxyError):
    """A proxy answered, and refused.

    Attributes:
      status: its HTTP status, or the reply code of a SOCKS proxy.
      reason: its reason phrase, printable and cut short.
      headers: its header fields as pairs of bytes, in order.
      body: the first bytes of its answer's body: material for a person, never the origin's.
    """

    status: int = 0
    reason: str = ""
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""


def shown(data: bytes | str, most: int = _MOST_PEER_BYTES_SHOWN) -> str:
    """What a peer sent, fit for a message: printable ASCII, escaped, cut after `most` characters."""
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    cut = text[:most].encode("unicode_escape").decode("ascii")[:most]
    return cut + ("…" if len(text) > most else "")


Exc = TypeVar("Exc", bound=BaseException)


def replica(error: Exc) -> Exc:
    """A twin of `error` with the same cause, for a second task.

    One exception object must never be raised in two tasks: each raise extends its traceback and may set its context.
    """
    try:
        twin = copy.copy(error)
    except Exception:  # a foreign exception with a constructor of its own; the original is still the best description
        return error
    if type(twin) is not type(error):  # it is pickled as something simpler
        return error
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = error.__suppress_context__
    return twin


def furthest(errors: Sequence[ConnectError]) -> ConnectError:
    """The error of the attempt that came furthest; the first one on a tie."""
    return max(errors, key=lambda error: STAGES.index(error.stage))
