"""What users of aiohttp do, over `AiohttpConnector`, in guest mode and in a trio-asyncio loop."""

from __future__ import annotations

import asyncio
import hashlib
import io
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import trio

import trioconn
from trioconn.aio import AiohttpConnector, Portal

from .streams import Hidden

MB = 1 << 20
Run = Callable[[Callable[[Portal], Awaitable[Any]]], Any]


def session(*args: Any, timeout: aiohttp.ClientTimeout | None = None, **options: Any) -> aiohttp.ClientSession:
    timeout = timeout or aiohttp.ClientTimeout(total=30)
    return aiohttp.ClientSession(connector=AiohttpConnector(*args, **options), timeout=timeout)


def ours(client: aiohttp.ClientSession) -> trioconn.ConnectorStatistics:
    connector: Any = client.connector
    return connector.connector.statistics()


def test_get_reuses_the_connection(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        async with session() as client:
            texts = []
            for _ in range(5):
                async with client.get(server.url()) as response:
                    assert response.status == 200
                    texts.append(await response.text())
            assert len(set(texts)) == 1
            assert not client.connector._conns  # aiohttp's pool holds nothing
            await asyncio.sleep(0.05)  # the last one is released when the loop comes round
            client.connector._release_parked()
            again = await (await client.get(server.url())).text()
            assert again == texts[0]

    run(main)


def test_our_pool_holds_the_connection_between_requests(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.TCPConnector()) as connector, session(connector) as client:
            for _ in range(3):
                async with client.get(server.url()) as response:
                    await response.read()
            found = connector.statistics()
            assert (found.idle, found.leased, found.created, found.reused) == (1, 0, 1, 2)
            # And others may have it: the connector is borrowed.
            async with await connector.connect(server.url()) as lease:
                assert lease.lease.reused
                await lease.stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await lease.stream.receive_some()).startswith(b"HTTP/1.1 200")

    run(main)


def test_idle_connections_are_handed_out_by_the_pool(run: Run, server: Any) -> None:
    """Between requests that do not follow each other in one step, the connection has been idle."""

    async def main(portal: Portal) -> None:
        async with session() as client:
            for _ in range(3):
                async with client.get(server.url()) as response:
                    await response.read()
                client.connector._release_parked()
                found = ours(client)
                assert (found.idle, found.leased, found.created) == (1, 0, 1)
            assert found.reused == 2

    run(main)


def test_20_mb_up(run: Run, server: Any) -> None:
    async def generated() -> Any:
        for _ in range(20):
            yield bytes(MB)

    async def main(portal: Portal) -> None:
        async with session() as client:
            for body in (io.BytesIO(bytes(20 * MB)), generated()):
                async with client.post(server.url("/upload"), data=body) as response:
                    assert await response.text() == str(20 * MB)

    run(main)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_50_mb_down_with_a_slow_reader(
    run: Run, server: Any, tls_server: Any, client_ssl: ssl.SSLContext, tls: bool
) -> None:
    async def main(portal: Portal) -> None:
        origin = tls_server if tls else server
        async with session(ssl=client_ssl) as client, client.get(origin.url(f"/download?size={50 * MB}")) as response:
            await asyncio.sleep(0.2)
            held = response.content.total_bytes
            assert held < 2 * MB, "what nobody reads must stay in the network"
            digest, total = hashlib.sha256(), 0
            async for chunk in response.content.iter_chunked(300_000):
                total += len(chunk)
                digest.update(chunk)
                if total % 7 == 0:
                    await asyncio.sleep(0)
            assert total == 50 * MB
            assert digest.digest() == hashlib.sha256(bytes(range(256)) * (50 * MB // 256)).digest()

    run(main)


def test_20_mb_up_over_tls(run: Run, tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    async def main(portal: Portal) -> None:
        async with (
            session(ssl=client_ssl) as client,
            client.post(tls_server.url("/upload"), data=io.BytesIO(bytes(20 * MB))) as response,
        ):
            assert await response.text() == str(20 * MB)

    run(main)


def test_tls(run: Run, tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    async def main(portal: Portal) -> None:
        async with session() as client:
            for _ in range(2):
                async with client.get(tls_server.url(f"/download?size={5 * MB}"), ssl=client_ssl) as response:
                    transport = response.connection.transport
                    assert transport.get_extra_info("peername")[1] == tls_server.port
                    assert transport.get_extra_info("sslcontext") is client_ssl
                    assert transport.get_extra_info("ssl_object").version().startswith("TLSv1.")
                    assert transport.get_extra_info("peercert")["subject"] is not None
                    assert transport.get_extra_info("cipher")
                    assert transport.get_extra_info("nonsense", 3) == 3
                    await response.read()
            async with client.get(tls_server.url(), ssl=False) as response:
                assert response.status == 200

    run(main)


def test_errors_of_tls(run: Run, tls_server: Any, server: Any, client_ssl: ssl.SSLContext) -> None:
    async def main(portal: Portal) -> None:
        async with session() as client:
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as unknown:
                await client.get(tls_server.url())
            assert (unknown.value.host, unknown.value.port) == ("127.0.0.1", tls_server.port)
            assert isinstance(unknown.value.certificate_error, ssl.SSLCertVerificationError)
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await client.get(tls_server.url(), ssl=client_ssl, server_hostname="other.test")
            with pytest.raises(aiohttp.ClientConnectorSSLError, match=f"127.0.0.1:{server.port}"):
                await client.get(f"https://127.0.0.1:{server.port}/", ssl=client_ssl)

    run(main)


def test_pins(run: Run, tls_server: Any) -> None:
    async def main(portal: Portal) -> None:
        der = ssl.PEM_cert_to_DER_cert(
            await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", tls_server.port))
        )
        good = aiohttp.Fingerprint(hashlib.sha256(der).digest())
        bad = aiohttp.Fingerprint(bytes(32))
        async with session() as client:
            async with client.get(tls_server.url(), ssl=good) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ServerFingerprintMismatch) as mismatch:
                await client.get(tls_server.url(), ssl=bad)
            assert (mismatch.value.expected, mismatch.value.got) == (bytes(32), good.fingerprint)
            assert (mismatch.value.host, mismatch.value.port) == ("127.0.0.1", tls_server.port)

    run(main)


def test_a_changed_context_makes_a_new_route(run: Run, tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    async def main(portal: Portal) -> None:
        async with session() as client:
            assert (await client.get(tls_server.url(), ssl=client_ssl)).status == 200
            client_ssl.minimum_version = ssl.TLSVersion.TLSv1_3
            assert (await client.get(tls_server.url(), ssl=client_ssl)).status == 200

    run(main)


def test_refused_and_unresolved(run: Run, refused: int) -> None:
    async def main(portal: Portal) -> None:
        async with session() as client:
            with pytest.raises(aiohttp.ClientConnectorError, match="Cannot connect to host") as error:
                await client.get(f"http://127.0.0.1:{refused}/")
            assert isinstance(error.value.os_error, OSError) and error.value.errno
            assert isinstance(error.value.__cause__, trioconn.ConnectError)
            with pytest.raises(aiohttp.ClientConnectorDNSError):
                await client.get("http://does-not-exist.invalid/")
            with pytest.raises(aiohttp.InvalidURL):
                await client.get("http://127.1/")

    run(main)


@pytest.mark.parametrize(
    ("which", "target"),
    [
        ("total", "stall"),
        ("connect", "deaf"),
        ("sock_connect", "deaf"),
        ("sock_read", "stall"),
        ("total", "body"),
        ("sock_read", "body"),
        ("connect", "queue"),
    ],
)
def test_timeouts(run: Run, server: Any, deaf: int, which: str, target: str) -> None:
    async def main(portal: Portal) -> None:
        timeout = aiohttp.ClientTimeout(**{"total": None, which: 0.05})
        async with session(timeout=timeout, limit=1) as client:
            held = None
            if target == "queue":
                held = await client.get(server.url("/stall?headers"), timeout=aiohttp.ClientTimeout())
            url = {
                "stall": server.url("/stall"),
                "deaf": f"https://127.0.0.1:{deaf}/",
                "body": server.url("/stall?headers"),
                "queue": server.url(),
            }[target]
            expected: Any = asyncio.TimeoutError
            if which.endswith("connect"):
                expected = aiohttp.ConnectionTimeoutError
            elif which == "sock_read":
                expected = aiohttp.SocketTimeoutError
            with pytest.raises(expected):
                async with client.get(url) as response:
                    await response.read()
            if held is not None:
                held.close()
            async with client.get(server.url()) as response:  # its slot is free again
                assert response.status == 200

    run(main)


def test_connect_timeout_of_our_own(run: Run, deaf: int) -> None:
    async def main(portal: Portal) -> None:
        async with session(connect_timeout=0.05) as client:
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await client.get(f"https://127.0.0.1:{deaf}/")

    run(main)


def test_sock_connect_ends_with_the_attempt_even_if_another_got_the_connection(run: Run, server: Any) -> None:
    """Two wait and hear of one attempt; the one that it was not for queues again, and its time stands still."""

    async def main(portal: Portal) -> None:
        async with session(limit=1) as client:
            held = await client.get(server.url("/stall?headers"))
            first = asyncio.ensure_future(client.get(server.url("/stall?headers")))
            await asyncio.sleep(0.05)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=0.2)
            second = asyncio.ensure_future(client.get(server.url(), timeout=timeout))
            await asyncio.sleep(0.05)
            held.close()  # half read, so its connection ends, and one is dialled for the two who wait
            response = await first
            await asyncio.sleep(0.4)
            assert not second.done()
            response.close()
            async with await second as response:
                assert response.status == 200

    run(main)


def test_sock_connect_does_not_count_the_queue(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        async with session(limit=1) as client:
            held = await client.get(server.url("/stall?headers"))
            waiting = asyncio.ensure_future(
                client.get(server.url(), timeout=aiohttp.ClientTimeout(total=None, sock_connect=0.05))
            )
            await asyncio.sleep(0.15)
            assert not waiting.done()
            held.close()
            assert (await waiting).status == 200

    run(main)


@pytest.mark.parametrize("where", ["connect", "headers", "body", "queue"])
def test_cancellation(run: Run, server: Any, deaf: int, where: str) -> None:
    async def main(portal: Portal) -> None:
        async with session(limit=1) as client:
            held = await client.get(server.url("/stall?headers")) if where == "queue" else None
            arrived = asyncio.Event()

            async def one() -> None:
                url = f"https://127.0.0.1:{deaf}/" if where == "connect" else server.url("/stall")
                if where == "body":
                    url += "?headers"
                async with client.get(url) as response:
                    arrived.set()
                    await response.read()

            task = asyncio.ensure_future(one())
            if where == "body":
                await arrived.wait()
            else:
                await asyncio.sleep(0.05)
            task.cancel("enough")
            with pytest.raises(asyncio.CancelledError):
                await task
            if held is not None:
                held.close()
            async with client.get(server.url()) as response:
                assert response.status == 200

    run(main)


def test_server_drops(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        async with session() as client:
            with pytest.raises(aiohttp.ClientPayloadError):
                async with client.get(server.url("/drop")) as response:
                    await response.read()
            async with client.get(server.url()) as response:
                assert response.status == 200

    run(main)


def test_a_server_that_closed_an_idle_connection_is_not_met(run: Run) -> None:
    """With real peers: one answer for each connection, and no word of closing."""

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main(portal: Portal) -> None:
        peer = await asyncio.start_server(answer_once, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{peer.sockets[0].getsockname()[1]}/"
        async with session() as client:
            for _ in range(5):
                async with client.get(url) as response:
                    assert await response.text() == "ok"
                await asyncio.sleep(0.02)
        peer.close()
        await peer.wait_closed()

    run(main)


@pytest.mark.parametrize("late", [False, True], ids=["same segment", "later"])
def test_a_second_response_is_not_the_next_requests(run: Run, late: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
        evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(good + b"" if late else good + evil)
                if late:
                    await asyncio.sleep(0.01)
                    writer.write(evil)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main(portal: Portal) -> None:
        peer = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{peer.sockets[0].getsockname()[1]}/"
        async with session() as client:
            for _ in range(5):
                async with client.get(url) as response:
                    assert await response.text() == "good"
                if late:
                    await asyncio.sleep(0.05)
        peer.close()
        await asyncio.sleep(0.05)

    run(main)


def test_websocket_echo(run: Run, server: Any, tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    async def main(portal: Portal) -> None:
        async with session() as client:
            for origin, options in ((server, {}), (tls_server, {"ssl": client_ssl})):
                async with client.ws_connect(origin.url("/ws"), **options) as ws:
                    for size in (0, 1, 300_000):
                        await ws.send_str("x" * size)
                        assert await ws.receive_str(timeout=20) == "x" * size
                    await ws.send_bytes(b"y" * 100_000)
                    assert await ws.receive_bytes(timeout=20) == b"y" * 100_000

    run(main)


def test_50_tasks_over_a_limit_of_10(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        async with session(limit=10) as client:

            async def one() -> None:
                for _ in range(4):
                    async with client.get(server.url("/busy")) as response:
                        assert await response.text() == "done"

            await asyncio.gather(*[one() for _ in range(50)])
        assert server.most_at_once <= 10
        assert len(server.peers) <= 10

    run(main)


def test_unix_sockets(run: Run, unix_server: str) -> None:
    async def main(portal: Portal) -> None:
        async with portal.open(trioconn.UnixConnector(unix_server)) as connector, session(connector) as client:
            for _ in range(3):
                async with client.get("http://any/") as response:
                    assert response.status == 200
                    await response.read()
            assert connector.statistics().created == 1
        async with portal.open(trioconn.UnixConnector(unix_server + "x")) as connector, session(connector) as client:
            with pytest.raises(aiohttp.ClientConnectorError, match="unix socket") as error:
                await client.get("http://any/")
            assert error.value.path == unix_server + "x"

    run(main)


class Custom(trioconn.BaseConnector):
    """Streams of trio's own: moved by tasks."""

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        return await trioconn.start_tls(await trio.open_tcp_stream(route.host, route.port), route)


class Foreign(trioconn.BaseConnector):
    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        return Hidden(await trio.open_tcp_stream(route.host, route.port))


@pytest.mark.parametrize("kind", [Custom, Foreign])
def test_streams_of_somebody_elses_connector(run: Run, server: Any, kind: type[trioconn.BaseConnector]) -> None:
    async def main(portal: Portal) -> None:
        async with portal.open(kind()) as connector, session(connector) as client:
            for _ in range(3):
                async with client.get(server.url()) as response:
                    await response.read()
                await asyncio.sleep(0.05)  # the tasks that moved its bytes end before it is given back
            assert connector.statistics().created == 1
            async with client.post(server.url("/upload"), data=io.BytesIO(bytes(5 * MB))) as response:
                assert await response.text() == str(5 * MB)
            async with client.get(server.url(f"/download?size={5 * MB}")) as response:
                await asyncio.sleep(0.1)
                assert response.content.total_bytes < 2 * MB
                assert len(await response.read()) == 5 * MB
            with pytest.raises(aiohttp.ClientPayloadError):
                async with client.get(server.url("/drop")) as response:
                    await response.read()
            async with client.get(server.url("/stall?headers")) as response:
                pass  # left unread, and closed

    run(main)


def test_options(run: Run) -> None:
    async def main(portal: Portal) -> None:
        with pytest.raises(TypeError, match="either a connector or options"):
            AiohttpConnector(trioconn.TCPConnector(), limit=3)
        with pytest.raises(TypeError, match="must be a connector of trioconn"):
            AiohttpConnector(object())
        with pytest.raises(TypeError, match="nonsense"):
            AiohttpConnector(nonsense=3)
        connector = AiohttpConnector(limit=3, limit_per_host=2, force_close=True)
        assert (connector.limit, connector.limit_per_host, connector.force_close) == (3, 2, True)
        await connector.close()
        assert connector.closed

    run(main)


@pytest.mark.parametrize("options", [{"force_close": True}, {"max_uses": 1}, {"keepalive_timeout": 0}])
def test_no_reuse_where_that_is_wanted(run: Run, server: Any, options: Any) -> None:
    async def main(portal: Portal) -> None:
        async with session(**options) as client:
            texts = {await (await client.get(server.url())).text() for _ in range(3)}
        assert len(texts) == 3

    run(main)


def test_traces(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        told: list[str] = []
        config = aiohttp.TraceConfig()
        for name in (
            *("connection_queued_start", "connection_queued_end", "connection_create_start", "connection_create_end"),
            *(
                "connection_reuseconn",
                "dns_resolvehost_start",
                "dns_resolvehost_end",
                "dns_cache_miss",
                "dns_cache_hit",
            ),
        ):

            async def hear(_: object, __: object, ___: object, name: str = name) -> None:
                told.append(name)

            getattr(config, f"on_{name}").append(hear)
        async with aiohttp.ClientSession(connector=AiohttpConnector(limit=1), trace_configs=[config]) as client:
            url = server.url(host="localhost")
            await (await client.get(url)).read()
            assert told == [
                *("connection_create_start", "dns_cache_miss", "dns_resolvehost_start", "dns_resolvehost_end"),
                "connection_create_end",
            ]
            told.clear()
            held = await client.get(url)
            assert told == ["connection_reuseconn"]
            await held.read()
            held = await client.get(server.url("/stall?headers", host="localhost"))
            told.clear()
            waiting = asyncio.ensure_future(client.get(url))
            await asyncio.sleep(0.05)
            assert told == ["connection_queued_start"]
            held.close()
            await (await waiting).read()
            assert told[:3] == ["connection_queued_start", "connection_queued_end", "connection_create_start"]
            assert told[-1] == "connection_create_end"

    run(main)


@pytest.mark.case("aiohttp#10617")
def test_descriptors_come_back_after_a_cancelled_connect(run: Run, server: Any, deaf: int) -> None:
    """ "File descriptor is used by transport": a number that was given up while it was still registered somewhere."""

    async def main(portal: Portal) -> None:
        async with session() as client:
            for _ in range(10):
                with pytest.raises(asyncio.TimeoutError):
                    async with asyncio.timeout(0.01):
                        await client.get(f"https://127.0.0.1:{deaf}/")
                async with client.get(server.url(), headers={"Connection": "close"}) as response:
                    assert response.status == 200
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await reader.read(12)) == b"HTTP/1.1 200"
                writer.close()
                await writer.wait_closed()

    run(main)
