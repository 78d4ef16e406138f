"""The tools for tests keep their promises, or the tests that use them show nothing."""

from __future__ import annotations

import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable

import pytest
import trio
import trio.testing

import trioconn
from trioconn._establish import tls_context
from trioconn.testing import (
    ConnectProxy,
    Fail,
    FakeNetwork,
    Hang,
    MemoryStream,
    ScriptedConnector,
    Succeed,
    memory_stream_pair,
)


async def make_pair() -> tuple[MemoryStream, MemoryStream]:
    return memory_stream_pair()


async def make_clogged_pair() -> tuple[MemoryStream, MemoryStream]:
    left, right = memory_stream_pair(capacity=10)
    assert left.send_nowait(b"x" * 11) == right.send_nowait(b"x" * 11) == 10
    return left, right


async def test_memory_streams_conform() -> None:
    await trio.testing.check_two_way_stream(make_pair, make_clogged_pair)
    await trio.testing.check_half_closeable_stream(make_pair, make_clogged_pair)


async def test_what_a_memory_stream_knows_at_once() -> None:
    left, right = memory_stream_pair()
    assert left.probe() and left.fileno() == -1
    right.send_nowait(b"abc")
    assert not left.probe() and left.probe_reason == "stray bytes"
    assert left.receive_nowait(2) == b"ab" and left.receive_nowait() == b"c"
    with pytest.raises(trio.WouldBlock):
        left.receive_nowait()
    assert left.probe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert not left.probe() and left.probe_reason == "in use"
        nursery.cancel_scope.cancel()
    assert left.probe()
    right.close_nowait()
    assert not left.probe() and left.probe_reason == "server closed"
    assert left.receive_nowait() == b""
    assert repr(left) == "<MemoryStream, open>"
    left.close_nowait()
    assert repr(left) == "<MemoryStream, closed>"
    assert not left.probe() and left.probe_reason == "closed" and left.closed
    with pytest.raises(trio.ClosedResourceError):
        await left.send_eof()


async def test_a_reset_loses_what_was_on_the_way() -> None:
    left, right = memory_stream_pair()
    right.send_nowait(b"lost")
    right.reset()
    assert not left.probe() and left.probe_reason == "server closed"
    with pytest.raises(trio.BrokenResourceError):
        await left.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await left.send_all(b"x")


async def test_a_send_that_was_cut_off_spoils_the_stream() -> None:
    left, right = memory_stream_pair(capacity=1)
    with trio.move_on_after(0.01):
        await left.send_all(b"abc")
    assert not left.probe() and left.probe_reason == "error"
    right.close_nowait()


async def test_a_script_is_followed_in_order(autojump_clock: trio.testing.MockClock) -> None:
    error = ValueError("third")
    connector = ScriptedConnector([Succeed(after=1), Hang(), Fail(error, after=2)], connect_timeout=4)
    async with connector:
        start = trio.current_time()
        (await connector.connect("tcp://a.test:1")).close()
        assert trio.current_time() - start == 1
        with pytest.raises(trioconn.ConnectTimeoutError):
            await connector.connect("tcp://b.test:1")
        assert trio.current_time() - start == 5
        with pytest.raises(ValueError, match="third") as caught:
            await connector.connect("tcp://c.test:1")
        assert caught.value is not error
        with pytest.raises(AssertionError, match=r"dial number 4.*one more"):
            await connector.connect("tcp://d.test:1")
        assert connector.dials == 4 and [route.host for route in connector.routes] == [
            *("a.test", "b.test", "c.test", "d.test")
        ]
        assert [moment - start for moment in connector.moments] == [0, 1, 5, 7]
        assert connector.most_open == 1 and not connector.open_streams
        assert len(connector.streams) == len(connector.peers) == 1


async def test_a_script_may_depend_on_the_route_and_peers_have_handlers(nursery: trio.Nursery) -> None:
    async def shout(peer: MemoryStream) -> None:
        async for data in peer:
            await peer.send_all(data.upper())

    def script(route: trioconn.Route) -> Succeed | Fail:
        return Fail(ConnectionRefusedError(111, "no")) if route.host == "dead.test" else Succeed()

    async with ScriptedConnector(script, handler=shout, nursery=nursery) as connector:
        async with await connector.connect("tcp://a.test:1") as lease:
            await lease.stream.send_all(b"hello")
            assert await lease.stream.receive_some() == b"HELLO"
        with pytest.raises(trioconn.ConnectError) as caught:
            await connector.connect("tcp://dead.test:1")
        assert caught.value.errno == 111


def test_a_handler_needs_a_nursery() -> None:
    with pytest.raises(TypeError, match="nursery"):
        ScriptedConnector(handler=trio.aclose_forcefully)


async def test_a_network_of_all_sorts_of_addresses(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, no_fd_leak: None
) -> None:
    network = FakeNetwork(nursery)
    network.add_host("a.test", "2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2", after=0.125)
    network.blackhole("2001:db8::1")
    network.refuse("192.0.2.1", after=0.125)
    network.listen("2001:db8::2", after=0.5)
    async with network.connector() as connector:
        start = trio.current_time()
        async with await connector.connect("tcp://a.test:7") as lease:
            # Found at 0.125, then v6; v4 0.25 later, refused after 0.125, and the next one at once.
            assert [(address, moment - start) for address, moment in network.dialled] == [
                ("2001:db8::1", 0.125),
                ("192.0.2.1", 0.375),
                ("2001:db8::2", 0.5),
                ("192.0.2.2", 0.75),
            ]
            assert trio.current_time() - start == 1
            await lease.stream.send_all(b"echo")
            assert await lease.stream.receive_some() == b"echo"
            assert len(network.open_peers) == 1
        with pytest.raises(trioconn.ResolveError):
            await connector.connect("tcp://nowhere.test:1")
    assert not network.open_peers
    await trio.testing.wait_all_tasks_blocked()
    assert not network.resolver.closed  # it was given


async def test_a_network_where_nothing_works(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, no_fd_leak: None
) -> None:
    network = FakeNetwork(nursery, ipv6=False)
    network.add_host("a.test", "192.0.2.1", "2001:db8::1", after={socket.AF_INET6: 0.01})
    network.add_host("b.test", error=OSError("resolver on fire"))
    async with network.connector(happy_eyeballs_delay=None) as connector:
        with pytest.raises(trioconn.ConnectError) as caught:
            await connector.connect("tcp://a.test:1")
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        assert [address for address, _ in network.dialled] == ["192.0.2.1", "2001:db8::1"]  # no IPv6 of our own
        with pytest.raises(trioconn.ResolveError):
            await connector.connect("tcp://b.test:1")
    for option in ("socket_factory", "local_addr"):
        with pytest.raises(TypeError, match=option):
            network.connector(**{option: None})


@pytest.mark.parametrize("verified", [True, False])
async def test_the_first_tls_of_the_process_takes_no_virtual_time(
    verified: bool,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    server_ssl: Callable[..., ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls_context, "_contexts", OrderedDict())  # nobody has made one yet, which takes a thread
    network = FakeNetwork(nursery)
    network.add_host("example.test", "192.0.2.1")
    network.listen("192.0.2.1", tls=server_ssl())
    async with network.connector(ssl=verified) as connector:
        start = trio.current_time()
        if verified:
            with pytest.raises(trioconn.CertificateError):
                await connector.connect("https://example.test")
        else:
            (await connector.connect("https://example.test", alpn_protocols=["h2"])).close()
        assert trio.current_time() == start


async def test_tls_and_a_mute_peer_in_the_network(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    server_ssl: Callable[..., ssl.SSLContext],
    client_ssl: ssl.SSLContext,
    no_fd_leak: None,
) -> None:
    network = FakeNetwork(nursery)
    network.add_host("a.example.test", "192.0.2.1")
    network.listen("192.0.2.1", tls=server_ssl())
    network.mute("192.0.2.1", port=444)
    async with network.connector(ssl=client_ssl, connect_timeout=3) as connector:
        async with await connector.connect("https://a.example.test") as lease:
            await lease.stream.send_all(b"secret")
            assert await lease.stream.receive_some() == b"secret"
            assert lease.info.tls[0].server_name == "a.example.test"
            lease.release()
        start = trio.current_time()
        with pytest.raises(trioconn.ConnectTimeoutError) as caught:
            await connector.connect("https://a.example.test:444")
        assert caught.value.stage == "tls" and trio.current_time() - start == 3
        assert connector.statistics().idle == 1
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.testing.wait_all_tasks_blocked()


async def test_a_proxy_that_says_what_it_is_told(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, no_fd_leak: None
) -> None:
    network = FakeNetwork(nursery)
    proxy = ConnectProxy([b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 403 No\r\n\r\n", b"rubbish\r\n\r\n"], after=1)
    network.add_host("proxy.test", "192.0.2.9")
    network.listen("192.0.2.9", proxy, port=3128)
    async with network.connector(proxy="http://proxy.test:3128", keepalive_timeout=0) as connector:
        async with await connector.connect("tcp://a.test:7") as lease:
            await lease.stream.send_all(b"through")
            assert await lease.stream.receive_some() == b"through"
        with pytest.raises(trioconn.ProxyRefusedError) as refused:
            await connector.connect("tcp://a.test:7")
        assert refused.value.status == 403
        for _ in range(2):
            with pytest.raises(trioconn.ProxyConnectError):
                await connector.connect("tcp://a.test:7")
        assert len(proxy.requests) == 4 and proxy.requests[0].startswith(b"CONNECT a.test:7 HTTP/1.1\r\n")


async def test_a_proxy_that_refused_reads_on_and_says_no_more() -> None:
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ConnectProxy(b"HTTP/1.1 403 No\r\n\r\n"), server)
        await client.send_all(b"CONNECT a.test:7 HTTP/1.1\r\n\r\n")
        assert await client.receive_some() == b"HTTP/1.1 403 No\r\n\r\n"
        await client.send_all(b"more")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            client.receive_nowait()
        assert server.probe_reason == "" and not server._incoming.data, "it was read"
        client.close_nowait()


async def test_a_peer_whose_client_broke_off_is_not_open(nursery: trio.Nursery, no_fd_leak: None) -> None:
    async def talk(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"never read, so that closing is a reset")
        await trio.sleep_forever()

    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1")
    network.listen("192.0.2.1", talk)
    async with network.connector() as connector:
        lease = await connector.connect("tcp://a.test:7")
        await trio.testing.wait_all_tasks_blocked()
        assert len(network.open_peers) == 1
        lease.close()
        assert network.open_peers == []
    nursery.cancel_scope.cancel()
