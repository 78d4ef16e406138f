"""The first hop: real sockets that are connected by a script, scripted lookups, virtual time; some real loopback.

The scripted parts exist because no test can make a real network lose packets at an exact moment; the tests at the end
connect for real and keep them honest.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import signal
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trioconn._errors import (
    AddressDeniedError,
    CertificateError,
    ConnectError,
    ConnectTimeoutError,
    FingerprintMismatchError,
    ResolveError,
)
from trioconn._establish.addresses import Address, History
from trioconn._establish.answers import Batch
from trioconn._establish.dns_cache import ResolveResult
from trioconn._establish.resolve import Lookups, Resolver
from trioconn._establish.sockets import SocketStream
from trioconn._establish.tcp import Progress, TCPOptions, connect_socket, connect_tcp, source_address
from trioconn._names import Host, parse_host

V4, V6, ANY = socket.AF_INET, socket.AF_INET6, socket.AF_UNSPEC
NEVER = math.inf


def batch(family: int, *addresses: str) -> Batch:
    return Batch(family, [ResolveResult(text, V6 if ":" in text else V4, None) for text in addresses])


@dataclass
class FakeLookups:
    """Answers at set moments (seconds after it was asked); then the end, or `error` if nothing was in them."""

    answers: list[tuple[float, Batch]]
    asked: list[tuple[str, int]] = field(default_factory=list)
    open_lookups: int = 0

    @contextlib.contextmanager
    def open(self, host: Host, family: int, report: Any) -> Iterator[FakeAnswers]:
        self.asked.append((host.name, family))
        self.open_lookups += 1
        try:
            yield FakeAnswers([answer for answer in self.answers if not family or answer[1].family in (0, family)])
        finally:
            self.open_lookups -= 1


class FakeAnswers(trio.abc.ReceiveChannel[Batch]):
    def __init__(self, answers: list[tuple[float, Batch]]) -> None:
        self.answers = answers
        self.origin = trio.current_time()
        self.empty = not any(answer.results for _, answer in answers)

    async def receive(self) -> Batch:
        if not self.answers:
            await trio.lowlevel.checkpoint()
            if self.empty:
                raise ResolveError("nothing was found", stage="resolve")
            raise trio.EndOfChannel
        await trio.sleep_until(self.origin + self.answers[0][0])
        return self.answers.pop(0)[1]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class Behaviour:
    """How an address behaves: connects after `takes` or raises `error`; then `finish` after `tls` or `tls_error`."""

    takes: float = 0
    error: OSError | None = None
    tls: float = 0
    tls_error: BaseException | None = None


good, mute, black = Behaviour(), Behaviour(tls=NEVER), Behaviour(NEVER)


def refused() -> Behaviour:
    return Behaviour(error=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))


class Net:
    """A scripted network. `run` connects, and asserts that every socket but the winner's was closed."""

    def __init__(self, hosts: dict[str, Behaviour], *answers: tuple[float, Batch] | Batch, **options: Any) -> None:
        self.hosts = hosts
        self.lookups = FakeLookups([answer if isinstance(answer, tuple) else (0.0, answer) for answer in answers])
        self.history = History()
        self.sockets: list[socket.socket] = []
        self.dialled: list[tuple[str, float]] = []
        self.connected: dict[int, str] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.origin = trio.current_time()
        self.asked_sources = 0
        options.setdefault("socket_factory", self.make_socket)
        self.options = TCPOptions(
            lookups=self.lookups,  # type: ignore[arg-type]
            history=self.history,
            connect=self.connect,
            source=options.pop("source", self.source),
            **options,
        )

    def now(self) -> float:
        return round(trio.current_time() - self.origin, 9)

    def make_socket(self, info: Any) -> socket.socket:
        sock = socket.socket(*info[:3])
        self.sockets.append(sock)
        return sock

    def source(self, address: Address) -> IPv6Address:
        self.asked_sources += 1
        return IPv6Address("2001:db8::99")

    async def connect(self, sock: socket.socket, sockaddr: Any) -> None:
        assert not sock.getblocking()
        self.dialled.append((sockaddr[0], self.now()))
        self.connected[sock.fileno()] = sockaddr[0]
        host = self.hosts[sockaddr[0]]
        await trio.sleep(host.takes)
        if host.error is not None:
            raise host.error

    async def finish(self, stream: SocketStream, progress: Progress) -> tuple[str, SocketStream]:
        address = self.connected[stream.fileno()]
        host = self.hosts[address]
        try:
            await trio.sleep(host.tls)
            if host.tls_error is not None:
                raise host.tls_error
        except BaseException:
            stream.close_nowait()
            raise
        return address, stream

    def report(self, event: type, **fields: Any) -> None:
        event(at=0.0, route=None, dial=1, **fields)  # the fields are those the class has
        self.events.append((event.__name__, fields))

    async def run(self, host: str = "host.test", port: int = 443, **more: Any) -> str:
        options = {
            "local_addr": None,
            "history_key": host,
            "judged": True,
            "discard": lambda pair: pair[1].close_nowait(),
        }
        winner = None
        try:
            winner, stream = await connect_tcp(
                parse_host(host), port, self.options, self.finish, report=self.report, **(options | more)
            )
        finally:
            assert len([sock for sock in self.sockets if sock.fileno() != -1]) == (winner is not None)
            assert self.lookups.open_lookups == 0
        stream.close_nowait()
        self.sockets.clear()
        return winner

    @property
    def order(self) -> list[str]:
        return [address for address, _ in self.dialled]


# What is raced, and when


async def test_literal_needs_no_lookup(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": good, "2001:db8::1": good})
    assert await net.run("192.0.2.1") == "192.0.2.1"
    assert await net.run("2001:db8::1") == "2001:db8::1"
    assert net.lookups.asked == []


async def test_zone_of_a_literal_is_dialled(autojump_clock: MockClock) -> None:
    seen = []

    async def connect(sock: socket.socket, sockaddr: Any) -> None:
        seen.append(sockaddr)
        raise OSError(errno.ENETUNREACH, "no")

    net = Net({})
    net.options = TCPOptions(lookups=net.lookups, history=net.history, connect=connect)  # type: ignore[arg-type]
    with pytest.raises(ConnectError):
        await net.run("fe80::1%lo")
    assert seen == [("fe80::1", 443, 0, socket.if_nametoindex("lo"))]
    with pytest.raises(ResolveError, match="fe80::1%nosuchif"):
        await net.run("fe80::1%nosuchif")


async def test_one_answer_with_one_address_needs_no_task(autojump_clock: MockClock) -> None:
    tasks = []

    async def finish(stream: SocketStream, progress: Progress) -> tuple[str, SocketStream]:
        tasks.append(trio.lowlevel.current_task())
        return "it", stream

    for answers in (
        [batch(ANY, "192.0.2.1")],
        [batch(V6), batch(V4, "192.0.2.1")],
        [batch(V4, "192.0.2.1"), batch(V6)],
    ):
        net = Net({"192.0.2.1": good}, *answers)
        net.finish = finish  # type: ignore[method-assign]
        assert await net.run() == "it"
        assert net.now() == 0
    assert set(tasks) == {trio.lowlevel.current_task()}


@pytest.mark.case("anyio#1282")
async def test_an_unsplit_answer_keeps_its_order(autojump_clock: MockClock) -> None:
    """The resolver prefers IPv4: the first packet goes there, and nothing is forced to IPv6."""
    net = Net({"192.0.2.1": good, "2001:db8::1": black}, batch(ANY, "192.0.2.1", "2001:db8::1"))
    assert await net.run() == "192.0.2.1"
    assert net.order == ["192.0.2.1"]


async def test_whole_list_is_interleaved(autojump_clock: MockClock) -> None:
    hosts = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"]
    net = Net(dict.fromkeys(hosts, black), batch(ANY, *hosts))
    with trio.move_on_after(5):
        await net.run()
    assert net.dialled == [
        ("2001:db8::1", 0),
        ("192.0.2.1", 0.25),
        ("2001:db8::2", 0.5),
        ("192.0.2.2", 0.75),
        ("2001:db8::3", 1.0),
    ]


@pytest.mark.parametrize(
    ("interleave", "delay", "order"),
    [
        (2, 0.25, "6a 6b 4a 6c 4b"),
        (0, 0.25, "6a 6b 6c 4a 4b"),
        (None, None, "6a 6b 6c 4a 4b"),
        (1, None, "6a 4a 6b 4b 6c"),
    ],
)
async def test_interleave_option(
    autojump_clock: MockClock, interleave: int | None, delay: float | None, order: str
) -> None:
    names = {"6a": "2001:db8::a", "6b": "2001:db8::b", "6c": "2001:db8::c", "4a": "192.0.2.1", "4b": "192.0.2.2"}
    net = Net(
        {address: refused() for address in names.values()},
        batch(ANY, *names.values()),
        interleave=interleave,
        happy_eyeballs_delay=delay,
    )
    with pytest.raises(ConnectError):
        await net.run()
    assert net.order == [names[name] for name in order.split()]


@pytest.mark.parametrize("delay", [None, math.inf])
async def test_without_a_delay_one_after_the_other(autojump_clock: MockClock, delay: float | None) -> None:
    net = Net(
        {"192.0.2.1": Behaviour(100, OSError(errno.ETIMEDOUT, "late")), "192.0.2.2": good},
        batch(ANY, "192.0.2.1", "192.0.2.2"),
        happy_eyeballs_delay=delay,
    )
    assert await net.run() == "192.0.2.2"
    assert net.dialled == [("192.0.2.1", 0), ("192.0.2.2", 100)]


async def test_split_answers_are_sorted_by_reachability(autojump_clock: MockClock) -> None:
    """Without an IPv6 route IPv4 comes first, however the resolver answered."""

    def source(address: Address) -> IPv4Address | None:
        return IPv4Address("192.0.2.99") if address.family == V4 else None

    net = Net({"192.0.2.1": good, "2001:db8::1": good}, batch(V6, "2001:db8::1"), batch(V4, "192.0.2.1"), source=source)
    net.lookups.answers.reverse()  # IPv4 first, IPv6 within the Resolution Delay
    assert await net.run() == "192.0.2.1"
    assert net.order == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("answers", "dialled"),
    [
        pytest.param([(0, V6), (0.4, V4)], [("2001:db8::1", 0)], id="IPv6 first: at once"),
        pytest.param([(0, V4), (0.4, V6)], [("192.0.2.1", 0.05)], id="IPv4 first: after the Resolution Delay"),
        pytest.param([(0, V4), (0.02, V6)], [("2001:db8::1", 0.02)], id="IPv6 within the delay: at once"),
        pytest.param([(0, V4), (NEVER, V6)], [("192.0.2.1", 0.05)], id="IPv6 never answered"),
        pytest.param([(0, V6), (NEVER, V4)], [("2001:db8::1", 0)], id="IPv4 never answered"),
    ],
)
async def test_resolution_delay(
    autojump_clock: MockClock, answers: list[tuple[float, int]], dialled: list[tuple[str, float]]
) -> None:
    addresses = {V4: "192.0.2.1", V6: "2001:db8::1"}
    net = Net(
        {"192.0.2.1": good, "2001:db8::1": good},
        *[(moment, batch(family, addresses[family])) for moment, family in answers],
    )
    await net.run()
    assert net.dialled == dialled


async def test_a_negative_answer_ends_the_resolution_delay(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": good}, (0, batch(V4, "192.0.2.1")), (0.01, batch(V6)))
    await net.run()
    assert net.dialled == [("192.0.2.1", 0.01)]

    net = Net({"192.0.2.1": good}, (0, batch(V6)), (0.3, batch(V4, "192.0.2.1")))
    await net.run()
    assert net.dialled == [("192.0.2.1", 0.3)]


async def test_a_late_answer_joins_the_race(autojump_clock: MockClock) -> None:
    """IPv4 under way, silent; IPv6 comes: it is next, before the other IPv4 addresses (the tried one counts)."""
    net = Net(
        {"192.0.2.1": black, "192.0.2.2": black, "2001:db8::1": black, "2001:db8::2": good},
        (0, batch(V4, "192.0.2.1", "192.0.2.2")),
        (0.1, batch(V6, "2001:db8::1", "2001:db8::2")),
    )
    assert await net.run() == "2001:db8::2"
    assert net.dialled == [("192.0.2.1", 0.05), ("2001:db8::1", 0.3), ("2001:db8::2", 0.55)]


async def test_a_late_answer_of_the_other_family_is_next(autojump_clock: MockClock) -> None:
    net = Net(
        {"2001:db8::1": black, "2001:db8::2": black, "192.0.2.1": good},
        (0, batch(V6, "2001:db8::1", "2001:db8::2")),
        (0.1, batch(V4, "192.0.2.1")),
    )
    assert await net.run() == "192.0.2.1"
    assert net.dialled == [("2001:db8::1", 0), ("192.0.2.1", 0.25)]


async def test_a_late_answer_after_all_others_failed(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": refused(), "192.0.2.1": good}, (0, batch(V6, "2001:db8::1")), (3, batch(V4, "192.0.2.1")))
    assert await net.run() == "192.0.2.1"
    assert net.dialled == [("2001:db8::1", 0), ("192.0.2.1", 3)]


async def test_what_was_tried_is_not_tried_again(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": refused()}, (0, batch(V4, "192.0.2.1", "192.0.2.1")), (1, batch(V6, "192.0.2.1")))
    with pytest.raises(ConnectError):
        await net.run()
    assert net.order == ["192.0.2.1"]


@pytest.mark.parametrize("family", [V4, V6])
async def test_family_option(autojump_clock: MockClock, family: int) -> None:
    net = Net({"192.0.2.1": good, "2001:db8::1": good}, batch(V4, "192.0.2.1"), batch(V6, "2001:db8::1"), family=family)
    assert await net.run() == {V4: "192.0.2.1", V6: "2001:db8::1"}[family]
    assert net.lookups.asked == [("host.test", family)]
    literal, other = ("192.0.2.1", "2001:db8::1")[:: 1 if family == V4 else -1]
    assert await net.run(literal) == literal
    with pytest.raises(ResolveError, match="is wanted"):
        await net.run(other)


async def test_an_unsplit_answer_is_filtered_by_family(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"), family=V4)
    assert await net.run() == "192.0.2.1"


# The race covers the whole route


async def test_an_address_that_accepts_and_says_nothing_loses(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": mute, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    assert await net.run() == "192.0.2.1"
    assert net.now() == 0.25


async def test_a_slow_healthy_path_is_not_raced_twice(autojump_clock: MockClock) -> None:
    """100 ms a packet: TCP stands after 200 ms, TLS after 600 ms."""
    net = Net({"2001:db8::1": Behaviour(0.2, tls=0.399), "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    assert await net.run() == "2001:db8::1"
    assert net.order == ["2001:db8::1"]


async def test_finish_may_say_that_it_got_on(autojump_clock: MockClock) -> None:
    async def finish(stream: SocketStream, progress: Progress) -> tuple[str, SocketStream]:
        for _ in range(3):
            await trio.sleep(0.2)
            progress("proxy")
        return "first", stream

    net = Net({"2001:db8::1": good, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    net.finish = finish  # type: ignore[method-assign]
    assert await net.run() == "first"
    assert net.order == ["2001:db8::1"]
    stages = [fields["stage"] for name, fields in net.events if name == "AttemptProgressed"]
    assert stages == ["connect", "proxy", "proxy", "proxy"]


@pytest.mark.parametrize(
    "error", [CertificateError("wrong name", stage="tls"), FingerprintMismatchError("wrong pin", stage="pin")]
)
async def test_after_a_failed_handshake_the_others_are_tried(autojump_clock: MockClock, error: ConnectError) -> None:
    net = Net(
        {"2001:db8::1": Behaviour(tls=0.1, tls_error=error), "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1")
    )
    assert await net.run() == "192.0.2.1"
    assert net.dialled == [("2001:db8::1", 0), ("192.0.2.1", 0.1)]


# Errors


async def test_a_single_failure_is_raised_as_it_is(autojump_clock: MockClock) -> None:
    original = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    net = Net({"192.0.2.1": Behaviour(error=original)}, batch(ANY, "192.0.2.1"))
    with pytest.raises(
        ConnectError, match=r"cannot connect to host.test at 192.0.2.1:443: Connection refused"
    ) as caught:
        await net.run()
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.stage == "connect"
    assert caught.value.__cause__ is original
    assert type(caught.value) is ConnectError


@pytest.mark.case("reqwest#1318")
async def test_error_names_every_address(autojump_clock: MockClock) -> None:
    unreachable = Behaviour(error=OSError(errno.ENETUNREACH, "Network is unreachable"))
    net = Net({"2001:db8::1": refused(), "192.0.2.1": unreachable}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    with pytest.raises(ConnectError) as caught:
        await net.run()
    text = str(caught.value)
    assert "[2001:db8::1]:443: Connection refused (errno 111)" in text
    assert "192.0.2.1:443: Network is unreachable (errno 101)" in text
    assert caught.value.errno == errno.ECONNREFUSED  # the first, as both came equally far
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert [error.errno for error in group.exceptions] == [errno.ECONNREFUSED, errno.ENETUNREACH]
    assert caught.value not in group.exceptions


async def test_error_is_that_of_the_attempt_that_got_furthest(autojump_clock: MockClock) -> None:
    wrong = CertificateError("wrong name", stage="tls")
    wrong.verify_code = 62
    net = Net(
        {"2001:db8::1": refused(), "192.0.2.1": Behaviour(tls_error=wrong), "192.0.2.2": refused()},
        batch(ANY, "2001:db8::1", "192.0.2.1", "192.0.2.2"),
    )
    with pytest.raises(CertificateError) as caught:
        await net.run()
    assert caught.value.stage == "tls"
    assert caught.value.verify_code == 62
    assert caught.value is not wrong
    assert wrong.message == "wrong name"
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert wrong in caught.value.__cause__.exceptions


async def test_timeout_of_the_system(autojump_clock: MockClock) -> None:
    late = Behaviour(127, TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    net = Net({"192.0.2.1": late}, batch(ANY, "192.0.2.1"))
    with pytest.raises(ConnectTimeoutError) as caught:
        await net.run()
    assert caught.value.errno == errno.ETIMEDOUT


async def test_a_foreign_oserror_of_finish(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": Behaviour(tls_error=OSError(errno.EIO, "odd"))}, batch(ANY, "192.0.2.1"))
    with pytest.raises(ConnectError, match="odd") as caught:
        await net.run()
    assert caught.value.errno == errno.EIO


async def test_lookup_errors_come_out(autojump_clock: MockClock) -> None:
    for answers in ([], [batch(V6), batch(V4)], [batch(ANY)]):
        net = Net({}, *answers)
        with pytest.raises(ResolveError, match="nothing was found"):
            await net.run()


async def test_answers_that_are_no_addresses(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": good}, batch(ANY, "localhost", "", "192.0.2.1%eth0", "192.0.2.1"))
    assert await net.run() == "192.0.2.1"
    net = Net({}, batch(ANY, "local\nhost"))
    with pytest.raises(ResolveError, match=r"found: local\\nhost"):
        await net.run()


async def test_five_thousand_addresses(autojump_clock: MockClock) -> None:
    addresses = [f"10.0.{n // 250}.{n % 250}" for n in range(5000)]
    net = Net({address: refused() for address in addresses}, batch(V6), batch(V4, *addresses))
    with pytest.raises(ConnectError) as caught:
        await net.run()
    assert net.order == addresses[:20]
    assert net.asked_sources <= 100
    assert len(str(caught.value)) < 2000


async def test_the_thirteenth_of_mute_addresses(autojump_clock: MockClock) -> None:
    """Twelve in flight at most; the dropped one is named in the error."""
    addresses = [f"192.0.2.{n}" for n in range(13)]
    hosts = dict.fromkeys(addresses[:12], black) | {addresses[12]: good}
    net = Net(hosts, batch(ANY, *addresses))
    assert await net.run() == addresses[12]
    assert net.now() == 3.0

    hosts = {address: Behaviour(5, OSError(errno.EHOSTDOWN, "down")) for address in addresses}
    net = Net(hosts, batch(ANY, *addresses), happy_eyeballs_delay=0.1)
    with pytest.raises(ConnectError) as caught:
        await net.run()
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    first = caught.value.__cause__.exceptions[0]
    assert type(first) is ConnectTimeoutError
    assert "192.0.2.0:443: no sign of life" in str(first)


class WeakError(OSError):
    """Unlike its base, it can be watched by a weak reference."""


@pytest.mark.case("anyio#809")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("where", ["connect", "finish"])
async def test_errors_leave_no_cycle(autojump_clock: MockClock, count: int, where: str) -> None:
    async def connect(sock: socket.socket, sockaddr: Any) -> None:
        await trio.lowlevel.checkpoint()
        if where == "connect":
            raise WeakError(errno.ECONNREFUSED, "Connection refused")

    async def finish(stream: SocketStream, progress: Progress) -> None:
        stream.close_nowait()
        await trio.lowlevel.checkpoint()
        raise WeakError(errno.EIO, "odd")

    lookups: Any = FakeLookups([(0, batch(ANY, *[f"192.0.2.{n}" for n in range(count)]))])
    options = TCPOptions(lookups=lookups, history=History(), connect=connect)
    fixed: Any = {"local_addr": None, "history_key": 1, "judged": False, "report": None, "discard": print}
    watched: list[weakref.ref[BaseException]] = []
    gc.collect()
    gc.disable()
    try:
        try:
            await connect_tcp(parse_host("host.test"), 1, options, finish, **fixed)
        except ConnectError as error:
            watched.append(weakref.ref(error))
            cause = error.__cause__
            watched += [weakref.ref(each) for each in (cause.exceptions if isinstance(cause, ExceptionGroup) else ())]
            watched += [weakref.ref(cause)] if isinstance(cause, WeakError) else []
            del cause
        assert len(watched) == (2 if count == 1 else 1 + count)
        assert [reference() for reference in watched] == [None] * len(watched)
    finally:
        gc.enable()


# Sockets: made, bound, owned


async def test_socket_factory_gets_the_whole_tuple(autojump_clock: MockClock) -> None:
    infos: list[Any] = []

    def make(info: Any) -> socket.socket:
        infos.append(info)
        return net.make_socket(info)

    net = Net(
        {"2001:db8::1": refused(), "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"), socket_factory=make
    )
    await net.run()
    assert infos == [
        (V6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("2001:db8::1", 443, 0, 0)),
        (V4, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", 443)),
    ]


async def test_a_failing_socket_factory_is_that_attempts_failure(autojump_clock: MockClock) -> None:
    def make(info: Any) -> socket.socket:
        if info[0] == V6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return net.make_socket(info)

    net = Net({"192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"), socket_factory=make)
    assert await net.run() == "192.0.2.1"
    net = Net({}, batch(ANY, "2001:db8::1"), socket_factory=make)
    with pytest.raises(ConnectError, match="cannot make a socket for") as caught:
        await net.run()
    assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.case("aiohappyeyeballs#93")
@pytest.mark.parametrize("addresses", [["192.0.2.1"], ["192.0.2.1", "192.0.2.2"]])
async def test_an_odd_error_of_a_socket_factory_comes_out(autojump_clock: MockClock, addresses: list[str]) -> None:
    def make(info: Any) -> socket.socket:
        raise RuntimeError("no sockets today")

    net = Net({}, batch(ANY, *addresses), socket_factory=make)
    with pytest.raises(RuntimeError, match="no sockets today"):
        await net.run()


@pytest.mark.case("aiohttp#10464")
async def test_a_socket_that_cannot_become_a_stream_is_closed(autojump_clock: MockClock) -> None:
    class Odd(socket.socket):
        pass

    def make(info: Any) -> socket.socket:
        net.sockets.append(Odd(*info[:3]))
        return net.sockets[-1]

    net = Net({"192.0.2.1": good}, batch(ANY, "192.0.2.1"), socket_factory=make)
    with pytest.raises(TypeError, match="Odd"):
        await net.run()


async def test_an_error_of_close_does_not_hide_the_cause(autojump_clock: MockClock) -> None:
    class Odd(socket.socket):
        def close(self) -> None:
            super().close()
            raise OSError("during close")

    def make(info: Any) -> socket.socket:
        net.sockets.append(Odd(*info[:3]))
        return net.sockets[-1]

    net = Net({"192.0.2.1": refused(), "192.0.2.2": black}, batch(ANY, "192.0.2.1"), socket_factory=make)
    with pytest.raises(ConnectError, match="refused"):
        await net.run()
    with trio.move_on_after(1) as scope:
        await net.run("192.0.2.2")
    assert scope.cancelled_caught


async def test_a_winner_is_closed_if_leaving_the_lookup_fails(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": good}, (0, batch(V6, "2001:db8::1")), (9, batch(V4)))
    inner = net.lookups.open

    @contextlib.contextmanager
    def failing(host: Host, family: int, report: Any) -> Iterator[FakeAnswers]:
        with inner(host, family, report) as answers:
            yield answers
        raise ZeroDivisionError

    net.lookups.open = failing  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await net.run()


async def test_local_addr_is_bound_and_chooses_the_family(autojump_clock: MockClock) -> None:
    net = Net({"127.0.0.1": good}, batch(V6, "::1"), batch(V4, "127.0.0.1"))

    async def finish(stream: SocketStream, progress: Progress) -> Any:
        assert stream.socket.getsockname()[0] == "127.0.0.9"
        return "bound", stream

    net.finish = finish  # type: ignore[method-assign]
    assert await net.run(local_addr=("127.0.0.9", 0)) == "bound"
    assert net.lookups.asked == [("host.test", V4)]


async def test_an_address_that_cannot_be_bound(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": good}, batch(V4, "192.0.2.1"))
    with pytest.raises(ConnectError, match=r"cannot bind 192.0.2.77:0 for host.test at 192.0.2.1:443") as caught:
        await net.run(local_addr=("192.0.2.77", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.case("trio#809")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError, None])
@pytest.mark.parametrize("addresses", [["192.0.2.1"], ["2001:db8::1", "192.0.2.1"]])
@pytest.mark.parametrize("where", ["factory", "connect", "finish"])
async def test_no_socket_survives_an_error_anywhere(
    autojump_clock: MockClock, where: str, addresses: list[str], error: type[BaseException] | None
) -> None:
    """`None`: the caller is cancelled there."""
    gc.disable()
    scope = trio.CancelScope()

    async def interrupt() -> None:
        if error is not None:
            raise error
        scope.cancel()
        await trio.lowlevel.checkpoint()

    def make(info: Any) -> socket.socket:
        if where == "factory":
            if error is not None:
                raise error
            scope.cancel()
        return net.make_socket(info)

    async def connect(sock: socket.socket, sockaddr: Any) -> None:
        if where == "connect":
            await interrupt()
        await trio.lowlevel.checkpoint()

    async def finish(stream: SocketStream, progress: Progress) -> Any:
        try:
            if where == "finish":
                await interrupt()
            await trio.lowlevel.checkpoint()
        except BaseException:
            stream.close_nowait()
            raise
        return "", stream

    net = Net({}, batch(ANY, *addresses), socket_factory=make)
    net.options = TCPOptions(lookups=net.lookups, history=net.history, connect=connect, socket_factory=make)  # type: ignore[arg-type]
    net.finish = finish  # type: ignore[method-assign]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(scope)
            if error is not None:
                stack.enter_context(pytest.raises(error))
            await net.run()
        assert scope.cancelled_caught == (error is None)
    finally:
        gc.enable()


async def test_a_lookup_that_is_complete_is_left_before_the_race(autojump_clock: MockClock) -> None:
    """Else its end would be told after the attempts."""
    net = Net({"192.0.2.1": refused(), "192.0.2.2": good}, batch(V6), batch(V4, "192.0.2.1", "192.0.2.2"))
    still_open = []

    async def finish(stream: SocketStream, progress: Progress) -> Any:
        still_open.append(net.lookups.open_lookups)
        return "", stream

    net.finish = finish  # type: ignore[method-assign]
    await net.run()
    assert still_open == [0]


# The address policy


def no_private(host: str, address: IPv4Address | IPv6Address) -> bool:
    assert host in ("host.test", "::ffff:10.0.0.1", "10.0.0.1")
    assert getattr(address, "ipv4_mapped", None) is None
    return not address.is_private or address == IPv6Address("2001:db8::1")


async def test_policy_sees_literals_and_answers(autojump_clock: MockClock) -> None:
    for target in ("10.0.0.1", "::ffff:10.0.0.1"):
        net = Net({}, address_policy=no_private)
        with pytest.raises(AddressDeniedError, match=target):
            await net.run(target)
        assert net.dialled == []
        assert [name for name, _ in net.events] == ["AttemptDenied"]
    net = Net({}, batch(ANY, "10.0.0.1", "::ffff:10.0.0.2"), address_policy=no_private)
    with pytest.raises(AddressDeniedError, match=r"10\.0\.0\.1, ::ffff:10\.0\.0\.2"):
        await net.run()


async def test_policy_partly(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": good}, batch(V6, "2001:db8::1"), batch(V4, "10.0.0.1"), address_policy=no_private)
    net.lookups.answers.reverse()
    assert await net.run() == "2001:db8::1"
    assert net.order == ["2001:db8::1"]
    assert ("AttemptDenied", {"address": "10.0.0.1"}) in net.events


async def test_denied_addresses_do_not_start_the_resolution_delay(autojump_clock: MockClock) -> None:
    net = Net(
        {"2001:db8::1": good}, (0, batch(V4, "10.0.0.1")), (1, batch(V6, "2001:db8::1")), address_policy=no_private
    )
    await net.run()
    assert net.dialled == [("2001:db8::1", 1)]


async def test_policy_without_anybody_to_tell(autojump_clock: MockClock) -> None:
    net = Net({}, address_policy=no_private)
    with pytest.raises(AddressDeniedError, match=r"10\.0\.0\.1"):
        await connect_tcp(
            parse_host("10.0.0.1"),
            443,
            net.options,
            net.finish,
            local_addr=None,
            history_key=None,
            judged=True,
            report=None,
            discard=lambda pair: pair[1].close_nowait(),
        )
    assert net.order == []


async def test_policy_does_not_judge_proxies(autojump_clock: MockClock) -> None:
    net = Net({"10.0.0.1": good}, address_policy=no_private)
    assert await net.run("10.0.0.1", judged=False) == "10.0.0.1"


async def test_policy_that_raises_denies(autojump_clock: MockClock) -> None:
    def policy(host: str, address: Any) -> bool:
        raise ZeroDivisionError

    net = Net({}, batch(ANY, "192.0.2.1"), address_policy=policy)
    with pytest.raises(AddressDeniedError):
        await net.run()


# History


async def test_a_dead_first_address_costs_its_delay_once(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": black, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    await net.run()
    assert net.now() == 0.25
    await net.run()
    assert net.now() == 0.25
    assert net.order == ["2001:db8::1", "192.0.2.1", "192.0.2.1"]
    await net.run(history_key="another isolation")
    assert net.now() == 0.5


async def test_ports_of_one_host_do_not_displace_each_other(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": black, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    for port in (80, 443, 80, 443):
        await net.run(port=port)
    assert net.now() == 0.5


async def test_history_lasts_ten_minutes_from_when_it_was_learnt(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": black, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    await net.run()
    await trio.sleep(599)
    await net.run()
    assert net.order[2:] == ["192.0.2.1"]
    await trio.sleep(1)
    await net.run()
    assert net.order[3:] == ["2001:db8::1", "192.0.2.1"]


async def test_a_failure_forgets(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": black, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    await net.run()
    net.hosts |= {"192.0.2.1": refused(), "2001:db8::1": good}
    await net.run()
    assert net.order[2:] == ["192.0.2.1", "2001:db8::1"]
    net.hosts["192.0.2.1"] = good
    await net.run()
    assert net.order[4:] == ["2001:db8::1"]


async def test_a_failure_forgets_even_if_nobody_wins(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": black, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    await net.run()
    net.hosts |= {"192.0.2.1": refused(), "2001:db8::1": refused()}
    with pytest.raises(ConnectError):
        await net.run()
    net.hosts["2001:db8::1"] = good
    await net.run()
    assert net.order[4:] == ["2001:db8::1"]


async def test_equally_good_addresses_keep_their_rotation(autojump_clock: MockClock) -> None:
    net = Net({"192.0.2.1": good, "192.0.2.2": good}, batch(ANY, "192.0.2.1", "192.0.2.2"))
    await net.run()
    net.lookups.answers = [(0, batch(ANY, "192.0.2.2", "192.0.2.1"))]
    await net.run()
    assert net.order == ["192.0.2.1", "192.0.2.2"]


async def test_an_address_that_dns_no_longer_gives_is_not_used(autojump_clock: MockClock) -> None:
    net = Net({"2001:db8::1": black, "192.0.2.1": good}, batch(ANY, "2001:db8::1", "192.0.2.1"))
    await net.run()
    net.lookups.answers = [(0, batch(ANY, "2001:db8::2"))]
    net.hosts["2001:db8::2"] = good
    assert await net.run() == "2001:db8::2"


async def test_history_does_not_cross_networks(autojump_clock: MockClock) -> None:
    """RFC 8305 section 4, MUST NOT. The other network shows in the source address."""
    source = IPv4Address("10.1.0.5")
    net = Net(
        {"2001:db8::1": black, "192.0.2.1": good},
        batch(ANY, "2001:db8::1", "192.0.2.1"),
        source=lambda address: source,
    )
    await net.run()
    source = IPv4Address("10.2.0.5")
    await net.run()
    assert net.order[2:] == ["2001:db8::1", "192.0.2.1"]


# Events


async def test_events_of_a_race(autojump_clock: MockClock) -> None:
    net = Net(
        {"2001:db8::1": refused(), "192.0.2.1": black, "2001:db8::2": good},
        batch(ANY, "2001:db8::1", "192.0.2.1", "2001:db8::2"),
    )
    await net.run()
    told = [(name.removeprefix("Attempt"), fields["index"]) for name, fields in net.events]
    assert told == [
        *[("Started", 0), ("Failed", 0)],
        *[("Started", 1), ("Started", 2), ("Progressed", 2)],
        *[("Lost", 1), ("Won", 2)],
    ]
    assert net.events[0][1]["address"] == ("2001:db8::1", 443, 0, 0)
    assert isinstance(net.events[1][1]["error"], ConnectError)


async def test_every_started_attempt_ends_in_one_event(autojump_clock: MockClock) -> None:
    addresses = [f"192.0.2.{n}" for n in range(14)]
    net = Net({address: Behaviour(0.3) for address in addresses}, batch(ANY, *addresses), happy_eyeballs_delay=0.01)
    await net.run()
    ends = sorted(fields["index"] for name, fields in net.events if name[7:] in ("Won", "Lost", "Failed"))
    assert ends == list(range(len(net.order)))


async def test_two_that_win_in_one_tick_end_in_one_event_each(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    gate = trio.Event()

    async def connect(sock: socket.socket, sockaddr: Any) -> None:
        await gate.wait()

    async def finish(stream: SocketStream, progress: Progress) -> Any:
        return "it", stream

    async def open_gate() -> None:
        await trio.sleep(0.3)
        gate.set()

    net = Net({})
    net.options = TCPOptions(
        lookups=FakeLookups([(0, batch(ANY, "192.0.2.1", "192.0.2.2"))]),  # type: ignore[arg-type]
        history=net.history,
        socket_factory=net.make_socket,
        connect=connect,
    )
    net.finish = finish  # type: ignore[method-assign]
    nursery.start_soon(open_gate)
    await net.run()
    assert [(name, fields["index"]) for name, fields in net.events[-2:]] == [("AttemptLost", 1), ("AttemptWon", 0)]


# Real sockets


Finish = Callable[[SocketStream, Progress], Awaitable[SocketStream]]


async def real(
    *addresses: str, port: int, local_addr: tuple[str, int] | None = None, finish: Finish | None = None, **options: Any
) -> SocketStream:
    async def done(stream: SocketStream, progress: Progress) -> SocketStream:
        return stream

    history = History()
    lookups: Any = FakeLookups([(0, batch(ANY, *addresses))])
    return await connect_tcp(
        parse_host("localhost"),
        port,
        TCPOptions(lookups=lookups, history=history, **options),
        finish or done,
        local_addr=local_addr,
        history_key=None,
        judged=True,
        report=None,
        discard=SocketStream.close_nowait,
    )


@pytest.fixture
async def listener() -> AsyncIterator[trio.SocketListener]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener


def port_of(listener: trio.SocketListener) -> int:
    port: int = listener.socket.getsockname()[1]
    return port


async def test_real_refused_then_good(listener: trio.SocketListener) -> None:
    async with await real("::1", "127.0.0.1", port=port_of(listener)) as stream, await listener.accept() as peer:
        await stream.send_all(b"hello")
        assert await peer.receive_some(10) == b"hello"
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.probe()


async def test_real_refused() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        with pytest.raises(ConnectError, match=r"127\.0\.0\.1") as caught:
            await real("127.0.0.1", port=sock.getsockname()[1])
    assert caught.value.errno == errno.ECONNREFUSED
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert os.strerror(errno.ECONNREFUSED) in str(caught.value)


async def test_real_refused_has_the_words_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "errorTab", {errno.ECONNREFUSED: "The target refused."}, raising=False)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectError, match=r"The target refused\."):
            await real("127.0.0.1", port=sock.getsockname()[1])


async def test_real_unreachable_at_once() -> None:
    """The system refuses to begin: TCP has no groups. Even so it is a checkpoint."""
    with socket.socket() as sock:
        sock.setblocking(False)
        with trio.testing.assert_checkpoints(), pytest.raises(OSError, match="unreachable") as caught:
            await connect_socket(sock, ("224.0.0.1", 80))
    assert caught.value.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}


def test_an_address_that_nothing_leads_to_has_no_source() -> None:
    """A link-local address means nothing without its link."""
    unreachable, loopback = Address.from_text("fe80::1", 80), Address.from_text("127.0.0.1", 80)
    assert unreachable is not None
    assert loopback is not None
    assert source_address(unreachable) is None
    assert source_address(loopback) == IPv4Address("127.0.0.1")


async def test_real_local_port_in_use(listener: trio.SocketListener) -> None:
    """A port that was asked for is bound before the connect, and the error says that it was the binding."""
    taken = ("127.0.0.1", port_of(listener))
    with pytest.raises(ConnectError, match=rf"cannot bind 127\.0\.0\.1:{taken[1]} for") as caught:
        await real("127.0.0.1", port=taken[1], local_addr=taken)
    assert caught.value.errno == errno.EADDRINUSE


async def test_real_local_addr(listener: trio.SocketListener) -> None:
    async with (
        await real("127.0.0.1", port=port_of(listener), local_addr=("127.0.0.7", 0)) as stream,
        await listener.accept() as peer,
    ):
        assert peer.socket.getpeername() == stream.socket.getsockname()
        assert stream.socket.getsockname()[0] == "127.0.0.7"


@pytest.mark.skipif(not hasattr(socket, "SO_BINDTODEVICE"), reason="a full queue swallows SYNs on Linux only")
async def test_real_blackhole_then_good(listener: trio.SocketListener) -> None:
    """A listener whose queue is full drops what comes, as a blackhole does."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.2", port_of(listener)))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with await real("127.0.0.2", "127.0.0.1", port=port_of(listener), happy_eyeballs_delay=0.05) as stream:
            assert stream.socket.getpeername()[0] == "127.0.0.1"


@pytest.mark.case("anyio#1094")
async def test_real_cancellation_of_a_blackholed_race() -> None:
    """Nothing but the caller's own cancellation comes out, and it comes out bare."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        with trio.CancelScope() as scope:
            try:
                with trio.move_on_after(0.05) as scope:
                    await real("127.0.0.1", "127.0.0.1", port=full.getsockname()[1], happy_eyeballs_delay=0.01)
            finally:
                after = len(os.listdir("/proc/self/fd")) if before else 0
        assert scope.cancelled_caught
        assert after == before


@pytest.mark.case("trio#809")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("where", ["factory", "connect", "finish"])
def test_real_keyboard_interrupt(where: str, count: int) -> None:
    """A real signal, at three moments: it comes out bare, and no socket is left though nothing is collected."""
    sockets: list[socket.socket] = []

    def make(info: Any) -> socket.socket:
        if where == "factory":
            signal.raise_signal(signal.SIGINT)
        sockets.append(socket.socket(*info[:3]))
        return sockets[-1]

    async def connect(sock: socket.socket, sockaddr: Any) -> None:
        if where == "connect":
            signal.raise_signal(signal.SIGINT)
        await trio.sleep(0.02)

    async def finish(stream: SocketStream, progress: Progress) -> SocketStream:
        try:
            if where == "finish":
                signal.raise_signal(signal.SIGINT)
            await trio.sleep(1)
        except BaseException:
            stream.close_nowait()
            raise
        return stream

    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(
                partial(
                    real,
                    *["127.0.0.1", "127.0.0.2"][:count],
                    port=1,
                    finish=finish,
                    socket_factory=make,
                    connect=connect,
                    happy_eyeballs_delay=0.01,
                )
            )
        assert sockets
        assert all(sock.fileno() == -1 for sock in sockets)
    finally:
        gc.enable()


class TwoFamilies(Resolver):
    """Answers IPv4 at once and IPv6 after 20 ms: a real shared lookup, with virtual time."""

    splits_families = True

    async def resolve(self, host: str, port: int = 0, family: int = ANY) -> list[ResolveResult]:
        if family == V6:
            await trio.sleep(0.02)
            return [ResolveResult("2001:db8::1", V6, None)]
        await trio.lowlevel.checkpoint()
        return [ResolveResult("192.0.2.1", V4, None)]


async def test_real_lookups(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """The shared lookups that `FakeLookups` stands for everywhere else."""
    net = Net({"2001:db8::1": refused(), "192.0.2.1": good})
    lookups = Lookups(TwoFamilies(), cache=None)
    lookups.start(nursery)
    net.lookups.open = lookups.open  # type: ignore[method-assign, assignment]
    assert await net.run() == "192.0.2.1"
    assert net.dialled == [("2001:db8::1", 0.02), ("192.0.2.1", 0.02)]
    names = [name for name, _ in net.events]
    assert names.index("LookupFinished") < names.index("AttemptStarted")
    lookups.close()
