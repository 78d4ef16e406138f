"""The connectors for TCP and Unix as wholes: what they dial, whom they trust, what they leave behind."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn import _connectors
from trioconn.testing import ConnectProxy, FakeNetwork, FakeResolver

from .common import check_clean, counts, settle

ContextMaker = Callable[..., ssl.SSLContext]


@asynccontextmanager
async def fake(server: ssl.SSLContext | None = None) -> AsyncIterator[FakeNetwork]:
    """A network with one good host, whose peers have all ended at the end."""
    async with trio.open_nursery() as nursery:
        network = FakeNetwork(nursery)
        network.add_host("a.example.test", "192.0.2.1")
        network.listen("192.0.2.1", tls=server)
        yield network
        await settle()
        assert not network.open_peers
        nursery.cancel_scope.cancel()


async def exchange(connector: trioconn.BaseConnector, target: str, **options: Any) -> trioconn.Connection:
    async with await connector.connect(target, **options) as lease:
        await lease.stream.send_all(b"x")
        assert await lease.stream.receive_some() == b"x"
        lease.release()
    return lease


@pytest.mark.aiohttp("tcp_connector")
@pytest.mark.aiohttp("create_conn")
@pytest.mark.aiohttp("get_expired_ssl")
@pytest.mark.aiohttp("cleanup2")
@pytest.mark.aiohttp("cleanup3")
@pytest.mark.aiohttp("ctor_cleanup")
@pytest.mark.aiohttp("cleanup_close_ssl_transport")
@pytest.mark.aiohttp("del_with_scheduled_cleanup")
@pytest.mark.parametrize("target", ["tcp://a.example.test:1", "https://a.example.test"])
async def test_kept_reused_and_expired(
    target: str,
    autojump_clock: trio.testing.MockClock,
    server_ssl: ContextMaker,
    client_ssl: ssl.SSLContext,
    no_fd_leak: None,
) -> None:
    async with fake(server_ssl() if target.startswith("https") else None) as network:
        async with network.connector(ssl=client_ssl, keepalive_timeout=10) as connector:
            assert [(await exchange(connector, target)).info.number for _ in range(3)] == [1, 1, 1]
            await trio.sleep(9)
            assert (await exchange(connector, target)).uses == 4
            await trio.sleep(11)
            assert counts(connector) == (0, 0, 0, 0) and connector.statistics().closed == {"idle": 1}
            assert not network.open_peers  # the peer has seen the end at once
            assert (await exchange(connector, target)).info.number == 2
        check_clean(connector)


@pytest.mark.aiohttp("get_unconnected_proto_ssl")
async def test_a_tls_peer_that_ends(
    server_ssl: ContextMaker, client_ssl: ssl.SSLContext, threaded_tls_server: Callable[..., Any]
) -> None:
    server = threaded_tls_server(lambda stream: stream.sendall(stream.recv(1)))  # one answer, close_notify, end
    async with trioconn.TCPConnector(ssl=client_ssl) as connector:
        target = f"tls://localhost:{server.port}"
        lease = await exchange(connector, target)
        with trio.fail_after(1):
            while connector.statistics().open:  # noqa: ASYNC110 - the connector tells nobody
                await trio.sleep(0.01)
        assert lease.closed and (await exchange(connector, target)).info.number == 2


@pytest.mark.aiohttp("release_acquired_per_host2")
@pytest.mark.aiohttp("release_acquired_per_host3")
@pytest.mark.aiohttp("available_connections_without_limit_per_host")
async def test_endpoints_are_counted_apart(autojump_clock: trio.testing.MockClock) -> None:
    async with fake() as network:
        network.add_host("b.example.test", "192.0.2.1")
        async with network.connector(limit=3, limit_per_host=2) as connector:
            leases = [await connector.connect(f"tcp://{host}.example.test:1") for host in "aab"]
            hosts = connector.statistics().hosts
            assert {endpoint[0]: host.leased for endpoint, host in hosts.items()} == {
                "a.example.test": 2,
                "b.example.test": 1,
            }
            leases[0].release()
            leases[2].close()
            assert {
                endpoint[0]: (host.leased, host.idle) for endpoint, host in connector.statistics().hosts.items()
            } == {"a.example.test": (1, 1)}
            leases[1].close()


@pytest.mark.aiohttp("tcp_connector_certificate_error")
@pytest.mark.aiohttp("tcp_connector_raise_connector_ssl_error")
@pytest.mark.aiohttp("tcp_connector_do_not_raise_connector_ssl_error")
@pytest.mark.aiohttp("tcp_connector_server_hostname_default")
@pytest.mark.aiohttp("tcp_connector_server_hostname_override")
@pytest.mark.case("urllib3#2571")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, None),
        ({"server_hostname": "b.example.test"}, None),
        ({"server_hostname": "elsewhere.test"}, trioconn.CertificateError),
        ({"ssl": True}, trioconn.CertificateError),  # an authority that nobody knows
        ({"ssl": False}, None),
        ({"ssl": trioconn.Fingerprint(bytes(32))}, trioconn.FingerprintMismatchError),
    ],
    ids=str,
)
async def test_whom_a_target_is_taken_for(
    options: dict[str, Any],
    error: type[Exception] | None,
    server_ssl: ContextMaker,
    client_ssl: ssl.SSLContext,
    no_fd_leak: None,
) -> None:
    async with fake(server_ssl()) as network:
        async with network.connector(ssl=client_ssl) as connector:
            if error is None:
                lease = await exchange(connector, "https://a.example.test", **options)
                assert lease.info.tls[0].server_name == options.get("server_hostname", "a.example.test")
            else:
                with pytest.raises(error) as caught:
                    await exchange(connector, "https://a.example.test", **options)
                assert isinstance(caught.value, trioconn.TLSError)
                await settle()
                assert not network.open_peers and counts(connector) == (0, 0, 0, 0)
        check_clean(connector)


@pytest.mark.aiohttp("tcp_connector_multiple_hosts_errors")
@pytest.mark.aiohttp("tcp_connector_multiple_hosts_one_timeout")
@pytest.mark.aiohttp("tcp_connector_happy_eyeballs")
async def test_one_of_many_addresses(autojump_clock: trio.testing.MockClock, no_fd_leak: None) -> None:
    async with fake() as network:
        network.add_host("many.test", *[f"192.0.2.{n}" for n in range(11, 16)])
        network.refuse("192.0.2.11")
        network.blackhole("192.0.2.12")
        network.refuse("192.0.2.13", after=0.125)
        network.listen("192.0.2.15")  # 14 is unreachable
        async with network.connector() as connector:
            start = trio.current_time()
            lease = await connector.connect("tcp://many.test:1")
            assert trio.current_time() - start == 0.375
            assert [moment - start for _, moment in network.dialled] == [0, 0, 0.25, 0.375, 0.375]
            lease.close()
            lease = await connector.connect("tcp://many.test:1")
            assert network.dialled[-1][0] == "192.0.2.15" and len(network.dialled) == 6  # what won comes first
            lease.close()
            network.refuse("192.0.2.15")
            network.refuse("192.0.2.12")
            with pytest.raises(trioconn.ConnectError) as caught:
                await connector.connect("tcp://many.test:1")
            group = caught.value.__cause__
            assert isinstance(group, ExceptionGroup) and len(group.exceptions) == 5
            assert {error.errno for error in group.exceptions} == {errno.ECONNREFUSED, errno.EHOSTUNREACH}  # type: ignore[attr-defined]


@pytest.mark.aiohttp("tcp_connector_family_is_respected")
@pytest.mark.aiohttp("tcp_connector_interleave")
async def test_families(autojump_clock: trio.testing.MockClock) -> None:
    async with fake() as network:
        v4, v6 = ["192.0.2.21", "192.0.2.22"], ["2001:db8::21", "2001:db8::22"]
        network.add_host("both.test", *v4, *v6)
        for address in (*v4, *v6):
            network.refuse(address)
        for options, expected in (
            ({"family": socket.AF_INET}, v4),
            ({"family": socket.AF_INET6}, v6),
            ({"happy_eyeballs_delay": None}, v6 + v4),
            ({}, [v6[0], v4[0], v6[1], v4[1]]),
            ({"interleave": 2}, v6 + v4),
        ):
            network.dialled.clear()
            network.resolver.splits_families = False
            network.add_host("both.test", *v6, *v4)
            async with network.connector(**options) as connector:
                with pytest.raises(trioconn.ConnectError):
                    await connector.connect("tcp://both.test:1")
            assert [address for address, _ in network.dialled] == expected, options


@pytest.mark.case("aiohttp#11150")
@pytest.mark.aiohttp("tcp_connector_close_resolver")
@pytest.mark.parametrize("way", ["leave", "aclose", "error", "cancelled"])
async def test_the_default_resolver_is_closed_once_and_a_given_one_never(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, given = FakeResolver(), FakeResolver()
    monkeypatch.setattr(_connectors, "SystemResolver", lambda: own)
    for options in ({}, {"resolver": given}):
        connector = trioconn.TCPConnector(**options)
        with trio.CancelScope() as scope:
            try:
                async with connector:
                    if way == "aclose":
                        await connector.aclose()
                    if way == "error":
                        raise ValueError
                    if way == "cancelled":
                        scope.cancel()
                        await trio.sleep(1)
            except ValueError:
                pass
    assert (own.closed, given.closed) == (1, 0)


@pytest.mark.aiohttp("tcp_connector_uses_provided_local_addr")
@pytest.mark.aiohttp("tcp_connector_socket_factory")
async def test_local_address_and_socket_factory(tcp_server: Callable[..., Any], no_fd_leak: None) -> None:
    made: list[Any] = []

    def factory(info: Any) -> socket.socket:
        made.append(info)
        return socket.socket(info[0], info[1], info[2])

    async with (
        tcp_server() as port,
        trioconn.TCPConnector(local_addr=("127.0.0.2", 0), socket_factory=factory) as connector,
    ):
        lease = await exchange(connector, f"tcp://127.0.0.1:{port}")
        assert lease.info.local_address[0] == "127.0.0.2" and lease.info.remote_address == ("127.0.0.1", port)
        assert [info[4] for info in made] == [("127.0.0.1", port)]
        other = await exchange(connector, f"tcp://127.0.0.1:{port}", local_addr=("127.0.0.3", 0))
        assert other.info.local_address[0] == "127.0.0.3" and not other.reused


@pytest.mark.aiohttp("connect_tunnel_connection_release")
@pytest.mark.aiohttp("connect_reuse_proxy_headers")
@pytest.mark.case("aiohttp#4953")
@pytest.mark.parametrize("force_close", [False, True])
async def test_a_tunnel_is_kept_and_closed_as_a_whole(
    force_close: bool, autojump_clock: trio.testing.MockClock, server_ssl: ContextMaker, client_ssl: ssl.SSLContext
) -> None:
    server = server_ssl()

    async def origin(stream: trio.abc.Stream) -> None:
        secured = trio.SSLStream(stream, server, server_side=True, https_compatible=True)
        async for data in secured:
            await secured.send_all(data)

    async with fake() as network:
        proxy = ConnectProxy(tunnel=origin)
        network.add_host("proxy.test", "192.0.2.9")
        network.listen("192.0.2.9", proxy)
        async with network.connector(
            ssl=client_ssl, proxy="http://user:secret@proxy.test:1", force_close=force_close
        ) as connector:
            for n in range(2):
                lease = await exchange(connector, "https://a.example.test")
                assert lease.reused == (n > 0 and not force_close) and not lease.forwarded
                await settle()
                assert len(network.open_peers) == (0 if force_close else 1)
            assert len(proxy.requests) == (2 if force_close else 1)
            assert b"Proxy-Authorization: Basic " in proxy.requests[0] and "secret" not in repr(lease.route)
        check_clean(connector)


@pytest.mark.aiohttp("unix_connector")
@pytest.mark.aiohttp("unix_connector_not_found")
@pytest.mark.aiohttp("unix_connector_permission")
@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
async def test_unix(tmp_path: Path, nursery: trio.Nursery, no_fd_leak: None) -> None:
    path = tmp_path / "socket"

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with trioconn.UnixConnector(path) as connector:
        assert connector.path == str(path) and os.path.isabs(connector.path)
        with pytest.raises(trioconn.UnixConnectError) as caught:
            await connector.connect("http://localhost/")
        assert caught.value.errno == errno.ENOENT and caught.value.stage == "connect"
        path.write_text("no socket")
        with pytest.raises(trioconn.UnixConnectError) as caught:
            await connector.connect("http://localhost/")
        assert caught.value.errno == errno.ECONNREFUSED
        path.unlink()
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(str(path))
        sock.listen()
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.serve_listeners, echo, [trio.SocketListener(sock)])
            first = await exchange(connector, "http://localhost/")
            second = await exchange(connector, "http://elsewhere/")
            assert not second.reused and first.route.endpoint == second.route.endpoint == str(path)
            assert (await exchange(connector, "http://localhost/")).uses == 2
            inner.cancel_scope.cancel()
    check_clean(connector)
