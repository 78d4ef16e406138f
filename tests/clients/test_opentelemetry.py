"""The metrics, as they come out of a real OpenTelemetry SDK."""

from __future__ import annotations

import gc
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest
import trio

import trioconn
from trioconn import events
from trioconn.testing import ScriptedConnector, Succeed

pytest.importorskip("opentelemetry.sdk.metrics")
ours = pytest.importorskip("trioconn.opentelemetry")

from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402 - after the check that it is there
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Any:
    provider = MeterProvider(metric_readers=[reader])
    yield provider
    provider.shutdown()


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    found: dict[str, list[Any]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = [metric.unit, *metric.data.data_points]
    return found


def open_connections(reader: InMemoryMetricReader) -> dict[str, int]:
    unit, *all_points = points(reader)["http.client.open_connections"]
    assert unit == "{connection}"
    return {point.attributes["http.connection.state"]: point.value for point in all_points}


class Fixed(trioconn.Resolver):
    """Answers at once: no thread, which a virtual clock would overtake."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
        await trio.lowlevel.checkpoint()
        return [trioconn.ResolveResult("127.0.0.1", socket.AF_INET, None)]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_metrics_of_a_life(
    tcp_server: Any, reader: InMemoryMetricReader, provider: Any, autojump_clock: Any
) -> None:
    observer = ours.MetricsObserver(provider)
    async with tcp_server() as port:
        async with trioconn.TCPConnector(limit=1, observers=[observer], resolver=Fixed()) as connector:
            url = f"http://localhost:{port}"
            first = await connector.connect(url)
            assert open_connections(reader) == {"active": 1}
            async with trio.open_nursery() as nursery:

                async def wait_for_it() -> None:
                    (await connector.connect(url)).release()

                nursery.start_soon(wait_for_it)
                await trio.sleep(3)
                first.release()
            assert open_connections(reader) == {"active": 0, "idle": 1}
            await trio.sleep(10)
        assert open_connections(reader) == {"active": 0, "idle": 0}

    found = points(reader)
    attributes = {"server.address": "localhost", "server.port": port, "url.scheme": "http"}
    unit, duration = found["http.client.connection.duration"]
    assert (unit, duration.count, dict(duration.attributes)) == ("s", 1, attributes)
    assert duration.sum == pytest.approx(13, abs=0.5)
    unit, queue = found["http.client.request.time_in_queue"]
    assert (unit, queue.count, dict(queue.attributes)) == ("s", 2, attributes)
    assert queue.max == pytest.approx(3, abs=0.5)
    unit, lookup = found["dns.lookup.duration"]
    assert (unit, lookup.count, dict(lookup.attributes)) == ("s", 1, {"dns.question.name": "localhost"})
    assert list(lookup.explicit_bounds)[:3] == [0.005, 0.01, 0.025]


async def test_lookup_that_fails_has_an_error_type(reader: InMemoryMetricReader, provider: Any) -> None:
    class Nothing(trioconn.Resolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
            await trio.lowlevel.checkpoint()
            raise trioconn.ResolveError("no such name", stage="resolve")

        async def aclose(self) -> None:
            pass

    observer = ours.MetricsObserver(provider)
    async with trioconn.TCPConnector(observers=[observer], resolver=Nothing()) as connector:
        with pytest.raises(trioconn.ResolveError):
            await connector.connect("http://no.invalid")
    _, lookup = points(reader)["dns.lookup.duration"]
    assert lookup.attributes["error.type"]
    assert observer._lookups == {}


async def test_one_observer_of_several_connectors(tcp_server: Any, reader: InMemoryMetricReader, provider: Any) -> None:
    observer = ours.MetricsObserver(provider)
    async with (
        tcp_server() as port,
        trioconn.TCPConnector(observers=[observer]) as one,
        trioconn.TCPConnector(observers=[observer]) as other,
    ):
        leases = [await connector.connect(f"http://127.0.0.1:{port}") for connector in (one, other)]
        assert open_connections(reader) == {"active": 2}
        leases[0].release()
        assert open_connections(reader) == {"active": 1, "idle": 1}
        leases[1].close()
    assert open_connections(reader) == {"active": 0, "idle": 0}


def test_instruments_are_made_once_per_provider(provider: Any) -> None:
    assert ours.MetricsObserver(provider)._instruments is ours.MetricsObserver(provider)._instruments
    assert ours.MetricsObserver()._instruments is ours.MetricsObserver()._instruments


def test_a_provider_is_not_kept_alive() -> None:
    provider = MeterProvider()
    ours.MetricsObserver(provider)
    provider.shutdown()
    gone = weakref.ref(provider)
    del provider
    gc.collect()
    assert gone() is None


async def test_one_of_two_who_wait_gives_up_and_the_connection_is_active_all_the_same(
    reader: InMemoryMetricReader, provider: Any, autojump_clock: Any
) -> None:
    observer = ours.MetricsObserver(provider)
    async with ScriptedConnector(lambda route: Succeed(after=2), limit=1, observers=[observer]) as connector:

        async def give_up() -> None:
            with trio.move_on_after(1):
                await connector.connect("http://a.test")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            lease = await connector.connect("http://a.test")
        assert open_connections(reader) == {"active": 1}
        lease.release()
        assert open_connections(reader) == {"active": 0, "idle": 1}
    assert not observer._waiting
    _, queue = points(reader)["http.client.request.time_in_queue"]
    assert (queue.count, queue.min, queue.max) == (2, 1, 2)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
async def test_a_path_stands_for_the_server_where_there_is_no_host(
    reader: InMemoryMetricReader, provider: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with trioconn.UnixConnector(path, observers=[ours.MetricsObserver(provider)]) as connector:
            (await connector.connect("unix:")).close()
    _, duration = points(reader)["http.client.connection.duration"]
    assert dict(duration.attributes) == {"server.address": path, "url.scheme": "unix"}


def told(kind: type[Any], route: trioconn.Route, at: float = 0.0, **fields: Any) -> Any:
    return kind(at=at, route=route, **fields)


def test_a_lookup_that_two_attempts_share_is_one(reader: InMemoryMetricReader, provider: Any) -> None:
    observer, route = ours.MetricsObserver(provider), trioconn.TCPConnector().route("http://a.test")
    for at, shared in ((0.0, False), (0.25, True)):
        observer(told(events.LookupStarted, route, at, dial=1, host="a.test", shared=shared))
    for _ in range(2):
        observer(told(events.LookupFinished, route, 1.0, dial=1, host="a.test"))
    _, lookup = points(reader)["dns.lookup.duration"]
    assert lookup.count == 1


def test_what_is_known_of_routes_has_a_bound(reader: InMemoryMetricReader, provider: Any) -> None:
    observer, connector = ours.MetricsObserver(provider), trioconn.TCPConnector()
    for port in range(1, 1503):
        route = connector.route(f"http://a.test:{port}")
        observer(told(events.Closed, route, connection=port, reason="closed", age=1.0))
        observer(told(events.Closed, route, connection=port, reason="closed", age=2.0))
        assert len(observer._attributes) <= 1000
    _, *durations = points(reader)["http.client.connection.duration"]
    found = {point.attributes["server.port"]: point.sum for point in durations if "server.port" in point.attributes}
    assert found and set(found.values()) == {3.0}
