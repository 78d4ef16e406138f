"""The examples of the documentation, run against peers on loopback."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

import trioconn

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- http_client.py --------------------------------------------------------------------------------------------------


async def test_http_client(http_server: Any, capsys: Any, monkeypatch: Any) -> None:
    example = load("http_client")
    async with http_server() as server:
        monkeypatch.setattr(sys, "argv", ["http_client.py", server.url, f"{server.url}/path?q=1"])
        await example.main()
        assert server.connections == 1
        assert [request.target for request in server.requests] == [b"/", b"/path?q=1"]
    assert capsys.readouterr().out.count("200 b'hello'") == 2


async def test_http_client_through_a_forwarding_proxy(http_server: Any) -> None:
    example = load("http_client")
    async with http_server() as proxy, trioconn.TCPConnector(proxy=proxy.url) as connector:
        assert await example.get(connector, "http://origin.invalid/x") == (200, b"hello")
        assert proxy.requests[0].target == b"http://origin.invalid/x"


@pytest.mark.security(57)
async def test_http_client_lets_no_second_response_through(http_server: Any, small: bytes) -> None:
    async def answer(peer: Any) -> None:
        await peer.request()
        await peer.send(small + small.replace(b"hello", b"wrong"))
        await peer.read_all()

    example = load("http_client")
    async with http_server(answer) as server, trioconn.TCPConnector() as connector:
        for _ in range(3):
            assert await example.get(connector, server.url) == (200, b"hello")


# ---- websocket.py ----------------------------------------------------------------------------------------------------


async def relay(proxy: trio.SocketStream) -> None:
    """A proxy that opens one tunnel, and counts."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += await proxy.receive_some()
    tunnels.append(head.split(b"\r\n")[0])
    host, port = head.split()[1].split(b":")
    async with await trio.open_tcp_stream(host.decode(), int(port)) as target:
        await proxy.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            async for data in source:
                await sink.send_all(data)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, proxy, target)
            nursery.start_soon(pump, target, proxy)


tunnels: list[bytes] = []


@pytest.mark.case("trio-websocket#169")
async def test_websocket_through_a_proxy(tcp_server: Any, capsys: Any, no_fd_leak: None) -> None:
    trio_websocket = pytest.importorskip("trio_websocket")
    example = load("websocket")
    tunnels.clear()

    async def shout(request: Any) -> None:
        websocket = await request.accept()
        async with websocket:
            await websocket.send_message((await websocket.get_message()).upper())

    async with trio.open_nursery() as nursery, tcp_server(relay) as proxy:
        from functools import partial

        start = partial(trio_websocket.serve_websocket, shout, "127.0.0.1", 0, None)
        server = await nursery.start(start)
        await example.main(f"ws://127.0.0.1:{server.port}/chat", f"http://127.0.0.1:{proxy}")
        assert tunnels == [b"CONNECT 127.0.0.1:%d HTTP/1.1" % server.port]
        nursery.cancel_scope.cancel()
    assert capsys.readouterr().out == "HELLO\n"


# ---- redis_pool.py ---------------------------------------------------------------------------------------------------


class FakeRedis:
    """Knows AUTH, SET, GET, PING and SLOW, and counts logins: a real server is on few machines, and this is all of it
    that the example speaks."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.logins = 0

    async def __call__(self, stream: trio.SocketStream) -> None:
        buffer = b""
        while data := await stream.receive_some():
            buffer += data
            while b"\r\n" in buffer and buffer.count(b"\r\n") >= 1 + 2 * int(buffer[1 : buffer.index(b"\r\n")]):
                lines = buffer.split(b"\r\n")
                count = int(lines[0][1:])
                words, buffer = lines[2 : 2 * count + 1 : 2], b"\r\n".join(lines[2 * count + 1 :])
                await stream.send_all(await self.answer(*words))

    async def answer(self, command: bytes, *words: bytes) -> bytes:
        if command == b"AUTH":
            self.logins += 1
            return b"+OK\r\n" if words == (b"secret",) else b"-WRONGPASS no\r\n"
        if command == b"SET":
            self.data[words[0]] = words[1]
            return b"+OK\r\n"
        if command == b"GET":
            value = self.data.get(words[0])
            return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)
        if command == b"SLOW":
            await trio.sleep(0.05)
            return b"$4\r\nslow\r\n"
        return b"-ERR unknown command\r\n"


async def test_redis_pool(tcp_server: Any, monkeypatch: Any, capsys: Any) -> None:
    example = load("redis_pool")
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    redis_server = FakeRedis()
    async with tcp_server(redis_server) as port:
        monkeypatch.setenv("REDIS", f"tcp://127.0.0.1:{port}")
        await example.main()
        assert capsys.readouterr().out == "b'hello'\n"
        assert redis_server.logins == 1

        async with trioconn.TCPConnector(protocol_factory=example.log_in, limit=2) as connector:
            redis = example.RedisPool(connector, f"tcp://127.0.0.1:{port}")
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(redis, "SET", f"key{number}", f"{number}")
            assert await redis("GET", "key7") == b"7"
            with pytest.raises(example.RedisError, match="unknown"):
                await redis("NONSENSE")
            assert await redis("GET", "nothing") is None
            assert redis_server.logins <= 3
            assert connector.statistics().created <= 2


@pytest.mark.security(60)
async def test_cancelled_redis_command_takes_its_connection_with_it(tcp_server: Any, monkeypatch: Any) -> None:
    example = load("redis_pool")
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    async with (
        tcp_server(FakeRedis()) as port,
        trioconn.TCPConnector(protocol_factory=example.log_in, limit=1) as connector,
    ):
        redis = example.RedisPool(connector, f"tcp://127.0.0.1:{port}")
        await redis("SET", "key", "own")
        with trio.move_on_after(0.01):
            await redis("SLOW")
        assert await redis("GET", "key") == b"own"
        assert connector.statistics().closed["cancelled"] == 1


async def test_failed_login_reaches_who_waits(tcp_server: Any, monkeypatch: Any, no_fd_leak: None) -> None:
    example = load("redis_pool")
    monkeypatch.setenv("REDIS_PASSWORD", "wrong")
    async with tcp_server(FakeRedis()) as port, trioconn.TCPConnector(protocol_factory=example.log_in) as connector:
        with pytest.raises(example.RedisError, match="WRONGPASS"):
            await example.RedisPool(connector, f"tcp://127.0.0.1:{port}")("GET", "key")
        assert connector.statistics().open == 0
