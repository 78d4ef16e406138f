"""The step through a SOCKS proxy: a stream to the proxy becomes a stream to whom the proxy connects us.

socksio writes and reads the messages; the conversation stands here. Messages have known lengths, so exactly as many
bytes are read as a message has: replies may arrive in any pieces, a reply is bounded by the protocol (262 bytes), and
what comes behind the last one stays in the stream below, where a plain tunnel's user finds it in order and a TLS
handshake stumbles over it.

`socks5` resolves names here, `socks5h` and `socks4a` let the proxy do it, and neither ever falls back to the other: the
first would show the name to the proxy, the others to the local resolver (P7; curl did, CVE-2023-38545). Lengths are
checked in bytes before anything is written, since one byte holds them.

References: RFC 1928 (SOCKS 5), RFC 1929 (user and password), and the memos on SOCKS 4 and 4A by Ying-Da Lee.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import trio

from .._errors import InvalidTargetError, ProxyConnectError, ProxyError, ProxyRefusedError, ResolveError
from .._names import Host
from .foreign import close_now
from .http_tunnel import report_end, report_start

if TYPE_CHECKING:
    from .._route import SocksStep
    from ..events import Report

Resolve: TypeAlias = Callable[[Host], Awaitable[list[str]]]
"""Gives the addresses of a host as text, those first that are to be tried first, policy applied."""

Destination: TypeAlias = "IPv4Address | IPv6Address | bytes"
"""What is asked for: an address, or a name for the proxy to resolve."""

_LONGEST: Final = 255
_ADDRESS_LENGTHS: Final = {0x01: 4, 0x04: 16}
_NAME: Final = 0x03


def require_socksio() -> None:
    """Make sure that the library for SOCKS is there.

    Raises:
      ImportError: it is not; the message names the extra.
    """
    try:
        import_module("socksio")
    except ImportError as exc:
        raise ImportError("SOCKS proxies need the extra 'socks': pip install 'trioconn[socks]'") from exc


async def open_socks(
    stream: trio.abc.Stream, step: SocksStep, *, resolve: Resolve | None = None, report: Report | None = None
) -> trio.abc.Stream:
    """Ask the SOCKS proxy at the other end of `stream` for a connection.

    Args:
      stream: to the proxy. It is closed if this raises, also by cancellation.
      step: what to ask for.
      resolve: how `socks5` finds the addresses of a name. A SOCKS connection carries one request, so the first
        address is the one that is asked for.
      report: gets `TunnelStarted` and `TunnelFinished`.

    Returns:
      `stream`.

    Raises:
      ProxyRefusedError: the proxy answered that it will not or cannot; ``status`` is its reply code.
      ProxyConnectError: the connection broke, a reply was malformed, or the login was not accepted.
      ResolveError: `resolve` found nothing; what it raises itself comes out unchanged.
      ImportError: the extra ``socks`` is missing.
    """
    try:
        require_socksio()
        destination = await _destination(step, resolve)
        report_start(report, step)
        try:
            status = await _converse(stream, step, destination)
        except ProxyError as exc:
            report_end(report, step, getattr(exc, "status", None), exc)
            raise
        report_end(report, step, status)
        return stream
    except BaseException:
        await close_now(stream)  # noqa: ASYNC102 - waits for nobody
        raise


async def _converse(stream: trio.abc.Stream, step: SocksStep, destination: Destination) -> int:
    conversation = _Conversation(stream, step)
    try:
        if step.kind == "socks4a":
            return await conversation.socks4a(destination)
        return await conversation.socks5(destination)
    except trio.BrokenResourceError as exc:
        raise conversation.failure("broke the connection") from exc


async def _destination(step: SocksStep, resolve: Resolve | None) -> Destination:
    if step.host.address is not None:
        return step.host.address
    if step.kind != "socks5":
        return _checked(step.host.name, "the host name")
    if resolve is None:
        raise RuntimeError("socks5 resolves names here and needs a resolver; socks5h lets the proxy do it")
    for text in await resolve(step.host):
        return ip_address(text.partition("%")[0])  # a zone means nothing on the proxy's machine
    raise ResolveError(f"{step.host.name} has no address to give to the SOCKS proxy", stage="resolve", hop=step.hop)


def _checked(text: str, what: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= _LONGEST:
        raise InvalidTargetError(f"{what} for a SOCKS proxy must have 1 to {_LONGEST} bytes, it has {len(data)}")
    return data


class _Conversation:
    """The messages of one request."""

    def __init__(self, stream: trio.abc.Stream, step: SocksStep) -> None:
        self._stream = stream
        self._step = step
        self._login: tuple[bytes, ...] = ()
        if step.auth is not None:
            user, password = cast("tuple[str, str]", step.auth.value)
            self._login = (_checked(user, "the user"),)
            if step.kind != "socks4a":
                self._login += (_checked(password, "the password"),)

    async def socks5(self, destination: Destination) -> int:
        from socksio import ProtocolError, socks5

        await self._log_in()
        kind = {4: socks5.SOCKS5AType.IPV4_ADDRESS, 6: socks5.SOCKS5AType.IPV6_ADDRESS}
        request = socks5.SOCKS5CommandRequest(
            socks5.SOCKS5Command.CONNECT,
            socks5.SOCKS5AType.DOMAIN_NAME if isinstance(destination, bytes) else kind[destination.version],
            destination if isinstance(destination, bytes) else destination.packed,
            self._step.port,
        )
        head = await self._ask(request.dumps(), 4)
        status = head[1]
        if head[0] != 5:
            raise self.failure("does not speak SOCKS 5")
        if status:  # what follows is of no use, and some proxies do not even send it
            raise self._refusal(status, {code.value[0]: code.name for code in socks5.SOCKS5ReplyCode})
        length = _ADDRESS_LENGTHS.get(head[3])
        if head[3] == _NAME:
            head += await self._receive(1)
            length = head[4]
        if length is None:
            raise self.failure("sent a malformed SOCKS 5 reply")
        try:
            socks5.SOCKS5Reply.loads(head + await self._receive(length + 2))
        except ProtocolError as exc:
            raise self.failure("sent a malformed SOCKS 5 reply") from exc
        return status

    async def _log_in(self) -> None:
        from socksio import ProtocolError, socks5

        # Both are offered where there is a login: a proxy that asks for none need not know the other way.
        methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
        if self._login:
            methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
        reply = await self._ask(socks5.SOCKS5AuthMethodsRequest(methods).dumps(), 2)
        if reply[0] != 5:
            raise self.failure("does not speak SOCKS 5")
        try:
            method = socks5.SOCKS5AuthReply.loads(reply).method
        except ProtocolError as exc:
            raise self.failure("sent a malformed SOCKS 5 greeting") from exc
        if method == socks5.SOCKS5AuthMethod.NO_ACCEPTABLE_METHODS:
            hint = "accepts neither this kind of login nor none" if self._login else "wants a login: give auth= to it"
            raise self.failure(hint)
        if method not in methods:
            raise self.failure(f"chose a way to log in that was not offered ({reply[1]})")
        if method == socks5.SOCKS5AuthMethod.USERNAME_PASSWORD:
            request = socks5.SOCKS5UsernamePasswordRequest(*self._login)
            if not socks5.SOCKS5UsernamePasswordReply.loads(await self._ask(request.dumps(), 2)).success:
                raise self.failure("did not accept the login")

    async def socks4a(self, destination: Destination) -> int:
        from socksio import ProtocolError, socks4

        user = self._login[0] if self._login else b""
        if isinstance(destination, IPv6Address):
            raise InvalidTargetError("SOCKS 4a cannot carry an IPv6 address; use socks5h")
        kind = socks4.SOCKS4Request if isinstance(destination, IPv4Address) else socks4.SOCKS4ARequest
        address = destination.packed if isinstance(destination, IPv4Address) else destination
        request = kind(socks4.SOCKS4Command.CONNECT, self._step.port, address, user)
        reply = await self._ask(request.dumps(), 8)
        granted = socks4.SOCKS4ReplyCode.REQUEST_GRANTED.value[0]
        if reply[0] == 0 and reply[1] != granted:
            raise self._refusal(reply[1], {code.value[0]: code.name for code in socks4.SOCKS4ReplyCode})
        try:
            socks4.SOCKS4Reply.loads(reply)
        except ProtocolError as exc:
            raise self.failure("sent a malformed SOCKS 4 reply") from exc
        return reply[1]

    async def _ask(self, request: bytes, length: int) -> bytes:
        await self._stream.send_all(request)
        return await self._receive(length)

    async def _receive(self, length: int) -> bytes:
        """Exactly `length` bytes: not one that stands behind the message."""
        data = b""
        while len(data) < length:
            more = await self._stream.receive_some(length - len(data))
            if not more:
                raise self.failure("closed the connection " + ("in the middle of a reply" if data else "unanswered"))
            data += more
        return data

    def failure(self, what: str) -> ProxyConnectError:
        return ProxyConnectError(self._about(what), stage="proxy", hop=self._step.hop)

    def _refusal(self, status: int, names: dict[int, str]) -> ProxyRefusedError:
        reason = names.get(status, f"code {status}").replace("_", " ").lower()
        error = ProxyRefusedError(self._about(f"refused: {reason}"), stage="proxy", hop=self._step.hop)
        error.status = status
        error.reason = reason
        return error

    def _about(self, what: str) -> str:
        target = self._step.host.authority(self._step.port)
        return f"the {self._step.kind} proxy (hop {self._step.hop}), asked to connect to {target}, {what}"
