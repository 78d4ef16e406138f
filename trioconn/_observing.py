"""Who is told what happens.

Observers are told after the pool has settled, never in the middle of a change: events are collected, and told when the
orders have been carried out. With nobody to tell, the cost is the one test of `Audience.active`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

from . import events
from ._route import Route

logger = logging.getLogger("trioconn.observers")

Observer: TypeAlias = Callable[[events.Event], object]
"""Called with each event, synchronously. One that raises is removed, and logged. It must not call the connector."""


class Listener(Protocol):
    """A caller that brought observers of its own."""

    @property
    def route(self) -> Route:
        """Of whose attempts it hears."""
        ...

    observers: Sequence[Observer]


class Audience:
    """The observers of a connector, and those of the callers that wait.

    Attributes:
      active: whether there is anybody to tell. Nothing else need be looked at if not.
      telling: whether an observer is being called at this moment.
    """

    def __init__(self, observers: Iterable[Observer], *, always: bool = False) -> None:
        self._always = always  # the connector itself wants to see each lease; one test serves both on the hot path
        self._observers = check_observers(observers)
        self._listeners: dict[Route, dict[Listener, None]] = {}
        self._untold: list[tuple[events.Event, Listener | None]] = []
        self.active = always or bool(self._observers)
        self.telling = False

    def join(self, listener: Listener) -> None:
        """From now on `listener` hears its own events and those of every attempt of its route."""
        self._listeners.setdefault(listener.route, {})[listener] = None
        self.active = True

    def leave(self, listener: Listener) -> None:
        """`listener` hears no more, after it has heard what was added so far."""
        self.tell()
        others = self._listeners.get(listener.route)
        if others is not None and others.pop(listener, self) is None and not others:
            del self._listeners[listener.route]
        self._count()

    def add(self, event: events.Event, listener: Listener | None = None) -> None:
        """Have `event` told at the next `tell`. One that concerns a `listener` alone is not for other listeners."""
        self._untold.append((event, listener))

    def tell(self) -> None:
        """Tell what was added. Called when the pool has settled."""
        if self.telling:
            return  # an observer released something: the loop below goes on with what that added
        self.telling = True
        try:
            while self._untold:
                untold, self._untold = self._untold, []
                for event, listener in untold:
                    self._tell_one(event, listener)
        finally:
            self.telling = False

    def hear(self, event: events.Event) -> None:
        """Tell `event` at once: from inside an attempt, where no change of the pool is under way."""
        self.add(event)
        self.tell()

    def tell_lease(self, event: events.ConnectionEvent, observers: Iterable[Observer] = ()) -> None:
        """Tell `event`, of an idle connection's lease, to the connector's observers and to those of the call.

        The short way: with an observer these are two events for each request. The pool has settled, no waiter is
        concerned.
        """
        if self.telling or self._untold:
            self.add(event)
            self.tell()
        else:
            self.telling = True
            try:
                for observer in self._observers:
                    try:
                        observer(event)
                    except Exception as error:
                        self._drop(observer, event, error)
            finally:
                self.telling = False
            if self._untold:  # an observer released something
                self.tell()
        if observers:
            self.telling = True
            try:
                for observer in observers:
                    _call(observer, event)
            finally:
                self.telling = False

    def _tell_one(self, event: events.Event, listener: Listener | None) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception as error:
                self._drop(observer, event, error)
        if listener is not None:
            hearers = [listener]
        elif isinstance(event, events.DialEvent | events.Created):
            # Attempts are not paired with waiters, so all who wait for this route hear of it.
            hearers = list(self._listeners.get(event.route, ()))
        else:
            hearers = []
        for hearer in hearers:
            for observer in hearer.observers:
                if not _call(observer, event):
                    hearer.observers = tuple(one for one in hearer.observers if one is not observer)

    def _drop(self, observer: Observer, event: events.Event, error: Exception) -> None:
        _log(observer, event, error)
        self._observers = tuple(one for one in self._observers if one is not observer)
        self._count()

    def _count(self) -> None:
        self.active = self._always or bool(self._observers or self._listeners)


def check_observers(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    """`observers` as a tuple.

    Raises:
      TypeError: one of them cannot be called.
    """
    checked = tuple(observers)
    for observer in checked:
        if not callable(observer):
            raise TypeError(f"an observer is a callable that takes an event, not a {type(observer).__name__}")
    return checked


def _call(observer: Observer, event: events.Event) -> bool:
    try:
        observer(event)
    except Exception as error:
        _log(observer, event, error)
        return False
    return True


def _log(observer: Observer, event: events.Event, error: Exception) -> None:
    told = type(event).__name__
    logger.error("the observer %r raised at %s and is called no more", observer, told, exc_info=error)
