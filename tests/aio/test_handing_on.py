"""Connections that go from one request to the next, what traces hear of it, and errors on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import trio

import trioconn
from trioconn.aio import AiohttpConnector, Portal

Run = Callable[[Callable[[Portal], Awaitable[Any]]], Any]

SIGNALS = ("connection_queued_start", "connection_queued_end", "connection_create_start", "connection_create_end")


def traced(told: list[str], fails_on: str = "") -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()
    for name in (*SIGNALS, "connection_reuseconn"):

        async def hear(_: object, __: object, ___: object, name: str = name) -> None:
            told.append(name.removeprefix("connection_"))
            if name == fails_on:
                raise ValueError("of the trace")

        getattr(config, f"on_{name}").append(hear)
    return config


async def became_idle(connector: Any) -> None:
    async with asyncio.timeout(5):
        while connector.statistics().leased:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.001)


# ---- handed on -------------------------------------------------------------------------------------------------------


def test_one_of_two_parked_connections_is_handed_on(run: Run) -> None:
    """The other goes to the pool."""

    async def main(portal: Portal) -> None:
        arrived: list[asyncio.StreamWriter] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    arrived.append(writer)
                    if len(arrived) == 1:
                        continue  # both are answered in one step, and so both are read in one
                    for one in arrived[:2] if len(arrived) == 2 else arrived[-1:]:
                        one.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            except asyncio.IncompleteReadError:
                pass
            finally:
                writer.close()

        peer = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{peer.sockets[0].getsockname()[1]}/"

        async def get(times: int) -> None:
            for _ in range(times):
                async with client.get(url) as response:
                    assert await response.text() == "ok"

        async with aiohttp.ClientSession(connector=AiohttpConnector()) as client:
            connector: Any = client.connector
            async with asyncio.timeout(5):
                await asyncio.gather(get(1), get(2))
            assert len(set(map(id, arrived))) == 2 and len(arrived) == 3
            await became_idle(connector.connector)
            found = connector.connector.statistics()
            assert (found.created, found.idle) == (2, 2)
        peer.close()
        await asyncio.sleep(0.01)

    run(main)


def test_handed_on_where_each_request_asks_the_environment(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        connector = AiohttpConnector(trust_env=True, proxy=())
        async with aiohttp.ClientSession(connector=connector) as client:
            texts = {await (await client.get(server.url())).text() for _ in range(3)}
            assert len(texts) == 1 and connector.connector.statistics().created == 1

    run(main)


def test_more_routes_than_are_remembered(run: Run, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioconn.aio.aiohttp_connector._ROUTES_KEPT", 1)

    async def main(portal: Portal) -> None:
        connector = AiohttpConnector()
        async with aiohttp.ClientSession(connector=connector) as client:
            for _ in range(2):
                for host in ("127.0.0.1", "localhost"):
                    async with client.get(server.url(host=host)) as response:
                        assert response.status == 200
                        await response.read()
            await became_idle(connector.connector)
            assert connector.connector.statistics().idle == len(connector.connector.statistics().hosts)

    run(main)


# ---- traces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "handed on"])
def test_a_trace_that_fails_loses_no_connection(run: Run, server: Any, idle: bool) -> None:
    async def main(portal: Portal) -> None:
        told: list[str] = []
        connector = AiohttpConnector()
        config = traced(told, "connection_reuseconn")
        async with aiohttp.ClientSession(connector=connector, trace_configs=[config]) as client:
            await (await client.get(server.url())).read()
            if idle:
                await became_idle(connector.connector)
            with pytest.raises(ValueError, match="of the trace"):
                await client.get(server.url())
            assert told == ["create_start", "create_end", "reuseconn"]
            await became_idle(connector.connector)

    run(main)


def test_traces_of_a_request_that_waits_for_a_connection_and_gets_a_used_one(run: Run, server: Any) -> None:
    async def main(portal: Portal) -> None:
        told: list[str] = []
        async with portal.open(trioconn.TCPConnector(limit=1)) as connector:
            held = await connector.connect(server.url())
            adapter = AiohttpConnector(connector)
            async with aiohttp.ClientSession(connector=adapter, trace_configs=[traced(told)]) as client:
                waiting = asyncio.ensure_future(client.get(server.url()))
                async with asyncio.timeout(5):
                    while told != ["queued_start"]:  # noqa: ASYNC110 - nothing tells it
                        await asyncio.sleep(0.001)
                held.release()
                assert (await waiting).status == 200
                assert sorted(told) == ["queued_end", "queued_start", "reuseconn"]
                assert told[0] == "queued_start"

    run(main)


def test_traces_of_a_request_that_fails_or_is_cancelled(run: Run, refused: int, deaf: int) -> None:
    async def main(portal: Portal) -> None:
        told: list[str] = []
        connector = AiohttpConnector()
        async with aiohttp.ClientSession(connector=connector, trace_configs=[traced(told)]) as client:
            with pytest.raises(aiohttp.ClientConnectorError):
                await client.get(f"http://127.0.0.1:{refused}/")
            assert told == ["create_start"]
            task = asyncio.ensure_future(client.get(f"https://127.0.0.1:{deaf}/"))
            async with asyncio.timeout(5):
                while len(told) < 2:  # noqa: ASYNC110 - nothing tells it
                    await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert told == ["create_start", "create_start"]
            assert connector.connector.statistics().waiting == 0

    run(main)


def test_traces_of_two_requests_for_one_route(run: Run, server: Any) -> None:
    """The first hears of the second's attempt, too: attempts are their route's."""

    async def main(portal: Portal) -> None:
        told: list[str] = []
        connector = AiohttpConnector(connect_timeout=5)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[traced(told)], timeout=timeout) as client:
            responses = await asyncio.gather(*[client.get(server.url()) for _ in range(2)])
            assert [one.status for one in responses] == [200, 200]
            assert told.count("create_end") == 2 and told[0] == "create_start"

    run(main)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_peer_that_goes_away_in_the_handshake(run: Run) -> None:
    async def main(portal: Portal) -> None:
        async def leave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        peer = await asyncio.start_server(leave, "127.0.0.1", 0)
        async with aiohttp.ClientSession(connector=AiohttpConnector()) as client:
            with pytest.raises(aiohttp.ClientConnectorError) as error:
                await client.get(f"https://127.0.0.1:{peer.sockets[0].getsockname()[1]}/")
            assert not isinstance(error.value, aiohttp.ClientSSLError)
        peer.close()
        await asyncio.sleep(0.01)

    run(main)


def test_errors_of_a_connector_of_ones_own_stay_themselves(run: Run) -> None:
    class Mine(trioconn.ConnectorError):
        pass

    class Failing(trioconn.BaseConnector):
        async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
            raise Mine("mine")

    async def main(portal: Portal) -> None:
        async with portal.open(Failing()) as connector:
            adapter = AiohttpConnector(connector)
            async with aiohttp.ClientSession(connector=adapter) as client:
                with pytest.raises(Mine) as error:
                    await client.get("http://origin.test/")
                assert error.value.__cause__ is not error.value

    run(main)
