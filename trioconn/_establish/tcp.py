"""The first hop over TCP: a host becomes a connected socket, and the rest of the route is run inside the race for it.

Theory of operation
-------------------

The race (`race`) is over the *whole* route. ``finish`` runs the remaining steps, tunnel and TLS, on each socket that
connects, so an address that accepts TCP and then says nothing loses against one that works, and after a failed
handshake or a wrong pin the other addresses are tried. Racing TCP alone, as others do, hangs on the first of these
and fails on the second.

Addresses come in batches from `resolve`. What can be waited for before the race begins is waited for here, in the
caller's task, so that the commonest case (one answer, one address) needs no nursery: a resolver that does not split
families gives one batch, and one that does gives two, of which an IPv6 one with an address starts the race at once,
and an IPv4 one after the Resolution Delay (RFC 8305 section 3), in which its sister usually arrives. Later batches are
spliced into the running race by a task of the race's nursery.

The address policy is asked when an address becomes known, before it can become a candidate: what is not in the list
cannot be dialled, and a denied address costs no delay.

A socket has one owner at each moment: `_open` from its creation, then the `SocketStream`, which ``finish`` owns from
the moment it is called. There is no checkpoint in between, and KeyboardInterrupt arrives at checkpoints only.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import trio

from .. import events
from .._errors import (
    AddressDeniedError,
    ConnectError,
    ConnectTimeoutError,
    ResolveError,
    Stage,
    furthest,
    replica,
    shown,
)
from .addresses import Address, IPAddress, Order, SockAddr
from .policy import judge
from .race import Attempt, Candidates, Outcome, bounded, race
from .sockets import SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable

    from .._names import Host
    from .addresses import History, SourceAddress
    from .answers import Batch
    from .policy import AddressPolicy
    from .resolve import Lookups

R = TypeVar("R")

RESOLUTION_DELAY = 0.05  # seconds: RFC 8305 section 3
_MOST_ADDRESSES = 64  # of one answer; more than 20 are never tried, but some may be denied or of no use
_MOST_IN_MESSAGE = 20
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})
_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", -1)})
# Python has the name since 3.12; the number is Linux's.
_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24 if sys.platform == "linux" else None)

AddrInfo: TypeAlias = tuple[int, int, int, str, SockAddr]


class Progress(Protocol):
    """Says that an attempt got on, so that no other is started for its sake.

    Args:
      stage: what it has finished, for observers.
    """

    @property
    def index(self) -> int:
        """The number of the attempt in its race."""
        ...

    def __call__(self, stage: Stage) -> None: ...


@trio.lowlevel.enable_ki_protection
async def connect_socket(sock: socket.socket, sockaddr: SockAddr) -> None:
    """Connect a non-blocking socket. The caller closes it if this raises, cancellation included.

    trio's own ``connect`` does the same on a trio socket; the stdlib one is what is kept here.
    """
    number = sock.connect_ex(sockaddr)
    if number in _UNDER_WAY:
        await trio.lowlevel.wait_writable(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    else:
        await trio.lowlevel.checkpoint()
    if number:
        # Windows numbers its socket errors apart, and strerror() does not know them.
        texts: dict[int, str] = getattr(socket, "errorTab", {})
        raise OSError(number, texts.get(number) or os.strerror(number))


def source_address(address: Address) -> IPAddress | None:
    """The address this machine would send from, by connecting a datagram socket: 10 µs, and nothing is sent."""
    with suppress(OSError, ValueError), socket.socket(address.family, socket.SOCK_DGRAM) as probe:
        probe.connect(address.sockaddr)
        return ip_address(probe.getsockname()[0].partition("%")[0])
    return None


@dataclass(frozen=True, slots=True)
class _Progress:
    """The `Progress` of one attempt."""

    index: int
    tell: Callable[[Stage], None]

    def __call__(self, stage: Stage) -> None:
        self.tell(stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class TCPOptions:
    """What a connector has been told about TCP. See `trioconn.TCPConnector`.

    Attributes:
      connect: connects a non-blocking socket; another one only in tests.
      source: the source address towards a destination; another one only in tests.
    """

    lookups: Lookups
    history: History
    family: int = 0
    happy_eyeballs_delay: float | None = 0.25
    interleave: int | None = None
    socket_factory: Callable[[AddrInfo], socket.socket] | None = None
    address_policy: AddressPolicy | None = None
    connect: Callable[[socket.socket, SockAddr], Awaitable[None]] = connect_socket
    source: SourceAddress = source_address


@trio.lowlevel.enable_ki_protection
async def connect_tcp(
    host: Host,
    port: int,
    options: TCPOptions,
    finish: Callable[[SocketStream, Progress], Awaitable[R]],
    *,
    local_addr: tuple[str, int] | None,
    history_key: Hashable,
    judged: bool,
    report: events.Report | None,
    discard: Callable[[R], None],
) -> R:
    """Connect to one of the addresses of `host` and return what `finish` made of the socket.

    Args:
      host: whose addresses are looked up, or a literal, for which nothing is.
      port: of the first hop.
      options: of the connector.
      finish: runs the rest of the route on a socket. It owns the stream as soon as it is called, and closes it when it
        raises, whatever it raises. Of several that run at a time all but one are cancelled.
      local_addr: host and port to bind to. Only addresses of its family are tried.
      history_key: what shares experience with addresses.
      judged: whether the address policy applies: to targets it does, to proxies not.
      report: gets the events of the attempts, or None.
      discard: closes, synchronously, a result that is not returned.

    Raises:
      ResolveError: no address was found.
      AddressDeniedError: the policy denied all that were found.
      ConnectError: none of them worked. With several, the error is that of the one that got furthest, raised from an
        `ExceptionGroup` of all.
    """
    hop = _FirstHop(host, port, options, finish, local_addr, judged, report, history_key)
    outcome: Outcome[Address, R] | None = None
    try:
        if host.address is not None:
            hop.add_literal()
            outcome = await hop.race(discard)
        else:
            with options.lookups.open(host, hop.family, report) as answers:
                more = await hop.first_answers(answers)
                if more:
                    outcome = await hop.race(discard, partial(hop.feed, answers))
            if not more:
                outcome = await hop.race(discard)
        assert outcome is not None
        if outcome.won is None:
            raise hop.failure(outcome)
        return hop.success(outcome)
    except BaseException:
        if outcome is not None and outcome.won is not None:
            discard(outcome.won.result)
        raise
    finally:
        del outcome  # else this frame and the exception hold each other


class _FirstHop(Generic[R]):
    """One call of `connect_tcp`: the addresses known so far, and the attempts."""

    def __init__(
        self,
        host: Host,
        port: int,
        options: TCPOptions,
        finish: Callable[[SocketStream, Progress], Awaitable[R]],
        local_addr: tuple[str, int] | None,
        judged: bool,
        report: events.Report | None,
        history_key: Hashable,
    ) -> None:
        self._host = host
        self._port = port
        self._options = options
        self._finish = finish
        self._local_addr = local_addr
        self._policy = options.address_policy if judged else None
        self._report = report
        self._history_key = (history_key, port)  # an address holds its port
        self._families = _FAMILIES & ({options.family} if options.family else _FAMILIES)
        if local_addr is not None and local_addr[0]:
            self._families &= {socket.AF_INET6 if ":" in local_addr[0] else socket.AF_INET}
        self._delay = bounded(options.happy_eyeballs_delay)
        count = options.interleave
        if count is None:
            count = 0 if self._delay is None else 1
        preferred = None
        if host.address is None:
            preferred = options.history.preferred(self._history_key, trio.current_time(), options.source)
        self._order = Order(first_family_count=count, source=options.source, preferred=preferred)
        self._candidates: Candidates[Address] = Candidates(complete=False)
        self._answered: set[int] = set()
        self._denied: list[str] = []
        self._useless: list[str] = []
        self._ended: set[int] = set()  # attempts whose end was reported

    @property
    def family(self) -> int:
        """Which family to ask for; 0 for both."""
        return next(iter(self._families)) if len(self._families) == 1 else 0

    # Candidates

    def add_literal(self) -> None:
        """The host is its own address."""
        self._add([self._host.dial_name], sort=False)
        self._candidates.finish()

    async def first_answers(self, answers: trio.abc.ReceiveChannel[Batch]) -> bool:
        """Wait until the race may begin; returns whether more addresses may come."""
        with trio.CancelScope() as resolution_delay:
            async for batch in answers:
                self._take(batch)
                if not self._candidates.waiting:
                    continue  # to the end, which is an error if nothing was found
                if self._candidates.complete:
                    return False
                if batch.family != socket.AF_INET:
                    return True
                resolution_delay.deadline = trio.current_time() + RESOLUTION_DELAY
            self._candidates.finish()
        return not self._candidates.complete

    async def feed(self, answers: trio.abc.ReceiveChannel[Batch]) -> None:
        """Splice what arrives during the race into it."""
        # An error means that nothing more will come; what is there already decides.
        with suppress(ResolveError):
            async for batch in answers:
                self._take(batch)

    def _take(self, batch: Batch) -> None:
        unsplit = batch.family == socket.AF_UNSPEC
        self._answered |= self._families if unsplit else {batch.family}
        self._add([result.address for result in batch.results[:_MOST_ADDRESSES]], sort=not unsplit)
        if self._answered >= self._families:
            self._candidates.finish()

    def _add(self, texts: Iterable[str], *, sort: bool) -> None:
        addresses: list[Address] = []
        for text in texts:
            address = Address.from_text(text, self._port)
            if address is None or address.family not in self._families:
                self._useless.append(text)
            elif self._policy is not None and not judge(self._policy, self._host.name, text):
                self._denied.append(text)
                if self._report is not None:
                    self._report(events.AttemptDenied, address=text)
            else:
                addresses.append(address)
        self._order.add(addresses, sort=sort)
        self._candidates.replace(self._order.untried(self._candidates.tried))

    # Attempts

    async def race(
        self, discard: Callable[[R], None], feed: Callable[[], Awaitable[None]] | None = None
    ) -> Outcome[Address, R]:
        """Try the candidates."""
        return await race(self._candidates, self._attempt, delay=self._delay, discard=discard, feed=feed)

    @trio.lowlevel.enable_ki_protection
    async def _attempt(self, address: Address, me: Attempt) -> R:
        self._tell(events.AttemptStarted, me, address=address.sockaddr)
        try:
            return await self._finish(await self._open(address, me), _Progress(me.index, partial(self._progressed, me)))
        except OSError as error:
            self._options.history.failed(self._history_key, address)
            self._ended.add(me.index)
            failure = error if isinstance(error, ConnectError) else self._explained("use", address, error)
            try:
                self._tell(events.AttemptFailed, me, error=failure)
                if failure is error:
                    raise
                raise failure from error
            finally:
                del failure  # else this frame and the exception hold each other
        except BaseException:
            self._ended.add(me.index)
            self._tell(events.AttemptLost, me)
            raise

    @trio.lowlevel.enable_ki_protection
    async def _open(self, address: Address, me: Attempt) -> SocketStream:
        doing = "make a socket for"
        sock: socket.socket | None = None
        try:
            if self._options.socket_factory is None:
                sock = socket.socket(address.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            else:
                sock = self._options.socket_factory(
                    (address.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address.sockaddr)
                )
            sock.setblocking(False)
            if self._local_addr is not None:
                doing = f"bind {shown(self._local_addr[0])}:{self._local_addr[1]} for"
                _bind(sock, self._local_addr)
            doing = "connect to"
            await self._options.connect(sock, address.sockaddr)
            self._progressed(me, "connect")
            return SocketStream(sock)
        except BaseException as error:
            if sock is not None:
                with suppress(OSError):  # what went wrong before is what matters, a cancellation above all
                    sock.close()
            if isinstance(error, OSError):
                raise self._explained(doing, address, error) from error  # noqa: ASYNC104 - it is an OSError here
            raise

    def _progressed(self, me: Attempt, stage: Stage) -> None:
        me.progressed()
        self._tell(events.AttemptProgressed, me, stage=stage)

    def _tell(self, event: type[events.AttemptEvent], me: Attempt, **fields: object) -> None:
        if self._report is not None:
            self._report(event, index=me.index, **fields)

    # The end

    def success(self, outcome: Outcome[Address, R]) -> R:
        """Tell the observers and the history, and return the result of the winner."""
        assert outcome.won is not None
        won = outcome.won
        if self._report is not None:
            for index in range(outcome.started):
                if index != won.index and index not in self._ended:  # it finished in the same tick
                    self._report(events.AttemptLost, index=index)
            self._report(events.AttemptWon, index=won.index)
        if outcome.started > 1:
            history = self._options.history
            history.won(self._history_key, won.candidate, trio.current_time(), self._options.source)
        return won.result

    def failure(self, outcome: Outcome[Address, R]) -> ConnectError:
        """The error to raise, its cause set."""
        errors = [
            failure.error
            if isinstance(failure.error, ConnectError)
            else ConnectTimeoutError(f"{self._where('connect to', failure.candidate)}: {failure.error}")
            for failure in outcome.failures
        ]
        if not errors:
            return self._nothing_to_try()
        if len(errors) == 1:
            return errors[0]
        # A twin, because a cause that contains its own effect is a cycle.
        error = replica(furthest(errors))
        texts = "; ".join(error.message for error in errors[:_MOST_IN_MESSAGE])
        error.message = f"{len(errors)} attempts at {self._host.authority(self._port)} failed: {texts}"
        error.__cause__ = ExceptionGroup(f"attempts at {self._host.authority(self._port)}", errors)
        return error

    def _nothing_to_try(self) -> ConnectError:
        where = self._host.authority(self._port)
        if self._denied:
            denied = ", ".join(shown(text, 60) for text in self._denied[:_MOST_IN_MESSAGE])
            return AddressDeniedError(f"address_policy denies every address of {where}: {denied}")
        useless = ", ".join(shown(text, 60) for text in self._useless[:_MOST_IN_MESSAGE]) or "nothing"
        names = " or ".join(socket.AddressFamily(family).name for family in sorted(self._families)) or "no family"
        return ResolveError(
            f"{where} has no address that can be used: {names} is wanted (see family and local_addr), found: {useless}",
            stage="resolve",
        )

    def _where(self, doing: str, address: Address) -> str:
        if self._host.address is not None:
            return f"cannot {doing} {address}"
        return f"cannot {doing} {self._host.name} at {address}"

    def _explained(self, doing: str, address: Address, error: OSError) -> ConnectError:
        number = f" (errno {error.errno})" if error.errno is not None else ""
        cls = ConnectTimeoutError if isinstance(error, TimeoutError) else ConnectError
        text = f"{self._where(doing, address)}: {error.strerror or error}{number}"
        return cls(text, errno=error.errno)


def _bind(sock: socket.socket, local_addr: tuple[str, int]) -> None:
    if not local_addr[1] and _BIND_ADDRESS_NO_PORT is not None:
        # Else the system picks a port before it knows the peer, and runs out of them sooner; trio tells the story.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    sock.bind(local_addr)
