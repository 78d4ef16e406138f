"""Connections without sockets, for what only the pools are measured with."""

from __future__ import annotations

from typing import Any

import httpcore2
import trio

import trioconn

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class FakeStream(trio.abc.Stream):
    """Always clean; nothing is ever sent."""

    __slots__ = ("probe_reason",)

    def __init__(self) -> None:
        self.probe_reason = ""

    def probe(self) -> bool:
        return True

    def close_nowait(self) -> None:
        pass

    def fileno(self) -> int:
        return -1

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class FakeConnector(trioconn.BaseConnector):
    """Makes such streams."""

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return FakeStream()


class FakeCoreStream(httpcore2.AsyncNetworkStream):
    """For httpcore2: every request is answered at once, after one checkpoint."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return ANSWER

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


class FakeCoreBackend(httpcore2.AsyncNetworkBackend):
    """Makes such streams."""

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        await trio.lowlevel.checkpoint()
        return FakeCoreStream()
