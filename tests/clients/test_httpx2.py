"""httpx2's client on our pool: reuse, timeouts, streaming, upgrades, proxies, TLS, and what goes wrong."""

from __future__ import annotations

import contextlib
import gc
import random
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn
from trioconn.testing import Fail, ScriptedConnector

httpx2 = pytest.importorskip("httpx2")
transports = pytest.importorskip("trioconn.httpx2")

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Servers = Callable[..., Any]

NO_TIMEOUT = httpx2.Timeout(None)


def client(connector: trioconn.BaseConnector | None = None, **options: Any) -> httpx2.AsyncClient:
    timeout = options.pop("timeout", 5.0)
    return httpx2.AsyncClient(transport=transports.Transport(connector, **options), timeout=timeout, trust_env=False)


def connector_of(http: httpx2.AsyncClient) -> trioconn.BaseConnector:
    return http._transport.connector


# ---- whose connector it is -------------------------------------------------------------------------------------------


async def test_own_connector_lives_as_long_as_the_client(http_server: Servers, no_fd_leak: None) -> None:
    async with http_server() as server:
        async with client() as http:
            response = await http.get(server.url)
            assert (response.status_code, response.text) == (200, "hello")
            own = connector_of(http)
            assert not own.closed
        assert own.closed
        assert own.statistics().open == 0
        await trio.testing.wait_all_tasks_blocked()
        assert server.open == 0


async def test_own_connector_needs_the_client_to_be_entered(http_server: Servers) -> None:
    async with http_server() as server:
        http = client()
        with pytest.raises(RuntimeError, match="async with"):
            await http.get(server.url)
        await http.aclose()


async def test_borrowed_connector_works_without_async_with_and_stays_open(http_server: Servers) -> None:
    async with http_server() as server, trioconn.TCPConnector() as connector:
        http = client(connector)
        assert (await http.get(server.url)).text == "hello"
        await http.aclose()
        assert not connector.closed
        async with client(connector) as other:
            assert (await other.get(server.url)).text == "hello"
        assert not connector.closed
        assert server.connections == 1


def test_a_connector_and_options_exclude_each_other() -> None:
    with pytest.raises(TypeError, match="options"):
        transports.Transport(trioconn.TCPConnector(), limit=3)


async def test_several_transports_of_one_client_are_left_in_the_order_in_which_they_were_entered(
    http_server: Servers,
) -> None:
    """httpx2 leaves its transports first in, first out: with a nursery for each in the caller's task, trio breaks."""
    async with http_server() as server:
        mounted = transports.Transport()
        async with httpx2.AsyncClient(transport=transports.Transport(), mounts={server.url: mounted}) as http:
            assert (await http.get(server.url)).text == "hello"
        assert mounted.connector.closed


async def test_client_used_in_one_task_and_closed_in_another(http_server: Servers) -> None:
    async with http_server() as server:
        http = client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http.__aenter__)
        assert (await http.get(server.url)).text == "hello"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http.aclose)
        assert connector_of(http).closed


def test_run_that_forgets_its_client_ends_all_the_same(no_fd_leak: None) -> None:
    http = client()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_hello)
            await http.__aenter__()
            assert (await http.get(f"http://127.0.0.1:{port}")).text == "hello"
            nursery.cancel_scope.cancel()

    port = 0

    async def serve_hello(task_status: Any) -> None:
        nonlocal port
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]

        async def answer(stream: trio.SocketStream) -> None:
            while await stream.receive_some():
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        await trio.serve_listeners(answer, listeners, task_status=task_status)

    trio.run(main)
    assert connector_of(http).closed


async def test_cancelled_leaving_closes_everything(http_server: Servers, no_fd_leak: None) -> None:
    async with http_server() as server:
        with trio.CancelScope() as scope:
            async with client() as http:
                await http.get(server.url)
                scope.cancel()
        assert scope.cancelled_caught or connector_of(http).closed
        assert connector_of(http).closed


async def test_own_connector_is_entered_once() -> None:
    transport = transports.Transport()
    async with httpx2.AsyncClient(transport=transport):
        with pytest.raises(RuntimeError, match="entered once"):
            await httpx2.AsyncClient(transport=transport).__aenter__()
        assert not transport.connector.closed
    with pytest.raises(RuntimeError, match="entered once"):
        await httpx2.AsyncClient(transport=transport).__aenter__()


async def test_own_connector_that_cannot_be_entered_says_so(no_fd_leak: None) -> None:
    """What goes wrong in the connector's task comes out where the client is entered, and does not end the run."""
    transport = transports.Transport()
    async with transport.connector:  # somebody helped too much
        http = httpx2.AsyncClient(transport=transport)
        with pytest.raises(RuntimeError, match="entered"):
            await http.__aenter__()
    with trio.fail_after(10):
        await http.aclose()  # nothing is left to be closed


async def test_cancelled_entering_leaves_nothing(no_fd_leak: None) -> None:
    http = client()
    with trio.CancelScope() as scope:
        scope.cancel()
        await http.__aenter__()
    assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert connector_of(http).closed
    with trio.fail_after(10):
        await http.aclose()


def test_client_is_closed_in_its_own_run() -> None:
    http = client()

    async def enter() -> None:
        await http.__aenter__()

    trio.run(enter)
    with pytest.raises(RuntimeError, match="another trio run"):
        trio.run(http.aclose)


# ---- reuse -----------------------------------------------------------------------------------------------------------


async def test_connection_is_reused_after_a_clean_end(http_server: Servers) -> None:
    async with http_server() as server, client() as http:
        for _ in range(5):
            assert (await http.get(server.url)).text == "hello"
        assert server.connections == 1
        statistics = connector_of(http).statistics()
        assert (statistics.leased, statistics.idle) == (0, 1)


@pytest.mark.security(57)
@pytest.mark.case("aiohttp#13656")
@pytest.mark.parametrize("when", ["same segment", "after release"])
async def test_second_response_for_one_request_reaches_nobody(http_server: Servers, small: bytes, when: str) -> None:
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    go = trio.Event()

    async def answer(peer: Any) -> None:
        await peer.request()
        if when == "same segment":
            await peer.send(small + poison)
        else:
            await peer.send(small)
            await go.wait()
            await peer.send(poison)
        await peer.read_all()

    async with http_server(answer) as server, client() as http:
        for number in range(1, 4):
            assert (await http.get(server.url)).text == "hello"
            go.set()
            await trio.testing.wait_all_tasks_blocked()
            go = trio.Event()
            assert server.connections == number
        assert connector_of(http).statistics().closed["stray bytes" if when != "same segment" else "not released"]


@pytest.mark.parametrize("how", ["abandoned", "half-read", "raised", "cancelled"])
@pytest.mark.security(61)
@pytest.mark.security(90)
async def test_what_was_not_read_to_its_end_is_closed(http_server: Servers, how: str) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await peer.read_all()

    async with http_server(answer) as server, client(limit=1) as http:
        with trio.CancelScope() as scope:
            try:
                async with http.stream("GET", server.url) as response:
                    if how == "half-read":
                        async with contextlib.aclosing(response.aiter_raw()) as chunks:
                            assert await anext(chunks) == b"hello"
                    elif how == "raised":
                        raise KeyError
                    elif how == "cancelled":
                        scope.cancel()
                        await response.aread()
            except KeyError:
                pass
        assert connector_of(http).statistics().open == 0
        async with http.stream("GET", server.url) as response:  # and the only slot is free
            assert response.status_code == 200
        assert server.connections == 2


async def test_response_that_was_closed_meanwhile_does_not_look_complete(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await peer.read_all()

    async with (
        http_server(answer) as server,
        client() as http,
        http.stream("GET", server.url) as response,
        contextlib.aclosing(response.aiter_raw()) as chunks,
    ):
        assert await anext(chunks) == b"hello"
        await response.stream.aclose()
        with pytest.raises(httpx2.ReadError, match="closed"):
            await anext(chunks)


async def test_response_that_nobody_closes_gives_its_slot_back(http_server: Servers) -> None:
    async with http_server() as server, client(limit=1) as http:
        request = http.build_request("GET", server.url)
        response = await http.send(request, stream=True)
        gone = [request, response]
        del response, request
        with pytest.warns(ResourceWarning, match="never released"):
            gone.clear()
        assert (await http.get(server.url)).text == "hello"
        assert server.connections == 2


async def test_response_without_a_body_need_not_be_read(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with http_server(answer) as server, client() as http:
        for _ in range(3):
            async with http.stream("GET", server.url) as response:
                assert response.status_code == 204
        assert server.connections == 1


@pytest.mark.parametrize("header", [b"Connection: close\r\n", b""])
async def test_connection_that_the_server_ends_is_not_reused(http_server: Servers, header: bytes) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.%d 200 OK\r\nContent-Length: 5\r\n%s\r\nhello" % (1 if header else 0, header))
        await peer.read_all()

    async with http_server(answer) as server, client() as http:
        for number in (1, 2):
            response = await http.get(server.url)
            assert response.text == "hello"
            assert response.http_version == ("HTTP/1.1" if header else "HTTP/1.0")
            assert connector_of(http).statistics().open == 0
            assert server.connections == number


async def test_connection_is_not_reused_after_an_answer_with_two_ends(http_server: Servers) -> None:
    """By one header it ended before the other one's end: somebody on the way may have gone by that (RFC 9112, 6.3)."""

    async def answer(peer: Any) -> None:
        await peer.request()
        chunked = b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        await peer.send(b"HTTP/1.1 200 OK\r\n" + chunked)
        await peer.read_all()

    async with http_server(answer) as server, client() as http:
        assert (await http.get(server.url)).text == "hello"
        assert connector_of(http).statistics().open == 0


async def test_keep_alive_of_the_server_shortens_ours(http_server: Servers, autojump_clock: Any) -> None:
    async def answer(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=9\r\nContent-Length: 5\r\n\r\nhello")

    async with http_server(answer) as server, client(timeout=None) as http:
        await http.get(server.url)
        await trio.sleep(3.9)
        assert connector_of(http).statistics().idle == 1
        await trio.sleep(0.2)
        assert connector_of(http).statistics().idle == 0


@pytest.mark.case("hyper#2136")
@pytest.mark.parametrize(
    ("method", "body", "repeated"),
    [("GET", None, True), ("PUT", b"x", True), ("POST", b"x", False), ("PUT", "stream", False)],
)
async def test_request_on_a_connection_that_just_ended_is_repeated_if_that_is_safe(
    http_server: Servers, method: str, body: Any, repeated: bool
) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        if peer.number == 1:
            await peer.head()  # read one more request, and say nothing
        else:
            await peer.read_all()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    async with http_server(answer) as server, client() as http:
        await http.get(server.url)
        content = chunks() if body == "stream" else body
        if repeated:
            assert (await http.request(method, server.url, content=content)).text == "hello"
            assert server.connections == 2
        else:
            with pytest.raises(httpx2.RemoteProtocolError, match="disconnected"):
                await http.request(method, server.url, content=content)
            assert server.connections == 1
        assert len(server.requests) == 2 + repeated


async def test_fresh_connection_that_ends_is_an_error(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()

    async with http_server(answer) as server, client() as http:
        with pytest.raises(httpx2.RemoteProtocolError, match="disconnected"):
            await http.get(server.url)
        assert server.connections == 1


# ---- timeouts --------------------------------------------------------------------------------------------------------


async def mute(peer: Any) -> None:
    await peer.read_all()


async def test_read_timeout(http_server: Servers, autojump_clock: Any) -> None:
    async with http_server(mute) as server, client(timeout=httpx2.Timeout(None, read=3)) as http:
        began = trio.current_time()
        with pytest.raises(httpx2.ReadTimeout) as caught:
            await http.get(server.url)
        assert trio.current_time() - began == pytest.approx(3)
        assert caught.value.request.url == server.url
        assert connector_of(http).statistics().open == 0


async def test_read_timeout_in_the_body(http_server: Servers, autojump_clock: Any) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await peer.read_all()

    async with http_server(answer) as server, client(timeout=httpx2.Timeout(None, read=3)) as http:
        with pytest.raises(httpx2.ReadTimeout):
            await http.get(server.url)
        assert connector_of(http).statistics().open == 0


async def test_write_timeout(http_server: Servers, autojump_clock: Any) -> None:
    async def answer(peer: Any) -> None:
        await trio.sleep_forever()

    async with http_server(answer) as server, client(timeout=httpx2.Timeout(None, write=2)) as http:
        with pytest.raises(httpx2.WriteTimeout):
            await http.post(server.url, content=bytes(30_000_000))
        assert connector_of(http).statistics().open == 0


class SlowConnector(trioconn.BaseConnector):
    """Dials for as long as it is told."""

    seconds = 10.0

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        await trio.sleep(self.seconds)
        return await trio.open_tcp_stream(route.host or "", route.port or 0)


@pytest.mark.parametrize("pool", [None, 1, 20])
async def test_connect_timeout(autojump_clock: Any, pool: float | None) -> None:
    async with SlowConnector(connect_timeout=None) as connector:
        http = client(connector, timeout=httpx2.Timeout(None, connect=4, pool=pool))
        began = trio.current_time()
        with pytest.raises(httpx2.ConnectTimeout):
            await http.get("http://127.0.0.1:9")
        assert trio.current_time() - began == pytest.approx(4)


async def test_pool_timeout(http_server: Servers, autojump_clock: Any) -> None:
    async with (
        http_server(mute) as server,
        client(limit=1, timeout=httpx2.Timeout(None, connect=9, pool=4)) as http,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(http.get, server.url)
        await trio.sleep(1)
        began = trio.current_time()
        with pytest.raises(httpx2.PoolTimeout):
            await http.get(server.url)
        assert trio.current_time() - began == pytest.approx(4)
        nursery.cancel_scope.cancel()


async def test_pool_timeout_of_zero_is_for_who_must_wait(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        asked.set()
        await trio.sleep_forever()

    asked = trio.Event()
    async with (
        http_server(answer) as server,
        client(limit=1, timeout=httpx2.Timeout(None, pool=0)) as http,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(http.get, server.url)
        with trio.fail_after(10):
            await asked.wait()
        with pytest.raises(httpx2.PoolTimeout):
            await http.get(server.url)
        nursery.cancel_scope.cancel()


async def test_time_in_the_queue_is_not_time_to_connect(http_server: Servers, autojump_clock: Any) -> None:
    """A slot after 3 s, then 3 s of dialling: neither timeout of 4 s has passed."""
    async with http_server() as server, SlowConnector(limit=1) as connector:
        SlowConnector.seconds = 3.0
        http = client(connector, timeout=httpx2.Timeout(None, connect=4, pool=4))
        async with trio.open_nursery() as nursery:

            async def occupy() -> None:
                async with await connector.connect(f"tcp://127.0.0.1:{server.port}"):
                    await trio.sleep(3)

            nursery.start_soon(occupy)
            await trio.sleep(3.5)
            assert (await http.get(server.url)).text == "hello"
        SlowConnector.seconds = 10.0


async def test_connect_timeout_of_the_connector_is_one(autojump_clock: Any) -> None:
    async with SlowConnector(connect_timeout=2) as connector:
        with pytest.raises(httpx2.ConnectTimeout) as caught:
            await client(connector, timeout=None).get("http://127.0.0.1:9")
    assert isinstance(caught.value.__cause__, trioconn.ConnectTimeoutError)


# ---- errors ----------------------------------------------------------------------------------------------------------


async def test_connection_that_went_to_somebody_else_is_waited_for_as_a_slot(
    http_server: Servers, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hear of one attempt. Whoever does not get its connection is no longer told that connecting takes too long."""

    async def answer(peer: Any) -> None:
        while await peer.request() is not None:
            await trio.sleep(10)
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    monkeypatch.setattr(SlowConnector, "seconds", 1.0)
    async with http_server(answer) as server, SlowConnector(limit=1) as connector:
        http = client(connector, timeout=httpx2.Timeout(None, connect=4, pool=60))
        lease = await connector.connect(server.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http.get, server.url)
            nursery.start_soon(http.get, server.url)
            await trio.testing.wait_all_tasks_blocked()
            lease.close()
        assert server.connections == 2 and connector.statistics().reused == 1

        impatient = client(connector, timeout=httpx2.Timeout(None, connect=4, pool=3))
        connector.connect_nowait(server.url).close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http.get, server.url)
            await trio.sleep(0.5)
            with pytest.raises(httpx2.PoolTimeout):
                await impatient.get(server.url)
            nursery.cancel_scope.cancel()


async def test_refused_connection_is_a_connect_error(no_fd_leak: None) -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    await listener[0].aclose()
    async with client() as http:
        with pytest.raises(httpx2.ConnectError) as caught:
            await http.get(f"http://127.0.0.1:{port}")
        assert isinstance(caught.value.__cause__, trioconn.ConnectError)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "/path"])
async def test_unsupported_protocol(url: str) -> None:
    async with client() as http:
        with pytest.raises(httpx2.UnsupportedProtocol):
            await http.get(url)


@pytest.mark.parametrize("url", ["http://127.1/", "http://a%00b/"])
async def test_host_that_cannot_be_is_not_looked_up(url: str) -> None:
    async with client() as http:
        with pytest.raises((httpx2.LocalProtocolError, httpx2.InvalidURL)):
            await http.get(url)


@pytest.mark.parametrize(
    "answer",
    [
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    ],
)
@pytest.mark.security(90)
async def test_malformed_answer_is_a_protocol_error_and_frees_its_slot(http_server: Servers, answer: bytes) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(answer)

    async with http_server(script) as server, client(limit=1) as http:
        for _ in range(3):
            with pytest.raises(httpx2.RemoteProtocolError):
                await http.get(server.url)
            assert connector_of(http).statistics().open == 0


async def test_body_that_is_not_as_long_as_it_said_is_a_local_error(http_server: Servers) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"hello"

    async with http_server() as server, client() as http:
        with pytest.raises(httpx2.LocalProtocolError):
            await http.post(server.url, content=chunks(), headers={"Content-Length": "3"})
        assert connector_of(http).statistics().open == 0


async def test_generator_that_raises_reaches_the_caller_bare(http_server: Servers) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(100_000)
        raise KeyError("mine")

    async with http_server(mute) as server, client() as http:
        with pytest.raises(KeyError, match="mine"):
            await http.post(server.url, content=chunks())
        assert connector_of(http).statistics().open == 0


# ---- bodies ----------------------------------------------------------------------------------------------------------


async def echo(peer: Any) -> None:
    while (got := await peer.request()) is not None:
        body = got[1]
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
@pytest.mark.parametrize("streamed", [False, True])
async def test_bodies_go_both_ways(http_server: Servers, size: int, streamed: bool) -> None:
    body = random.Random(size).randbytes(size)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 50_000):
            await trio.lowlevel.checkpoint()
            yield body[at : at + 50_000]

    async with http_server(echo) as server, client() as http:
        for _ in range(2):
            response = await http.post(server.url, content=chunks() if streamed else body)
            assert response.content == body
        assert server.connections == 1


class LikeAPipe(trio.abc.Stream):
    """As a pipe of Windows: a write that does not fit in at once is withdrawn, and then nothing more can be sent.

    The pipes themselves are tested where there are some (tests/pipes).
    """

    probe_reason = ""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._spoilt = False

    async def send_all(self, data: Any) -> None:
        if self._spoilt:
            raise trio.BrokenResourceError("something was withdrawn")
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def receive_nowait(self, max_bytes: int) -> bytes:
        raise trio.WouldBlock

    def send_nowait(self, data: Any) -> int:
        self._spoilt = True
        return 0

    def probe(self) -> bool:
        return not self._spoilt and not self._stream.socket.is_readable()

    def close_nowait(self) -> None:
        self._stream.socket.close()

    def fileno(self) -> int:
        return -1


class PipeConnector(trioconn.BaseConnector):
    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        return LikeAPipe(await trio.open_tcp_stream(route.host or "", route.port or 0))


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_pipes_are_not_spoilt_by_sending(http_server: Servers, size: int) -> None:
    async def answer(peer: Any) -> None:
        while (got := await peer.request()) is not None:
            bodies.append(len(got[1]))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    bodies: list[int] = []
    async with http_server(answer) as server, PipeConnector() as connector:
        http = client(connector)
        for _ in range(2):
            assert (await http.post(server.url, content=bytes(size))).text == "hello"
        assert (bodies, server.connections) == ([size, size], 1)


async def test_small_request_is_one_segment(tcp_server: Any) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        got.append(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    got: list[bytes] = []
    async with tcp_server(answer) as port, client() as http:
        await http.post(f"http://127.0.0.1:{port}", content=b"body")
    assert got[0].startswith(b"POST / HTTP/1.1\r\nHost: ") and got[0].endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize("kind", ["bytes", "stream", "slow stream"])
async def test_early_answer_ends_an_upload(http_server: Servers, kind: str) -> None:
    async def answer(peer: Any) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await trio.sleep_forever()  # and reads no more

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            if kind == "slow stream":
                await trio.testing.wait_all_tasks_blocked()
            yield bytes(100_000)

    async with http_server(answer) as server, client(timeout=None) as http:
        content = bytes(30_000_000) if kind == "bytes" else chunks()
        with trio.fail_after(10):
            response = await http.post(server.url, content=content)
        assert (response.status_code, response.text) == (413, "big")
        assert connector_of(http).statistics().open == 0


@pytest.mark.parametrize("kind", ["bytes", "stream"])
async def test_early_success_does_not_end_an_upload(http_server: Servers, kind: str) -> None:
    """A server may answer before it has read the body: it stores it, or echoes it."""
    bodies: list[bytes] = []

    async def answer(peer: Any) -> None:
        while await peer.head() is not None:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await trio.testing.wait_all_tasks_blocked()
            bodies.append(await peer.body())

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            await trio.testing.wait_all_tasks_blocked()
            yield bytes(100_000)

    async with http_server(answer) as server, client(timeout=None) as http:
        for _ in range(2):
            content = bytes(3_000_000) if kind == "bytes" else chunks()
            with trio.fail_after(10):
                response = await http.post(server.url, content=content)
            assert (response.status_code, response.text) == (200, "ok")
        await trio.testing.wait_all_tasks_blocked()
        assert bodies == [bytes(3_000_000)] * 2
        assert server.connections == 1


async def test_answer_is_read_although_the_server_broke_the_upload_off(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        await peer.stream.send_eof()
        await peer.read_all()

    async with http_server(answer) as server, client() as http:
        response = await http.post(server.url, content=bytes(5_000_000))
        assert (response.status_code, response.text) == (401, "no")


@pytest.mark.parametrize("verdict", ["continue", "refused", "silent"])
async def test_expect_100_continue(http_server: Servers, autojump_clock: Any, verdict: str) -> None:
    bodies: list[bytes] = []

    async def answer(peer: Any) -> None:
        await peer.head()
        if verdict == "refused":
            await peer.send(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
            bodies.append(await peer.read_all())
            return
        if verdict == "continue":
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        bodies.append(await peer.body())
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await peer.read_all()

    async with http_server(answer) as server:
        async with client(timeout=None) as http:
            response = await http.post(server.url, content=b"body", headers={"Expect": "100-continue"})
            assert response.status_code == (417 if verdict == "refused" else 200)
            assert connector_of(http).statistics().open == (0 if verdict == "refused" else 1)
        await trio.testing.wait_all_tasks_blocked()
        assert bodies == [b"" if verdict == "refused" else b"body"]


async def test_informational_answers_are_skipped(http_server: Servers, small: bytes) -> None:
    async def answer(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2 + small)

    async with http_server(answer) as server, client() as http:
        assert (await http.get(server.url)).text == "hello"
        assert (await http.get(server.url)).text == "hello"
        assert server.connections == 1


async def test_informational_answers_without_end_are_an_error(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10)

    async with http_server(answer) as server, client() as http:
        with pytest.raises(httpx2.RemoteProtocolError, match="without end"):
            await http.get(server.url)
        assert connector_of(http).statistics().open == 0


# ---- extensions ------------------------------------------------------------------------------------------------------


async def test_extensions_of_a_response(http_server: Servers) -> None:
    async with http_server() as server, client() as http:
        response = await http.get(server.url)
        assert response.extensions["http_version"] == b"HTTP/1.1"
        assert response.reason_phrase == "OK"
        stream = response.extensions["network_stream"]  # the lease is over, and the addresses are known
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        assert stream.get_extra_info("socket") is None
        async with http.stream("GET", server.url) as response:
            assert response.extensions["network_stream"].get_extra_info("socket").fileno() > 0
        assert stream.get_extra_info("ssl_object") is None


async def test_trace(http_server: Servers) -> None:
    names: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        names.append(name)

    async with http_server() as server, client() as http:
        await http.get(server.url, extensions={"trace": trace})
        steps = [
            f"http11.{step}.{end}"
            for step in (
                "send_request_headers", "send_request_body", "receive_response_headers", "receive_response_body",
                "response_closed",
            )
            for end in ("started", "complete")
        ]  # fmt: skip
        assert names == ["connection.connect_tcp.started", "connection.connect_tcp.complete", *steps]
        names.clear()
        await http.get(server.url, extensions={"trace": trace})
        assert names == steps


async def test_trace_of_failures(http_server: Servers) -> None:
    names: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        names.append(name)

    async def answer(peer: Any) -> None:
        await peer.request()

    async with http_server(answer) as server, client() as http:
        with pytest.raises(httpx2.RemoteProtocolError):
            await http.get(server.url, extensions={"trace": trace})
        assert names[-2:] == ["http11.receive_response_headers.started", "http11.receive_response_headers.failed"]
    names.clear()
    async with client() as http:
        with pytest.raises(httpx2.ConnectError):
            await http.get(server.url, extensions={"trace": trace})
    assert names == ["connection.connect_tcp.started", "connection.connect_tcp.failed"]


@pytest.mark.parametrize("end", ["half-read", "broken", "complete"])
async def test_trace_of_a_body(http_server: Servers, end: str) -> None:
    """The end is told once, whoever comes to it first."""
    names: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        names.append(name.removeprefix("http11."))

    async def answer(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nhello" % (5 if end == "complete" else 10))
        if end != "broken":
            await peer.read_all()

    async with http_server(answer) as server, client() as http:
        async with (
            http.stream("GET", server.url, extensions={"trace": trace}) as response,
            contextlib.aclosing(response.aiter_raw()) as chunks,
        ):
            assert await anext(chunks) == b"hello"
            if end == "broken":
                with pytest.raises(httpx2.RemoteProtocolError):
                    await anext(chunks)
            elif end == "complete":
                with pytest.raises(StopAsyncIteration):
                    await anext(chunks)
        await response.stream.aclose()
        told = {"half-read": [], "broken": ["receive_response_body.failed"]}
        assert names[names.index("receive_response_body.started") + 1 :] == [
            *told.get(end, ["receive_response_body.complete"]), "response_closed.started", "response_closed.complete"
        ]  # fmt: skip
        assert connector_of(http).statistics().idle == (end == "complete")


async def test_trace_that_raises_gives_the_connection_back(http_server: Servers) -> None:
    async def trace(name: str, info: dict[str, Any]) -> None:
        if name == "connection.connect_tcp.complete":
            raise KeyError("mine")

    async with http_server() as server, client(limit=1) as http:
        with pytest.raises(KeyError, match="mine"):
            await http.get(server.url, extensions={"trace": trace})
        assert connector_of(http).statistics().open == 0
        assert (await http.get(server.url)).text == "hello"
        assert len(server.requests) == 1


async def test_trace_of_tls(threaded_tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    names: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        names.append(name)

    server = threaded_tls_server(answer_tls)
    async with client(ssl=client_ssl) as http:
        await http.get(f"https://127.0.0.1:{server.port}", extensions={"trace": trace})
        assert names[:4] == [
            f"connection.{step}.{end}" for step in ("connect_tcp", "start_tls") for end in ("started", "complete")
        ]
    names.clear()
    async with client() as http:  # does not know our authority
        with pytest.raises(httpx2.ConnectError):
            await http.get(f"https://127.0.0.1:{server.port}", extensions={"trace": trace})
    assert names[-2:] == ["connection.start_tls.started", "connection.start_tls.failed"]


async def test_target_extension(http_server: Servers) -> None:
    async with http_server() as server, client() as http:
        await http.request("OPTIONS", server.url, extensions={"target": b"*"})
        assert server.requests[0].target == b"*"


async def test_target_extension_through_a_forwarding_proxy(http_server: Servers) -> None:
    """What begins with a slash is made absolute, as the proxy needs it; what does not is as absolute as it can be."""
    async with http_server() as proxy, client(proxy=proxy.url) as http:
        for target in (b"/raw%20path", b"http://other.invalid/", b"*"):
            await http.request("OPTIONS", "http://origin.invalid/", extensions={"target": target})
        targets = [request.target for request in proxy.requests]
        assert targets == [b"http://origin.invalid/raw%20path", b"http://other.invalid/", b"*"]


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://[2001:db8::1]/", "2001:db8::1", 80),
        ("https://[::1]:99/", "::1", 99),
        ("http://a.test:81/", "a.test", 81),
    ],
)
async def test_where_a_url_leads(url: str, host: str, port: int) -> None:
    async with ScriptedConnector(Fail(OSError(111, "no"))) as connector:
        with pytest.raises(httpx2.ConnectError):
            await client(connector).get(url)
        assert (connector.routes[0].host, connector.routes[0].port) == (host, port)


async def test_any_number_of_origins(nursery: trio.Nursery) -> None:
    """What was planned is kept, but not all for ever."""

    async def answer(peer: trioconn.testing.MemoryStream) -> None:
        host = (await peer.receive_some()).partition(b"Host: ")[2].partition(b"\r\n")[0]
        await peer.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + host)
        await peer.aclose()

    async with ScriptedConnector(handler=answer, nursery=nursery) as connector:
        http = client(connector)
        numbers = [*range(300), *range(5)]
        for number in numbers:
            assert (await http.get(f"http://h{number}.test/")).text == f"h{number}.test"
        assert len(http._transport._targets) < 300
        assert [route.host for route in connector.routes] == [f"h{number}.test" for number in numbers]


async def test_upgrade_gives_the_stream(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nearly")
        await peer.send((await peer.stream.receive_some()).upper())
        await peer.read_all()

    async with http_server(answer) as server, client() as http:
        headers = {"Connection": "upgrade", "Upgrade": "echo"}
        async with http.stream("GET", server.url, headers=headers) as response:
            assert response.status_code == 101
            stream = response.extensions["network_stream"]
            assert await stream.read(2) == b"ea"
            assert await stream.read(99) == b"rly"
            await stream.write(b"shout")
            assert await stream.read(99, timeout=5) == b"SHOUT"
            import httpcore2

            with pytest.raises(httpcore2.ReadTimeout):
                await stream.read(1, timeout=0.01)
        assert connector_of(http).statistics().open == 0


async def test_websocket(http_server: Servers) -> None:
    wsproto = pytest.importorskip("wsproto")

    async def answer(peer: Any) -> None:
        ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        while True:
            ws.receive_data(await peer.stream.receive_some())
            for event in ws.events():
                if isinstance(event, wsproto.events.Request):
                    await peer.send(ws.send(wsproto.events.AcceptConnection()))
                elif isinstance(event, wsproto.events.TextMessage):
                    await peer.send(ws.send(wsproto.events.Message(event.data.upper())))
                elif isinstance(event, wsproto.events.CloseConnection):
                    await peer.send(ws.send(event.response()))
                    return

    async with http_server(answer) as server, client() as http:
        async with http.websocket(server.url.replace("http", "ws")) as socket:
            await socket.send_text("hello")
            assert await socket.receive_text() == "HELLO"
        assert connector_of(http).statistics().leased == 0


def answer_tls(sock: ssl.SSLSocket) -> None:
    while sock.recv(65536):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def test_other_protocol_than_ours_is_not_spoken(
    threaded_tls_server: Any, server_ssl: Any, client_ssl: ssl.SSLContext
) -> None:
    """A context of the caller's may offer HTTP/2, and the server take it: HTTP/1.1 would be noise to it."""
    theirs = server_ssl()
    theirs.set_alpn_protocols(["h2"])
    client_ssl.set_alpn_protocols(["h2", "http/1.1"])
    got: list[bytes] = []
    ended = threading.Event()

    def listen(sock: ssl.SSLSocket) -> None:
        got.append(sock.recv(100))
        ended.set()

    server = threaded_tls_server(listen, context=theirs)
    async with client(ssl=client_ssl) as http:
        with pytest.raises(httpx2.ConnectError, match=r"'h2'.*HTTP/1\.1 only"):
            await http.get(f"https://127.0.0.1:{server.port}")
        assert connector_of(http).statistics().open == 0
    assert await trio.to_thread.run_sync(ended.wait, 10) and got == [b""]


@pytest.mark.case("aiohttp#12835")
async def test_tls_and_its_names(threaded_tls_server: Any, client_ssl: ssl.SSLContext) -> None:
    server = threaded_tls_server(answer_tls)
    async with client(ssl=client_ssl) as http:
        for _ in range(2):
            response = await http.get(f"https://127.0.0.1:{server.port}")
            assert response.text == "hello"
        tls = response.extensions["network_stream"].get_extra_info("ssl_object")
        assert tls.version().startswith("TLSv1.")
        assert tls.getpeercert(binary_form=True)
        assert server.handshakes == 1
        response = await http.get(f"https://127.0.0.1:{server.port}", extensions={"sni_hostname": "a.example.test"})
        assert response.text == "hello"
        assert server.handshakes == 2  # another name is another connection
        with pytest.raises(httpx2.ConnectError):
            await http.get(f"https://127.0.0.1:{server.port}", extensions={"sni_hostname": "wrong.invalid"})


async def test_forwarding_proxy_gets_absolute_form_and_its_headers(http_server: Servers) -> None:
    async with http_server() as proxy:
        way = trioconn.Proxy(proxy.url, auth=("user", "secret"))
        async with client(proxy=way) as http:
            response = await http.get("http://origin.invalid:8080/path?q=1")
            assert response.text == "hello"
            await http.get("http://other.invalid/")
    first, second = proxy.requests
    assert first.target == b"http://origin.invalid:8080/path?q=1"
    headers = dict(first.headers)
    assert headers[b"host"] == b"origin.invalid:8080"
    assert headers[b"proxy-authorization"].startswith(b"Basic ")
    assert second.target == b"http://other.invalid/"
    assert proxy.connections == 1


async def test_proxy_that_refuses_a_tunnel_is_a_proxy_error(http_server: Servers) -> None:
    async def answer(peer: Any) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")

    async with http_server(answer) as proxy, client(proxy=proxy.url) as http:
        with pytest.raises(httpx2.ProxyError, match="407"):
            await http.get("https://origin.invalid/")
        assert connector_of(http).statistics().open == 0


# ---- many at once ----------------------------------------------------------------------------------------------------


async def churn(http_server: Servers, *, tasks: int, seconds: float) -> None:
    """Requests with their number in the path, cancelled at random; every body must be the path's."""

    async def answer(peer: Any) -> None:
        dice = random.Random(peer.number)
        while (got := await peer.request()) is not None:
            target = got[0].target
            body = target * dice.choice([1, 50, 4000])
            response = b"HTTP/1.1 200 OK\r\nX-Target: %s\r\nContent-Length: %d\r\n\r\n" % (target, len(body)) + body
            cut = dice.randrange(len(response))
            await peer.send(response[:cut])
            if dice.random() < 0.3:
                await trio.sleep(dice.random() * 0.002)
            stray = b"HTTP/1.1 200 OK\r\nX-Target: /stray\r\nContent-Length: 6\r\n\r\n/stray"
            # In one piece: one that comes after the next request was sent is its answer, as far as anybody can tell.
            await peer.send(response[cut:] + (stray if dice.random() < 0.05 else b""))
            if dice.random() < 0.02:
                return

    async def worker(number: int, http: httpx2.AsyncClient, url: str) -> None:
        nonlocal good
        dice = random.Random(number)
        turn = 0
        while trio.current_time() < end:
            turn += 1
            path = f"/{number}-{turn}"
            with trio.move_on_after(dice.choice([dice.random() * 0.01, dice.random() * 0.2, 60])):
                try:
                    body = bytes(dice.choice([0, 10, 200_000]))
                    response = await http.request(dice.choice(["GET", "PUT"]), url + path, content=body)
                except httpx2.TransportError:
                    continue
                assert response.headers["X-Target"] == path
                assert response.content.replace(path.encode(), b"") == b""
                good += 1

    good = 0
    end = trio.current_time() + seconds
    async with http_server(answer) as server:
        async with client(limit=50, timeout=httpx2.Timeout(None, read=20)) as http:
            async with trio.open_nursery() as nursery:
                for number in range(tasks):
                    nursery.start_soon(worker, number, http, server.url)
            statistics = connector_of(http).statistics()
            assert (statistics.leased, statistics.waiting, statistics.connecting) == (0, 0, 0)
        assert connector_of(http).statistics().open == 0
    assert good > tasks / 2


@pytest.mark.security(60)
@pytest.mark.case("httpcore#1093")
@pytest.mark.case("aiohttp#12795")
async def test_every_body_belongs_to_its_request(http_server: Servers, no_fd_leak: None) -> None:
    gc.collect()
    await churn(http_server, tasks=60, seconds=2)


@pytest.mark.soak
async def test_every_body_belongs_to_its_request_for_a_minute(http_server: Servers, no_fd_leak: None) -> None:
    gc.collect()
    gc.disable()
    try:
        await churn(http_server, tasks=500, seconds=60)
    finally:
        gc.enable()


async def test_who_was_cancelled_before_sends_nothing(http_server: Servers) -> None:
    async with http_server() as server, client() as http:
        await http.get(server.url)
        with trio.CancelScope() as scope:
            scope.cancel()
            await http.post(server.url, content=b"an order")
        assert scope.cancelled_caught
        assert connector_of(http).statistics().idle == 1
        await http.get(server.url)
        assert [request.method for request in server.requests] == [b"GET", b"GET"]
        assert server.connections == 1


async def test_cancelled_at_every_checkpoint(http_server: Servers, no_fd_leak: None) -> None:
    """Cancel a request after n passes of the scheduler, for each n until it gets through; the next one gets its own."""

    async def answer(peer: Any) -> None:
        while (got := await peer.request()) is not None:
            target = got[0].target
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(target))
            await trio.lowlevel.checkpoint()
            await peer.send(target)

    async with http_server(answer) as server, client(limit=1) as http:
        for passes in range(200):
            finished = False
            async with trio.open_nursery() as nursery:

                async def ask(path: str) -> None:
                    nonlocal finished
                    response = await http.put(server.url + path, content=bytes(1000))
                    assert response.text == path
                    finished = True

                nursery.start_soon(ask, f"/cancelled-{passes}")
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert connector_of(http).statistics().leased == 0
            response = await http.get(f"{server.url}/own-{passes}")
            assert response.text == f"/own-{passes}"
            if finished:
                break
        else:
            pytest.fail("the request never got through")
