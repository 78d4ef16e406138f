"""What the tests of the shell share."""

from __future__ import annotations

import trio
import trio.testing

import trioconn
from trioconn.testing import ScriptedConnector

A = "tcp://a.test:1"
B = "tcp://b.test:1"


def check_clean(connector: trioconn.BaseConnector) -> None:
    """Nothing is open, nobody waits, no task is left."""
    counts = connector.statistics()
    assert (counts.open, counts.leased, counts.idle, counts.connecting, counts.waiting) == (0, 0, 0, 0, 0), counts
    assert not counts.hosts
    assert not connector._shell._runs and not connector._shell.crew.busy
    if isinstance(connector, ScriptedConnector):
        assert not connector.open_streams and not connector.dialling


async def settle() -> None:
    """Let everything happen that can happen at this moment."""
    await trio.testing.wait_all_tasks_blocked()


def counts(connector: trioconn.BaseConnector) -> tuple[int, int, int, int]:
    """(leased, idle, connecting, waiting)."""
    found = connector.statistics()
    return found.leased, found.idle, found.connecting, found.waiting
