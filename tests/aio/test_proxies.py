"""Proxies, as requests of aiohttp and as options of the connector name them."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

import trioconn
from trioconn.aio import AiohttpConnector, Portal

Run = Callable[[Callable[[Portal], Awaitable[Any]]], Any]
LOGIN = "Basic " + base64.b64encode(b"me:secret").decode()


class Proxy:
    """An HTTP proxy. Requests that it is to forward it answers itself, with what it was sent."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.refuse = False
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        tasks = self._tasks = set[asyncio.Task[None]]()
        try:
            yield f"http://127.0.0.1:{self.port}"
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            method, where, _ = head.split(" ", 2)
            if self.refuse:
                writer.write(b"HTTP/1.1 407 Who are you\r\nX-Why: because\r\nContent-Length: 0\r\n\r\n")
            elif method == "CONNECT":
                host, port = where.rsplit(":", 1)
                theirs, ours = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                try:
                    await asyncio.gather(self._copy(reader, ours), self._copy(theirs, writer))
                finally:
                    ours.close()
                return
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(head), head.encode()))
            await writer.drain()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.mark.parametrize("named_by", ["request", "connector"])
def test_forwarded_tunnelled_and_websockets(
    run: Run, server: Any, tls_server: Any, client_ssl: ssl.SSLContext, named_by: str
) -> None:
    async def main(portal: Portal) -> None:
        proxy = Proxy()
        async with proxy.running() as url:
            per_request: dict[str, Any] = {}
            options: dict[str, Any] = {}
            if named_by == "request":
                named = url.replace("//", "//me:secret@")
                per_request = {"proxy": named, "proxy_headers": {"X-For-Proxy": "1"}}
            else:
                options["proxy"] = trioconn.Proxy(url, auth=("me", "secret"), headers={"X-For-Proxy": "1"})
            async with aiohttp.ClientSession(connector=AiohttpConnector(**options)) as client:
                for path in ("/a?b=c", "/d"):
                    async with client.get(f"http://origin.test{path}", **per_request) as response:
                        seen = await response.text()
                    assert seen.startswith(f"GET http://origin.test{path} HTTP/1.1")
                    assert "Host: origin.test" in seen and LOGIN in seen and "X-For-Proxy: 1" in seen
                proxy.heads.clear()
                async with client.get(tls_server.url(), ssl=client_ssl, **per_request) as response:
                    assert response.status == 200
                for scheme in ("http", "ws"):
                    url = server.url("/ws").replace("http", scheme)
                    async with client.ws_connect(url, **per_request) as ws:
                        await ws.send_str("through")
                        assert await ws.receive_str() == "through"
            for head, port in zip(proxy.heads, (tls_server.port, server.port, server.port), strict=True):
                assert head.startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1")
                assert LOGIN in head and "X-For-Proxy" in head

    run(main)


def test_errors_of_proxies(run: Run, tls_server: Any, refused: int) -> None:
    async def main(portal: Portal) -> None:
        proxy = Proxy()
        proxy.refuse = True
        async with proxy.running() as url, aiohttp.ClientSession(connector=AiohttpConnector()) as client:
            with pytest.raises(aiohttp.ClientHttpProxyError) as error:
                await client.get(tls_server.url(), proxy=url)
            assert (error.value.status, error.value.message) == (407, "Who are you")
            assert error.value.headers is not None and error.value.headers["x-why"] == "because"
            with pytest.raises(aiohttp.ClientProxyConnectionError):
                await client.get(tls_server.url(), proxy=f"http://127.0.0.1:{refused}")
            with pytest.raises(aiohttp.InvalidURL):
                await client.get(tls_server.url(), proxy="ftp://127.0.0.1")
            # The certificate of a proxy is verified, whatever is said of the target's.
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await client.get("http://origin.test/", proxy=tls_server.url(), ssl=False)

    run(main)
