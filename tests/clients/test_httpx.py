"""The thin second import path: httpx 0.28. What both have in common is tested with httpx2."""

from __future__ import annotations

from typing import Any

import pytest

import trioconn

httpx = pytest.importorskip("httpx")
httpcore = pytest.importorskip("httpcore")
transports = pytest.importorskip("trioconn.httpx")


def client(**options: Any) -> Any:
    timeout = options.pop("timeout", 5.0)
    return httpx.AsyncClient(transport=transports.Transport(**options), timeout=timeout, trust_env=False)


async def test_requests_reuse_and_stream(http_server: Any, no_fd_leak: None) -> None:
    async with http_server() as server, client() as http:
        for _ in range(3):
            response = await http.post(server.url, content=b"x" * 100_000)
            assert isinstance(response, httpx.Response)
            assert response.text == "hello"
        async with http.stream("GET", server.url) as response:
            assert [chunk async for chunk in response.aiter_bytes()] == [b"hello"]
        assert server.connections == 1
        assert isinstance(response.extensions["network_stream"], httpcore.AsyncNetworkStream)


async def test_exceptions_are_httpxs(http_server: Any, autojump_clock: Any) -> None:
    async def mute(peer: Any) -> None:
        await peer.read_all()

    async with http_server(mute) as server, client(timeout=httpx.Timeout(None, read=3), limit=1) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get(server.url)
        with pytest.raises(httpx.UnsupportedProtocol):
            await http.get("gopher://127.0.0.1/")
    async with trioconn.TCPConnector(address_policy=trioconn.public_addresses_only) as connector:
        with pytest.raises(httpx.ConnectError):
            await httpx.AsyncClient(transport=transports.Transport(connector)).get("http://127.0.0.1:9")


async def test_upgraded_stream_raises_httpcores_exceptions(http_server: Any) -> None:
    async def answer(peer: Any) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
        await peer.read_all()

    async with http_server(answer) as server, client() as http:
        headers = {"Connection": "upgrade", "Upgrade": "echo"}
        async with http.stream("GET", server.url, headers=headers) as response:
            stream = response.extensions["network_stream"]
            with pytest.raises(httpcore.ReadTimeout):
                await stream.read(1, timeout=0.01)
        with pytest.raises(httpcore.ReadError):
            await stream.read(1)
