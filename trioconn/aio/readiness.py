"""When sockets are ready, for transports that change hands with every lease.

A pooled connection is watched by asyncio for the length of one lease. ``loop.add_reader`` costs more than the lease
itself, and under trio-asyncio a task each time. So one selector of our own holds the sockets, which costs one call of
the system to enter and one to leave, and that selector is itself a descriptor that becomes readable: the asyncio loop
watches it (guest mode), or one trio task does (trio-asyncio).
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

import trio

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

_MANY = 8  # sockets; with fewer, going through the loop would cost more than the waits that it saves


class Readiness:
    """Which sockets are ready.

    Args:
      loop: the asyncio loop that watches for us; None if `live` runs as a trio task.

    Raises:
      NotImplementedError: this system's selectors cannot be watched, or the loop cannot watch them.
    """

    def __init__(self, loop: Any = None) -> None:
        self.watched_by_loop: bool = loop is not None
        self._loop = loop
        self._selector = selectors.DefaultSelector()
        fileno = getattr(self._selector, "fileno", None)
        try:
            if fileno is None:
                raise NotImplementedError("this system's selectors are no descriptors")
            self._fd: int = fileno()
            if loop is not None:
                loop.add_reader(self._fd, self.poll)
        except BaseException:
            self._selector.close()
            raise
        self._closed = False
        self._keys: dict[int, selectors.SelectorKey] = {}

    def watch(self, fd: int, events: int, f: Callable[[int], object]) -> None:
        """Call ``f(events)`` whenever `fd` is ready for some of `events`, until `forget`."""
        self._keys[fd] = self._selector.register(fd, events, f)

    def change(self, fd: int, events: int, f: Callable[[int], object]) -> None:
        """Watch `fd` for `events` instead."""
        self._keys[fd] = self._selector.modify(fd, events, f)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer. It may have been closed already."""
        if not self._closed:
            del self._keys[fd]
            self._selector.unregister(fd)

    def poll(self) -> bool:
        """Tell those that are ready at this moment. Whether there were any."""
        keys = self._keys
        ready = self._selector.select(0)
        for key, events in ready:
            # One that was told before may have ended another, whose number may even be a third one's by now.
            if keys.get(key.fd) is key:
                key.data(events)
        return bool(ready)

    async def live(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the sockets, as a trio task, and have `loop` work on what they bring.

        With many sockets, what some have brought is worked off before the next are asked for, as asyncio does it: many
        are told at once then, where otherwise nearly each would cost a wait of its own.
        """
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            while self.poll() and len(self._keys) >= _MANY:
                worked_off = trio.Event()
                loop.call_soon(worked_off.set)
                await worked_off.wait()

    def close(self) -> None:
        """Give up the selector."""
        self._closed = True
        self._keys.clear()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._selector.close()
