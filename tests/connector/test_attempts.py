"""One attempt: its time, its last step, its exceptions, and streams that are not ours."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import ConnectProxy, Fail, FakeNetwork, Hang, MemoryStream, ScriptedConnector, Succeed

from .common import A, B, check_clean, counts, settle

Scripted = Callable[..., Any]


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "threshold", "begun", "ended"),
    [
        (3, 5, 0.25, 3.25),  # not above the threshold: to the moment
        (5, 5, 0.25, 5.25),
        (6, 5, 0.25, 7),  # above it: the next whole second
        (6, 5, 0, 6),
        (0.5, 0, 0.25, 1),
        (5.5, 5, 0.25, 6),
        (0, 5, 0.25, 0.25),
    ],
)
async def test_connect_timeout_ends_at(
    timeout: float,
    threshold: float,
    begun: float,
    ended: float,
    autojump_clock: trio.testing.MockClock,
    scripted: Scripted,
) -> None:
    async with scripted(Hang(), connect_timeout=timeout, timeout_ceil_threshold=threshold) as connector:
        start = trio.current_time()
        assert start == int(start)
        await trio.sleep(begun)
        with pytest.raises(trioconn.ConnectTimeoutError, match=f"connect_timeout={timeout:g} s") as caught:
            await connector.connect(A)
        assert trio.current_time() - start == ended
        error = caught.value
        assert isinstance(error, TimeoutError) and error.stage == "connect" and error.route == connector.route(A)
        assert connector.statistics().failed == {"connect": 1} and counts(connector) == (0, 0, 0, 0)


@pytest.mark.parametrize("timeout", [None, float("inf")])
async def test_no_connect_timeout(
    timeout: float | None, autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted(Succeed(after=1e6), connect_timeout=timeout) as connector:
        (await connector.connect(A)).release()


async def test_connect_timeout_bounds_every_attempt_anew(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    """It is of the attempt and not of the caller, who may wait for several."""
    async with (
        scripted([Hang(), Succeed(after=2)], connect_timeout=3, limit=1) as connector,
        trio.open_nursery() as nursery,
    ):

        async def first() -> None:
            with pytest.raises(trioconn.ConnectTimeoutError):
                await connector.connect(A)

        nursery.start_soon(first)
        await trio.sleep(1)
        start = trio.current_time()
        (await connector.connect(A)).release()
        assert trio.current_time() - start == 4


@pytest.mark.parametrize("stage", ["resolve", "connect", "proxy", "tls", "protocol"])
async def test_the_timeout_says_how_far_it_had_come(
    stage: str,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    client_ssl: ssl.SSLContext,
    no_fd_leak: None,
) -> None:
    async def protocol(stream: trio.abc.Stream, route: trioconn.Route) -> None:
        await trio.sleep_forever()

    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1", after=100 if stage == "resolve" else 0)
    network.add_host("proxy.test", "192.0.2.9")
    network.listen("192.0.2.9", ConnectProxy(after=100))
    if stage == "connect":
        network.blackhole("192.0.2.1")
    else:
        network.mute("192.0.2.1")
    options: dict[str, Any] = {"protocol_factory": protocol} if stage == "protocol" else {}
    if stage == "proxy":
        options["proxy"] = "http://proxy.test:1"
    async with network.connector(ssl=client_ssl, connect_timeout=3, **options) as connector:
        start = trio.current_time()
        with pytest.raises(trioconn.ConnectTimeoutError) as caught:
            await connector.connect("tls://a.test:1" if stage == "tls" else "tcp://a.test:1")
        assert caught.value.stage == stage and trio.current_time() - start == 3
        assert connector.statistics().failed == {stage: 1}
    check_clean(connector)
    nursery.cancel_scope.cancel()


async def test_the_caller_s_scope_is_the_caller_s(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Hang(), connect_timeout=10) as connector:
        with pytest.raises(trio.TooSlowError), trio.fail_after(2):
            await connector.connect(A)


# ---- exceptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError(errno.ECONNREFUSED, "refused"), ConnectionResetError(errno.ECONNRESET, "reset")]
)
async def test_an_os_error_becomes_a_connect_error(error: OSError, scripted: Scripted) -> None:
    async with scripted(Fail(error)) as connector:
        with pytest.raises(trioconn.ConnectError) as caught:
            await connector.connect(A)
        assert caught.value.errno == error.errno and isinstance(caught.value.__cause__, type(error))
        assert caught.value.route == connector.route(A) and caught.value.stage == "connect"
        assert "a.test:1" in str(caught.value) and str(error.strerror) in str(caught.value)


@pytest.mark.parametrize(
    "error", [ValueError("mine"), trio.TooSlowError("mine"), ExceptionGroup("mine", [ValueError()])]
)
async def test_others_reach_the_waiter_unchanged(error: Exception, scripted: Scripted) -> None:
    def script(route: trioconn.Route) -> Succeed:
        raise error

    async with scripted(script) as connector:
        with pytest.raises(type(error)) as caught:
            await connector.connect(A)
        assert caught.value is error and connector.statistics().failed == {"other": 1}
        assert connector._shell.crew.nursery is not None  # and the connector lives on
        assert len(connector._shell.crew.nursery.child_tasks) == 2


@pytest.mark.case("anyio#809")
async def test_failed_connects_leave_no_cycles(scripted: Scripted, no_gc: None) -> None:
    import weakref

    class Noticed(OSError):
        pass

    seen: list[weakref.ref[BaseException]] = []

    def script(route: trioconn.Route) -> Succeed:
        error = Noticed(111, "refused")
        seen.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async with scripted(script) as connector:
        try:
            await connector.connect(A)
        except trioconn.ConnectError:
            pass
        await settle()
        assert [ref() for ref in seen] == [None]


# ---- protocol_factory ------------------------------------------------------------------------------------------------


class Protocol:
    def __init__(self) -> None:
        self.should_close = False


@pytest.mark.aiohttp("base_connector_allows_high_level_protocols")
async def test_protocol_of_a_connection(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    made: list[tuple[trio.abc.Stream, trioconn.Route]] = []

    async def factory(stream: trio.abc.Stream, route: trioconn.Route) -> Protocol:
        made.append((stream, route))
        await trio.sleep(2)
        return Protocol()

    async with scripted(Succeed(after=1), protocol_factory=factory) as connector:
        start = trio.current_time()
        lease = await connector.connect(A)
        assert trio.current_time() - start == 3
        protocol = lease.protocol
        assert isinstance(protocol, Protocol) and made == [(connector.streams[0], lease.route)]
        lease.release()
        again = connector.connect_nowait(A)
        assert again.protocol is protocol
        protocol.should_close = True
        again.release()
        assert connector.statistics().closed == {"protocol": 1}
        other = await connector.connect(A)
        assert other.protocol is not protocol and len(made) == 2
        other.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(5, "no login"), trioconn.ConnectError), (ValueError("no login"), ValueError)],
)
async def test_a_protocol_that_fails(error: Exception, expected: type[Exception], scripted: Scripted) -> None:
    async def factory(stream: trio.abc.Stream, route: trioconn.Route) -> None:
        await stream.send_all(b"login")
        raise error

    async with scripted(protocol_factory=factory) as connector:
        with pytest.raises(expected, match="no login") as caught:
            await connector.connect(A)
        if isinstance(caught.value, trioconn.ConnectError):
            assert caught.value.stage == "protocol"
        assert connector.streams[0].closed and counts(connector) == (0, 0, 0, 0)


async def test_a_protocol_that_never_ends(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async def factory(stream: trio.abc.Stream, route: trioconn.Route) -> None:
        await stream.receive_some()

    async with scripted(Succeed(after=1), protocol_factory=factory, connect_timeout=5) as connector:
        with pytest.raises(trioconn.ConnectTimeoutError) as caught:
            await connector.connect(A)
        assert caught.value.stage == "protocol" and connector.streams[0].closed
        with trio.move_on_after(2):
            await connector.connect(A)
        await settle()
        assert connector.streams[1].closed and counts(connector) == (0, 0, 0, 0)


async def test_should_close_that_raises(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        @property
        def should_close(self) -> bool:
            raise ValueError("mine")

    async def factory(stream: trio.abc.Stream, route: trioconn.Route) -> Bad:
        return Bad()

    async with scripted(protocol_factory=factory) as connector:
        (await connector.connect(A)).release()  # which never raises
        assert counts(connector) == (0, 0, 0, 0) and "ValueError: mine" in caplog.text


# ---- streams of somebody else's --------------------------------------------------------------------------------------


class Foreign(trioconn.BaseConnector):
    """Whatever a test makes."""

    def __init__(self, make: Callable[[trioconn.Route], Any], **options: Any) -> None:
        super().__init__(**options)
        self._make = make

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        stream: trio.abc.Stream = await self._make(route)
        return stream


async def use_twice(connector: trioconn.BaseConnector, target: str = A) -> None:
    for n in range(2):
        async with await connector.connect(target) as lease:
            assert lease.reused == (n > 0)
            await lease.stream.send_all(b"x")
            assert await lease.stream.receive_some() == b"x"
            lease.release()
    assert counts(connector) == (0, 1, 0, 0)


async def test_a_socket_stream_of_trio(tcp_server: Callable[..., Any], no_fd_leak: None) -> None:
    async with tcp_server() as port:

        async def make(route: trioconn.Route) -> trio.SocketStream:
            return await trio.open_tcp_stream("127.0.0.1", port)

        async with Foreign(make) as connector:
            await use_twice(connector)
            async with await connector.connect(A) as lease:
                await lease.stream.send_all(b"x")
                await trio.sleep(0.05)
                lease.release()  # with the answer unread
            assert connector.statistics().open == 0
            await use_twice(connector)
            lease = connector.connect_nowait(A)
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await lease.stream.receive_some()

                nursery.start_soon(read)
                stream = lease.stream
                await settle()
                lease.release()
                assert stream
            assert connector.statistics().closed["in use"] == 1
        check_clean(connector)


async def test_a_peer_that_has_gone_already_has_no_address() -> None:
    """The connection was made, so it is handed out, and what became of it is for its holder to read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = trio.socket.from_stdlib_socket(socket.create_connection(listener.getsockname()))
        server, _ = listener.accept()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets, when it is closed
    server.close()
    async with ScriptedConnector(Succeed(stream=trio.SocketStream(client))) as connector:
        async with await connector.connect(A) as lease:
            assert lease.info.remote_address is None and lease.info.local_address[0] == "127.0.0.1"
            if sys.platform != "win32":  # Wine makes a clean end of a reset
                with pytest.raises(trio.BrokenResourceError):
                    await lease.stream.receive_some()
        check_clean(connector)


async def test_an_ssl_stream_of_trio(threaded_tls_server: Callable[..., Any], client_ssl: ssl.SSLContext) -> None:
    server = threaded_tls_server()

    async def make(route: trioconn.Route) -> trio.SSLStream[trio.SocketStream]:
        stream = await trio.open_ssl_over_tcp_stream("localhost", server.port, ssl_context=client_ssl)
        await stream.do_handshake()
        return stream

    async with Foreign(make) as connector:
        await use_twice(connector)
        lease = connector.connect_nowait(A)
        assert lease.info.tls[0].version == "TLSv1.3"
        lease.close()
    check_clean(connector)


async def test_memory_streams_of_trio() -> None:
    made: list[trio.StapledStream[Any, Any]] = []

    async def make(route: trioconn.Route) -> trio.abc.Stream:
        made.append(trio.StapledStream(*trio.testing.memory_stream_one_way_pair()))
        return made[-1]

    async with Foreign(make) as connector:
        await use_twice(connector)
        lease = connector.connect_nowait(A)
        assert isinstance(lease.stream, trio.abc.HalfCloseableStream)
        await lease.stream.send_eof()
        assert await lease.stream.receive_some() == b""
        lease.close()
        await settle()  # it cannot be closed without a task
        with pytest.raises(trio.ClosedResourceError):
            await made[0].receive_some()
        await use_twice(connector)
    with pytest.raises(trio.ClosedResourceError):
        await made[1].receive_some()
    check_clean(connector)


async def test_start_tls_on_a_stream_of_somebody_else_s(
    threaded_tls_server: Callable[..., Any], ca: Any, no_gc: None
) -> None:
    server = threaded_tls_server()

    async def make(route: trioconn.Route) -> trio.abc.Stream:
        return await trioconn.start_tls(await trio.open_tcp_stream("127.0.0.1", server.port), route)

    async with Foreign(make) as connector:
        with pytest.raises(trioconn.CertificateError) as caught:
            await connector.connect("tls://localhost:1")  # the default trust does not know our authority
        assert caught.value.stage == "tls"
        assert counts(connector) == (0, 0, 0, 0)
    check_clean(connector)


async def test_schemes_of_a_custom_connector() -> None:
    class Own(ScriptedConnector):
        schemes = frozenset({"tcp"})

    async with Own() as connector:
        (await connector.connect(A)).close()
        with pytest.raises(trioconn.InvalidTargetError, match="it takes tcp"):
            await connector.connect("https://a.test")
        assert connector.dials == 1


# ---- prewarm ---------------------------------------------------------------------------------------------------------


async def test_prewarm(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=1), limit=4) as connector:
        start = trio.current_time()
        await connector.prewarm(A, 2)
        assert trio.current_time() - start == 1 and counts(connector) == (0, 2, 0, 0)
        lease = connector.connect_nowait(A)
        await connector.prewarm(A, 2)  # leased ones count
        assert connector.dials == 2
        await connector.prewarm(A, 3)
        assert counts(connector) == (1, 2, 0, 0)
        await connector.prewarm(A, 10)  # what there is room for
        assert counts(connector) == (1, 3, 0, 0) and connector.most_open == 4
        await connector.prewarm(B, 1)  # none
        await connector.prewarm(A, 0)
        assert connector.dials == 4
        lease.release()
        with pytest.raises(ValueError, match="n must not be negative"):
            await connector.prewarm(A, -1)
        with pytest.raises(TypeError):
            await connector.prewarm(A, 1.5)  # type: ignore[arg-type]
        with pytest.raises(trioconn.InvalidTargetError):
            await connector.prewarm("nonsense://a", 1)


async def test_prewarm_joins_attempts_under_way(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=2)) as connector, trio.open_nursery() as nursery:
        nursery.start_soon(connector.prewarm, A, 2)
        await trio.sleep(1)
        start = trio.current_time()
        await connector.prewarm(A, 2)
        assert trio.current_time() - start == 1 and connector.dials == 2


@pytest.mark.parametrize(("failing", "raises"), [([0], True), ([1], True), ([0, 1], True), ([], False)])
async def test_prewarm_raises_the_first_error_if_fewer_came(
    failing: list[int], raises: bool, autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    script = [
        Fail(OSError(100 + n, f"number {n}"), after=n + 1) if n in failing else Succeed(after=n + 1) for n in range(2)
    ]
    async with scripted(script) as connector:
        if raises:
            with pytest.raises(trioconn.ConnectError) as caught:
                await connector.prewarm(A, 2)
            assert caught.value.errno == 100 + failing[0]
        else:
            await connector.prewarm(A, 2)
        assert counts(connector) == (0, 2 - len(failing), 0, 0)


async def test_prewarm_waits_for_no_attempt_of_another_route(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    async with scripted([Succeed(after=5), Succeed(after=1)]) as connector, trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(connector.prewarm, B, 1)
        await settle()
        await connector.prewarm(A, 1)
        assert trio.current_time() - start == 1 and counts(connector) == (0, 1, 1, 0)


async def test_prewarm_raises_nothing_if_others_made_up_for_it(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    script = [Fail(OSError(111, "no"), after=1), Succeed(after=3), Succeed(after=0.5)]
    async with scripted(script) as connector, trio.open_nursery() as nursery:
        nursery.start_soon(connector.prewarm, A, 2)
        await trio.sleep(2)
        leases: list[trioconn.Connection] = []

        async def connect() -> None:
            leases.append(await connector.connect(A))

        for _ in range(2):
            nursery.start_soon(connect)
        await trio.sleep(1)
        await settle()
        assert not nursery.child_tasks and counts(connector) == (2, 0, 0, 0) and connector.dials == 3
        for lease in leases:
            lease.release()


async def test_two_prewarms_never_get_the_same_error(
    autojump_clock: trio.testing.MockClock, scripted: Scripted
) -> None:
    errors: list[BaseException] = []
    async with scripted(Fail(OSError(111, "refused"), after=1)) as connector, trio.open_nursery() as nursery:

        async def warm() -> None:
            with pytest.raises(trioconn.ConnectError) as caught:
                await connector.prewarm(A, 1)
            errors.append(caught.value)

        nursery.start_soon(warm)
        nursery.start_soon(warm)
    assert len(errors) == 2 and errors[0] is not errors[1] and connector.dials == 1


async def test_a_cancelled_prewarm_stops_no_attempt(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=2)) as connector:
        with trio.move_on_after(1):
            await connector.prewarm(A, 2)
        assert counts(connector) == (0, 0, 2, 0)
        await trio.sleep(1)
        await settle()
        assert counts(connector) == (0, 2, 0, 0)


async def test_prewarm_and_close(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Hang()) as connector, trio.open_nursery() as nursery:

        async def warm() -> None:
            with pytest.raises(trioconn.ConnectorClosedError):
                await connector.prewarm(A, 1)

        nursery.start_soon(warm)
        await settle()
        await connector.aclose()


async def test_a_waiter_takes_what_prewarm_makes(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted(Succeed(after=2), limit=1) as connector, trio.open_nursery() as nursery:
        nursery.start_soon(connector.prewarm, A, 1)
        await trio.sleep(1)
        async with await connector.connect(A) as lease:
            assert connector.dials == 1 and not lease.reused and isinstance(connector.streams[0], MemoryStream)


async def test_a_failure_of_prewarm_refuses_nobody(autojump_clock: trio.testing.MockClock, scripted: Scripted) -> None:
    async with scripted([Fail(OSError(111, "no"), after=2), Succeed(after=1)], limit=1) as connector:
        async with trio.open_nursery() as nursery:

            async def warm() -> None:
                with pytest.raises(trioconn.ConnectError):
                    await connector.prewarm(A, 1)

            nursery.start_soon(warm)
            await trio.sleep(1)
            (await connector.connect(A)).release()
        assert connector.dials == 2
