"""Connectors in memory whose end each test must find clean."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from trioconn.testing import ScriptedConnector

from .common import check_clean


@pytest.fixture
def scripted() -> Callable[..., AbstractAsyncContextManager[ScriptedConnector]]:
    """``async with scripted(script, **options) as connector``: a `ScriptedConnector` that must end clean."""

    @asynccontextmanager
    async def make(*args: Any, **options: Any) -> AsyncIterator[ScriptedConnector]:
        connector = ScriptedConnector(*args, **options)
        async with connector:
            nursery = connector._shell.crew.nursery
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
