"""What aiohttp's connector tests name and no other test here shows."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn._route import DefaultTrust, TLSStep
from trioconn.testing import ConnectProxy, FakeNetwork

MINE, THEIRS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.mark.aiohttp("get_ssl_context2")
@pytest.mark.aiohttp("get_ssl_context3")
@pytest.mark.aiohttp("get_ssl_context4")
@pytest.mark.aiohttp("get_ssl_context5")
@pytest.mark.aiohttp("get_ssl_context6")
@pytest.mark.parametrize(
    ("of_the_connector", "of_the_call", "which"),
    [
        (True, MINE, MINE),
        (MINE, None, MINE),
        (MINE, THEIRS, THEIRS),
        (True, False, False),
        (MINE, False, False),
        (False, None, False),
        (MINE, True, True),
        (True, None, True),
    ],
)
def test_the_call_decides_before_the_connector(of_the_connector: Any, of_the_call: Any, which: Any) -> None:
    connector = trioconn.TCPConnector(ssl=of_the_connector)
    (step,) = connector.route("https://a.test", ssl=of_the_call).steps
    assert isinstance(step, TLSStep)
    if isinstance(which, bool):
        assert step.trust == DefaultTrust(which)
    else:
        assert step.trust.context is which  # type: ignore[union-attr]
    assert not connector.route("http://a.test", ssl=of_the_call).steps


@pytest.mark.aiohttp("tcp_connector_close_doesnt_abort_non_ssl_when_shutdown_timeout_zero")
async def test_what_was_sent_arrives_though_no_grace_is_given(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    arrived: list[bytes] = []

    async def slow(stream: trio.SocketStream) -> None:
        await trio.sleep(1)
        arrived.extend([data async for data in stream])

    network = FakeNetwork(nursery)
    network.listen("192.0.2.1", slow)
    async with network.connector(ssl_shutdown_timeout=0) as connector:
        lease = await connector.connect("tcp://192.0.2.1:80")
        await lease.stream.send_all(b"x" * 10_000)
        await connector.aclose()
    await trio.sleep(2)
    assert b"".join(arrived) == b"x" * 10_000


@pytest.mark.aiohttp("start_tls_exception_with_ssl_shutdown_timeout_zero")
@pytest.mark.aiohttp("start_tls_exception_with_ssl_shutdown_timeout_nonzero")
@pytest.mark.parametrize("grace", [0, 10])
async def test_a_tunnel_without_tls_behind_it_is_closed_at_once(
    grace: float,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    make_client_ssl: Callable[[], ssl.SSLContext],
) -> None:
    async def no_tls(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert await stream.receive_some() == b""  # at this moment, or it would wait for ever

    network = FakeNetwork(nursery)
    network.listen("192.0.2.9", ConnectProxy(tunnel=no_tls))
    options = {"ssl_shutdown_timeout": grace, "ssl": make_client_ssl(), "proxy": "http://192.0.2.9:3128"}
    async with network.connector(limit=1, **options) as connector:
        for _ in range(3):
            start = trio.current_time()
            with pytest.raises(trioconn.TLSError):
                await connector.connect("https://a.test")
            await trio.testing.wait_all_tasks_blocked()
            assert trio.current_time() == start
            assert not network.open_peers and connector.statistics().open == 0


@pytest.mark.aiohttp("multiple_dns_resolution_requests_first_fails_second_successful")
async def test_a_name_that_failed_is_asked_for_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    network = FakeNetwork(nursery)
    network.listen("192.0.2.1")
    network.add_host("a.test", error=OSError("not now"))
    async with network.connector() as connector:
        failed: list[str] = []

        async def ask() -> None:
            try:
                await connector.connect("tcp://a.test:1")
            except trioconn.ResolveError as error:
                failed.append(error.stage)

        async with trio.open_nursery() as askers:
            askers.start_soon(ask)
            askers.start_soon(ask)
        assert failed == ["resolve", "resolve"]
        await trio.sleep(5)  # that it failed is known for a moment
        network.add_host("a.test", "192.0.2.1")
        async with await connector.connect("tcp://a.test:1") as lease:
            assert not lease.reused
