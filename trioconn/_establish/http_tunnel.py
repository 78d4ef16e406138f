"""The step through an HTTP proxy: a stream to the proxy becomes a stream to whom the proxy connects us.

What came behind the proxy's answer is the target's first data where the tunnel is used as it is, and then the stream
that is returned gives it before anything else. Where TLS (or anything in which we speak first) follows it is an error:
nobody but the proxy can have sent it, and bytes from before a handshake must never become data (CVE-2021-22947).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, cast

import trio

from .. import events
from .._errors import ProxyConnectError, ProxyError, ProxyRefusedError
from .foreign import close_now
from .http_connect import ConnectExchange, Malformed, Opened, Refused
from .sockets import RECEIVE_SIZE

if TYPE_CHECKING:
    from .._route import ConnectStep, HeaderPairs, SocksStep
    from ..events import Report

    Buffer = bytes | bytearray | memoryview

BODY_PATIENCE: Final = 1.0
"""Seconds that the body of a refusal may take. Without a limit of its own, a proxy that refuses, announces a body and
falls silent would hold the slot until ``connect_timeout``, which may be none."""

_PIECE: Final = 4096


class _Synchronous(Protocol):
    """What our streams can do without an await."""

    def probe(self) -> bool: ...
    def receive_nowait(self, max_bytes: int) -> bytes | bytearray: ...
    def send_nowait(self, data: Buffer) -> int: ...
    def fileno(self) -> int: ...


class LeftoverStream(trio.abc.Stream):
    """A stream in front of which some bytes have already been read; in all else it is that stream.

    Args:
      stream: what was read too far.
      leftover: the bytes that `receive_some` gives first.

    Attributes:
      wrapped: the stream below.
    """

    def __init__(self, stream: trio.abc.Stream, leftover: bytes) -> None:
        self.wrapped = stream
        self._now = cast("_Synchronous", stream)
        self._leftover = leftover  # empty when taken or closed: from then on the stream below decides
        self._receiving = False  # whether a task is about to take some of it

    @property
    def probe_reason(self) -> str:
        """Why the last `probe` was false; empty while none was."""
        if self._leftover:
            return "stray bytes"
        reason: str = getattr(self.wrapped, "probe_reason", "")
        return reason

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive at least a byte and at most `max_bytes`, as the stream below does; the leftover comes first."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be >= 1")
        if self._leftover:
            self._check_receiver()
            self._receiving = True
            try:
                await trio.lowlevel.checkpoint()  # before the bytes are taken: cancelled, none is lost
            finally:
                self._receiving = False
            if self._leftover:
                return self._take(max_bytes)
        return await self.wrapped.receive_some(max_bytes)

    def receive_nowait(self, max_bytes: int = RECEIVE_SIZE) -> bytes | bytearray:
        """Receive what is there, at most `max_bytes`. Raises `trio.WouldBlock` if that is nothing."""
        if self._leftover:
            self._check_receiver()
            return self._take(max_bytes)
        return self._now.receive_nowait(max_bytes)

    def _check_receiver(self) -> None:
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving data on this LeftoverStream")

    def _take(self, max_bytes: int | None) -> bytes:
        taken = self._leftover[:max_bytes]
        self._leftover = self._leftover[len(taken) :]
        return taken

    async def send_all(self, data: Buffer) -> None:
        """As the stream below."""
        await self.wrapped.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream below."""
        await self.wrapped.wait_send_all_might_not_block()

    def send_nowait(self, data: Buffer) -> int:
        """As the stream below."""
        return self._now.send_nowait(data)

    def probe(self) -> bool:
        """Whether the leftover was taken and the stream below is clean."""
        return not self._leftover and not self._receiving and self._now.probe()

    def fileno(self) -> int:
        """The descriptor of the socket at the bottom, -1 when closed."""
        return self._now.fileno()

    def close_nowait(self) -> None:
        """Close the stream below at once; the leftover is gone, too."""
        self._leftover = b""
        cast("_Closable", self.wrapped).close_nowait()

    async def aclose(self) -> None:
        """Close as the stream below does; the leftover is gone, too."""
        self._leftover = b""
        await self.wrapped.aclose()


class HalfCloseableLeftoverStream(LeftoverStream, trio.abc.HalfCloseableStream):
    """The same over a stream that can say that nothing more will be sent."""

    async def send_eof(self) -> None:
        """As the stream below."""
        await cast("trio.abc.HalfCloseableStream", self.wrapped).send_eof()


class _Closable(Protocol):
    def close_nowait(self) -> None: ...


async def open_tunnel(
    stream: trio.abc.Stream, step: ConnectStep, *, tls_follows: bool, report: Report | None = None
) -> trio.abc.Stream:
    """Ask the HTTP proxy at the other end of `stream` for a tunnel.

    Args:
      stream: to the proxy. It is closed if this raises, also by cancellation.
      step: what to ask for.
      tls_follows: whether we speak first in the tunnel, so that data behind the answer is an error.
      report: gets `TunnelStarted` and `TunnelFinished`.

    Returns:
      `stream` itself, or one around it if data came with the answer.

    Raises:
      ProxyRefusedError: it answered something else than 2xx.
      ProxyConnectError: the connection broke, or the answer was malformed or too large.
    """
    try:
        report_start(report, step)
        exchange = ConnectExchange(step.host.authority(step.port), cast("HeaderPairs", step.headers.value))
        try:
            outcome = await _converse(stream, exchange, step)
            tunnel = _tunnel(stream, outcome, step, tls_follows=tls_follows)
        except ProxyError as exc:
            report_end(report, step, getattr(exc, "status", None), exc)
            raise
        report_end(report, step, outcome.status)
        return tunnel
    except BaseException:
        await close_now(stream)  # noqa: ASYNC102 - waits for nobody
        raise


async def _converse(stream: trio.abc.Stream, exchange: ConnectExchange, step: ConnectStep) -> Opened:
    try:
        await stream.send_all(exchange.request())
        while exchange.outcome is None and not exchange.refusing:
            exchange.feed(bytes(await stream.receive_some(_PIECE)))
    except trio.BrokenResourceError as exc:
        raise ProxyConnectError(_about(step, "broke the connection"), stage="proxy", hop=step.hop) from exc
    if exchange.refusing:
        await _await_body(stream, exchange)
    outcome = exchange.outcome
    if isinstance(outcome, Opened):
        return outcome
    if isinstance(outcome, Malformed):
        raise ProxyConnectError(_about(step, outcome.why), stage="proxy", hop=step.hop)
    assert outcome is not None
    raise _refusal(step, outcome)


async def _await_body(stream: trio.abc.Stream, exchange: ConnectExchange) -> None:
    with trio.move_on_after(BODY_PATIENCE):
        while exchange.outcome is None:
            try:
                data = bytes(await stream.receive_some(_PIECE))
            except trio.BrokenResourceError:
                data = b""  # resetting what it has refused is rude and tells nothing new
            exchange.feed(data)
    if exchange.outcome is None:
        exchange.feed(b"")


def _tunnel(stream: trio.abc.Stream, opened: Opened, step: ConnectStep, *, tls_follows: bool) -> trio.abc.Stream:
    if not opened.leftover:
        return stream
    if tls_follows:
        raise ProxyConnectError(
            _about(step, f"opened a tunnel and sent {len(opened.leftover)} bytes that the target cannot have sent yet"),
            stage="proxy",
            hop=step.hop,
        )
    if isinstance(stream, trio.abc.HalfCloseableStream):
        return HalfCloseableLeftoverStream(stream, opened.leftover)
    return LeftoverStream(stream, opened.leftover)


def report_start(report: Report | None, step: ConnectStep | SocksStep) -> None:
    """Tell that a tunnel is asked for."""
    if report is not None:
        report(events.TunnelStarted, hop=step.hop, target=step.host.authority(step.port))


def report_end(
    report: Report | None, step: ConnectStep | SocksStep, status: int | None, error: ProxyError | None = None
) -> None:
    """Tell what came of it."""
    if report is not None:
        report(events.TunnelFinished, hop=step.hop, status=status, error=error)


def _about(step: ConnectStep, what: str) -> str:
    return f"the proxy (hop {step.hop}), asked to CONNECT to {step.host.authority(step.port)}, {what}"


def _refusal(step: ConnectStep, refused: Refused) -> ProxyRefusedError:
    hint = ""
    if refused.status == 407:
        has_login = step.auth is not None
        hint = "; the login was not accepted" if has_login else "; it wants a login: give auth= to the Proxy"
    answer = f"{refused.status} {refused.reason}".rstrip()
    error = ProxyRefusedError(_about(step, f"refused: {answer}{hint}"), stage="proxy", hop=step.hop)
    error.status = refused.status
    error.reason = refused.reason
    error.headers = refused.headers
    error.body = refused.body
    return error
