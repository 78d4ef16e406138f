"""A pool of connections that speak Redis. Each is logged in once, when it is made, by `protocol_factory`."""

from __future__ import annotations

import os
from typing import TypeAlias

import trio

import trioconn

Reply: TypeAlias = "bytes | int | list[Reply | RedisError] | None"


class RedisError(Exception):
    """Redis said no. The connection is none the worse for it."""


class Redis:
    """The protocol of one connection: it lives as long as the connection, and goes from lease to lease with it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def should_close(self) -> bool:
        """Read by the pool at release: bytes that nobody asked for must not become somebody's reply."""
        return bool(self._buffer)

    async def command(self, stream: trio.abc.Stream, *words: str | bytes) -> Reply | RedisError:
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        await stream.send_all(request)
        return await self._reply(stream)

    async def _reply(self, stream: trio.abc.Stream) -> Reply | RedisError:
        line = await self._take_line(stream)
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return RedisError(rest.decode("utf-8", "replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else (await self._take(stream, int(rest) + 2))[:-2]
        return [await self._reply(stream) for _ in range(int(rest))]

    async def _take_line(self, stream: trio.abc.Stream) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._receive(stream)
        return (await self._take(stream, end + 2))[:-2]

    async def _take(self, stream: trio.abc.Stream, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._receive(stream)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _receive(self, stream: trio.abc.Stream) -> None:
        data = await stream.receive_some()
        if not data:
            raise trio.BrokenResourceError("Redis ended the connection")
        self._buffer += data


class RedisPool:
    """``await pool("SET", "key", "value")``: one command on any idle connection."""

    def __init__(self, connector: trioconn.TCPConnector, url: str) -> None:
        self._connector = connector
        self._url = url

    async def __call__(self, *words: str | bytes) -> Reply:
        async with await self._connector.connect(self._url) as conn:
            reply: Reply | RedisError = await conn.protocol.command(conn.stream, *words)
            # Only here is the stream at a clean boundary. After a cancellation half a reply may be under way, which the
            # next command would take for its own: then this line is not reached, and the connection is closed.
            conn.release()
        if isinstance(reply, RedisError):
            raise reply
        return reply


async def main() -> None:
    url = os.environ.get("REDIS", "tcp://127.0.0.1:6379")
    async with trioconn.TCPConnector(protocol_factory=log_in, limit=4) as connector:
        redis = RedisPool(connector, url)
        await redis("SET", "greeting", "hello")
        print(await redis("GET", "greeting"))


async def log_in(stream: trio.abc.Stream, route: trioconn.Route) -> Redis:
    """The last step of making a connection. If it raises, whoever waits for the connection gets the error."""
    redis = Redis()
    reply = await redis.command(stream, "AUTH", os.environ.get("REDIS_PASSWORD", ""))
    if isinstance(reply, RedisError):
        raise reply
    return redis


if __name__ == "__main__":
    trio.run(main)
