"""A pool whose orders read as words, for tests that tell a story."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trioconn._pool import Abort, Attempt, Close, Dial, Grant, Pool, Record, Refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Desk:
    """Carries facts to a pool and answers with its orders as words.

    Routes, waiters and connections are strings; the endpoint of a route is its first letter. The first attempt at route
    ``A`` is ``A/1``. Orders read ``dial A/1``, ``grant w c``, ``refuse w``, ``abort A/1``, ``close c reason``.
    """

    def __init__(self, limit: int | None, **options: Any) -> None:
        options.setdefault("endpoint_of", lambda route: route[0])
        options.setdefault("keepalive_timeout", None)
        self.pool: Pool[str, str, str] = Pool(limit=limit, **options)
        self.now = 100.0
        self.attempts: dict[str, Attempt[str]] = {}
        self.records: dict[str, Record[str, str]] = {}
        self._dials: dict[str, int] = {}

    def _told(self, orders: Iterable[Any]) -> list[str]:
        words: list[str] = []
        for order in orders:
            match order:
                case Grant(waiter=waiter, record=record):
                    words.append(f"grant {waiter} {record.connection}")
                case Refuse(waiter=waiter):
                    words.append(f"refuse {waiter}")
                case Dial(route=route, attempt=attempt):
                    assert attempt.route == route
                    self._dials[route] = count = self._dials.get(route, 0) + 1
                    self.attempts[f"{route}/{count}"] = attempt
                    words.append(f"dial {route}/{count}")
                case Abort(attempt=attempt):
                    words.append(f"abort {next(name for name, a in self.attempts.items() if a is attempt)}")
                case Close(record=record, reason=reason):
                    words.append(f"close {record.connection} {reason}")
        return words

    def after(self, seconds: float) -> Desk:
        self.now += seconds
        return self

    def wanted(self, waiter: str, route: str) -> list[str]:
        return self._told(self.pool.wanted(waiter, route, self.now))

    def gave_up(self, waiter: str) -> list[str]:
        return self._told(self.pool.gave_up(waiter, self.now))

    def dialed(self, attempt: str, connection: str, **options: Any) -> list[str]:
        orders = self.pool.dialed(self.attempts[attempt], connection, self.now, **options)
        record = self.attempts[attempt].record
        assert record is not None
        self.records[connection] = record
        return self._told(orders)

    def failed(self, attempt: str) -> list[str]:
        return self._told(self.pool.dial_failed(self.attempts[attempt], self.now))

    def released(self, connection: str, **options: Any) -> list[str]:
        return self._told(self.pool.released(self.records[connection], self.now, **options))

    def dropped(self, connection: str) -> list[str]:
        return self._told(self.pool.dropped(self.records[connection], self.now))

    def bounced(self, waiter: str, connection: str) -> list[str]:
        return self._told(self.pool.bounced(waiter, self.records[connection], self.now))

    def prewarmed(self, route: str, count: int) -> list[str]:
        return self._told(self.pool.prewarmed(route, count, self.now))

    def expired(self) -> list[str]:
        return self._told(self.pool.expired(self.now))

    def closed(self) -> list[str]:
        return self._told(self.pool.closed(self.now))

    def take(self, route: str) -> str | None:
        record = self.pool.take(route, self.now)
        return None if record is None else record.connection

    def deadline_in(self) -> float | None:
        """Seconds from now to the deadline."""
        deadline = self.pool.deadline()
        return None if deadline is None else round(deadline - self.now, 6)

    # ---- longer stories ----

    def lease(self, route: str, connection: str, *, dial_time: float = 0.0, **options: Any) -> None:
        """A waiter comes, an attempt succeeds, the connection is leased."""
        (word,) = self.wanted(f"for {connection}", route)
        verb, attempt = word.split()
        assert verb == "dial"
        self.after(dial_time)
        assert self.dialed(attempt, connection, **options) == [f"grant for {connection} {connection}"]

    def keep(self, route: str, connection: str, **options: Any) -> None:
        """The same, and it is released: now it is idle."""
        self.lease(route, connection, **options)
        assert self.released(connection) == []

    def use(self, connection: str, times: int) -> None:
        """A leased connection goes back and forth, and is leased again."""
        for _ in range(times):
            self.pool.released(self.records[connection], self.now)
            assert self.take(self.records[connection].route) == connection


@pytest.fixture
def desk() -> Callable[..., Desk]:
    return Desk
