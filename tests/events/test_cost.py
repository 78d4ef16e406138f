"""What observers cost: nothing when there are none but one branch, and at most a quarter when there is one."""

from __future__ import annotations

import time
from typing import Any

import pytest

import trioconn
from trioconn import events

_LEASES = 5000
_ROUNDS = 9


@pytest.mark.bench
async def test_one_observer_costs_at_most_a_quarter_of_connect_and_release(tcp_server: Any) -> None:
    async def measure(observers: list[Any]) -> float:
        async with trioconn.TCPConnector(observers=observers) as connector:
            route = connector.route(f"tcp://127.0.0.1:{port}")
            (await connector.connect(route)).release()
            began = time.perf_counter()
            for _ in range(_LEASES):
                (await connector.connect(route)).release()
            return (time.perf_counter() - began) / _LEASES

    none = one = 1.0
    async with tcp_server() as port:
        for _ in range(_ROUNDS):
            none = min(none, await measure([]))
            one = min(one, await measure([lambda event: None]))
    print(f"connect + release: {none * 1e6:.2f} µs without, {one * 1e6:.2f} µs with an observer")
    assert one / none <= 1.25


async def test_without_observers_no_event_is_made(tcp_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **fields: object) -> None:
        raise AssertionError("an event was made for nobody")

    for kind in list(vars(events).values()):
        if isinstance(kind, type) and issubclass(kind, events.Event):
            monkeypatch.setattr(kind, "__init__", refuse)
    async with tcp_server() as port, trioconn.TCPConnector() as connector:
        for _ in range(2):
            (await connector.connect(f"tcp://127.0.0.1:{port}")).release()
        (await connector.connect(f"tcp://127.0.0.1:{port}")).close()
        with pytest.raises(AssertionError, match="for nobody"):
            (await connector.connect(f"tcp://127.0.0.1:{port}", observers=[print])).close()
