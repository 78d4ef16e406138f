"""Which idle connections the peer has left: by what the system tells, and where it tells nothing, by looking."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trioconn import _watch
from trioconn._watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


@pytest.fixture
def watch() -> Iterator[Watch[str]]:
    watch: Watch[str] = Watch()
    yield watch
    watch.close()


@pytest.fixture
def without_poller(monkeypatch: pytest.MonkeyPatch) -> Watch[str]:
    """As on Windows: nothing tells who has hung up."""
    watch: Watch[str] = Watch()
    watch.close()
    watch._poller = None
    return watch


needs_poller = pytest.mark.skipif(
    not hasattr(select, "epoll") and not hasattr(select, "kqueue"), reason="nothing here tells who has hung up"
)


async def test_what_has_no_descriptor_is_ignored(watch: Watch[str]) -> None:
    watch.add(-1, "pipe")
    watch.forget(-1)
    assert not watch._things


async def wakes(watch: Watch[str], nursery: trio.Nursery) -> list[str]:
    """What the next wait returns, filled in when it does."""
    seen: list[str] = []

    @nursery.start_soon
    async def wait() -> None:
        seen.extend(await watch.wait())

    await trio.testing.wait_all_tasks_blocked()
    return seen


@needs_poller
async def test_only_those_that_were_hung_up_on(watch: Watch[str], nursery: trio.Nursery) -> None:
    (quiet, quiet_peer), (talking, talking_peer), (left, left_peer) = (socket.socketpair() for _ in range(3))
    with quiet, quiet_peer, talking, talking_peer, left, left_peer:
        for name, sock in (("quiet", quiet), ("talking", talking), ("left", left)):
            watch.add(sock.fileno(), name)
        seen = await wakes(watch, nursery)
        talking_peer.sendall(b"this wakes nobody")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not seen
        left_peer.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert seen == ["left"]


@needs_poller
async def test_closed_behind_our_back(watch: Watch[str]) -> None:
    """The system watches it no longer, and has an error for whoever asks it to stop."""
    ours, peer = socket.socketpair()
    with peer:
        number = ours.fileno()
        watch.add(number, "gone")
        ours.close()
        watch.forget(number)
        watch.forget(number)
    assert not watch._things


@needs_poller
@pytest.mark.skipif(not hasattr(select, "epoll"), reason="kqueue knows descriptors, and not what they stand for")
async def test_closed_behind_our_back_and_open_elsewhere(watch: Watch[str], nursery: trio.Nursery) -> None:
    """Another process may have it, too: then the system goes on to report it by a number that is nobody's here."""
    (gone, gone_peer), (here, here_peer) = socket.socketpair(), socket.socketpair()
    with gone.dup(), here, here_peer:
        watch.add(gone.fileno(), "gone")
        watch.add(here.fileno(), "here")
        number = gone.fileno()
        gone.close()
        watch.forget(number)
        seen = await wakes(watch, nursery)
        gone_peer.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not seen
        here_peer.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert seen == ["here"]


@needs_poller
async def test_a_number_that_has_come_back(watch: Watch[str]) -> None:
    """If nobody has said that the first is gone, the second is watched all the same."""
    ours, peer = socket.socketpair()
    with ours:
        watch.add(ours.fileno(), "first")
        watch.add(ours.fileno(), "second")
        peer.close()
        assert await watch.wait() == ["second"]


async def test_where_nothing_tells_a_slice_is_looked_at(without_poller: Watch[str], autojump_clock: MockClock) -> None:
    """A thousand are all seen within a second, however often some come and go, and none costs a descriptor's call."""
    watch = without_poller
    for number in range(1000):
        watch.add(number, f"thing {number}")
    watch.forget(7)
    watch.forget(7)
    seen: list[str] = []
    begun = trio.current_time()
    while len(seen) < 999:
        seen += await watch.wait()
    assert trio.current_time() - begun == pytest.approx(4 * _watch._SLICE_INTERVAL)
    assert set(seen) == {f"thing {number}" for number in range(1000)} - {"thing 7"}
    watch.close()


async def test_where_nothing_tells_and_nothing_is_there(
    without_poller: Watch[str], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Then nobody wakes up, until there is something."""
    watch = without_poller
    seen = await wakes(watch, nursery)
    await trio.sleep(1000)
    watch.add(1, "first")
    watch.forget(1)
    await trio.sleep(1000)
    assert not seen
    watch.add(2, "second")
    await trio.sleep(1)
    assert seen == ["second"]
