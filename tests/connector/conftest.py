"""What the tests of the shell share: connectors in memory whose end each test must find clean."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio

import trioconn
from trioconn.testing import ScriptedConnector

A = "tcp://a.test:1"
B = "tcp://b.test:1"


def check_clean(connector: trioconn.BaseConnector) -> None:
    """Nothing is open, nobody waits, no task is left."""
    counts = connector.statistics()
    assert (counts.open, counts.leased, counts.idle, counts.connecting, counts.waiting) == (0, 0, 0, 0, 0), counts
    assert not counts.hosts
    assert not connector._shell._runs and not connector._shell._busy
    if isinstance(connector, ScriptedConnector):
        assert not connector.open_streams and not connector.dialling


@pytest.fixture
def scripted() -> Callable[..., AbstractAsyncContextManager[ScriptedConnector]]:
    """``async with scripted(script, **options) as connector``: a `ScriptedConnector` that must end clean.

    Its nursery must hold the two standing tasks and nothing else when the block ends, unless something is under way.
    """

    @asynccontextmanager
    async def make(*args: Any, **options: Any) -> AsyncIterator[ScriptedConnector]:
        connector = ScriptedConnector(*args, **options)
        async with connector:
            nursery = connector._shell._nursery
            assert nursery is not None
            yield connector
        assert not nursery.child_tasks
        check_clean(connector)

    return make


@pytest.fixture
def no_gc() -> Iterator[None]:
    """The cyclic garbage collector is off: what leaks stays, and shows."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture
def told() -> Callable[[], tuple[list[Any], Callable[[Any], None]]]:
    """``events, observer = told()``."""

    def make() -> tuple[list[Any], Callable[[Any], None]]:
        events: list[Any] = []
        return events, events.append

    return make


async def settle() -> None:
    """Let everything happen that can happen at this moment."""
    await trio.testing.wait_all_tasks_blocked()
