"""aiohttp's vocabulary, in aiohttp's order."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.aiohttp_trace import TraceConfig
from trioconn.testing import FakeNetwork

SIGNALS = [name for name in vars(TraceConfig()) if name.startswith("on_")]


def test_the_names_are_those_of_aiohttp() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    theirs = {name for name in dir(aiohttp.TraceConfig()) if name.startswith(("on_connection_", "on_dns_"))}
    assert set(SIGNALS) == theirs


async def test_the_order_is_that_of_aiohttp(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    told: list[tuple[str, Any]] = []
    trace = TraceConfig()
    for name in SIGNALS:
        getattr(trace, name).append(lambda event, name=name: told.append((name, event)))
    network = FakeNetwork(nursery)
    network.add_host("a.test", "192.0.2.1")
    network.listen("192.0.2.1")
    async with network.connector(observers=[trace], family=2) as connector:
        (await connector.connect("tcp://a.test:1")).release()
        (await connector.connect("tcp://a.test:1")).close()
        (await connector.connect("tcp://a.test:1")).close()
    nursery.cancel_scope.cancel()
    first = [
        *("on_connection_queued_start", "on_connection_create_start"),
        *("on_dns_cache_miss", "on_dns_resolvehost_start", "on_dns_resolvehost_end"),
        *("on_connection_create_end", "on_connection_queued_end"),
    ]
    third = [
        *("on_connection_queued_start", "on_connection_create_start", "on_dns_cache_hit"),
        *("on_connection_create_end", "on_connection_queued_end"),
    ]
    assert [name for name, _ in told] == [*first, "on_connection_reuseconn", *third]
    assert next(event.host for name, event in told if name == "on_dns_cache_miss") == "a.test"
    assert all(isinstance(event.route, trioconn.Route) for _, event in told)
