"""Streams that are not ours."""

from __future__ import annotations

from typing import Any

import trio


class Hidden(trio.abc.Stream):
    """A stream that shows nothing but trio's interface."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._inner = stream

    async def send_all(self, data: Any) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()
