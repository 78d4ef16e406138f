"""Idle connections that the peer closes, noticed without a task for each.

Theory of operation
-------------------
Between leases nothing reads from a connection, so a peer's FIN would lie unnoticed until the next lease, and sockets
pile up in CLOSE_WAIT (urllib3/urllib3#2100). A task per idle connection would notice, and cost 50 µs per lease.

With epoll, every socket is registered once, when it is made, for nothing but "the peer has shut down its half"
(``EPOLLRDHUP``, edge-triggered). Data do not wake it, so a leased connection costs nothing while it works, and neither
a lease nor a release touches the registration. kqueue can do the same: a low-water mark that no data reach. A single
task waits until the epoll object itself becomes readable. What it wakes for is only a hint: the connection is probed,
as it is at each hand-out, and only if it is idle.

A descriptor is forgotten before it is closed, since its number comes back; so numbers and connections cannot be
confused. Where neither exists (Windows), a bounded slice of the connections is probed a few times a second.
"""

from __future__ import annotations

import math
import select
import sys
from collections import OrderedDict
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")

_MOST_PER_WAKE_UP = 256
_SLICE_INTERVAL = 0.25  # seconds; with the slice below, 1 000 idle connections are all seen within a second
_SLICE = 256


class Watch(Generic[T]):
    """Which of the things registered by their descriptors may have been hung up on."""

    def __init__(self) -> None:
        self._things: OrderedDict[int, T] = OrderedDict()
        self._poller: Any = None
        self._changed = trio.Event()
        if sys.platform == "linux":
            self._poller = select.epoll()
        elif hasattr(select, "kqueue"):  # pragma: no cover - macOS and the BSDs
            self._poller = select.kqueue()

    def add(self, fd: int, thing: T) -> None:
        """Watch `fd` until `forget`. A negative one is ignored: nothing can be seen of it."""
        if fd < 0:
            return
        self.forget(fd)  # if somebody closed a socket behind our back, its number may be here still
        self._things[fd] = thing
        if self._poller is None:
            self._changed.set()
        elif sys.platform == "linux":
            self._poller.register(fd, select.EPOLLRDHUP | select.EPOLLET)
        else:  # pragma: no cover - macOS and the BSDs
            event = select.kevent(
                fd, select.KQ_FILTER_READ, select.KQ_EV_ADD | select.KQ_EV_CLEAR, select.KQ_NOTE_LOWAT, 2**30
            )
            self._poller.control([event], 0)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer: it is about to be closed. Unknown ones are ignored."""
        if self._things.pop(fd, None) is None or self._poller is None:
            return
        try:
            if sys.platform == "linux":
                self._poller.unregister(fd)
            else:  # pragma: no cover - macOS and the BSDs
                self._poller.control([select.kevent(fd, select.KQ_FILTER_READ, select.KQ_EV_DELETE)], 0)
        except OSError:
            pass  # somebody closed the socket behind our back, and the system watches it no longer

    async def wait(self) -> list[T]:
        """Wait until the peers of some have hung up, or may have; return these."""
        if self._poller is None:
            return await self._wait_for_slice()
        while True:
            await trio.lowlevel.wait_readable(self._poller.fileno())
            if sys.platform == "linux":
                fds = [fd for fd, _ in self._poller.poll(0, _MOST_PER_WAKE_UP)]
            else:  # pragma: no cover - macOS and the BSDs
                fds = [event.ident for event in self._poller.control([], _MOST_PER_WAKE_UP, 0)]
            things = [self._things[fd] for fd in fds if fd in self._things]
            if things:
                return things

    async def _wait_for_slice(self) -> list[T]:
        while not self._things:
            self._changed = trio.Event()
            await self._changed.wait()
        await trio.sleep(_SLICE_INTERVAL)
        count = min(len(self._things), max(_SLICE, math.ceil(len(self._things) / 4)))
        fds = [fd for fd, _ in zip(self._things, range(count), strict=False)]
        for fd in fds:
            self._things.move_to_end(fd)
        return [self._things[fd] for fd in fds]

    def close(self) -> None:
        """Give up the descriptor of the watch itself. May be called again."""
        self._things.clear()
        if self._poller is not None:
            self._poller.close()
