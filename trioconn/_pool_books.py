"""The pool's books: what is counted and ranked, and the changes that keep counts and rankings true. No rules.

Each change does the counting of one step (an attempt begins, a connection is shelved, a waiter leaves the queue), so
that `_pool.py` is left with the decisions. `_changed` works out anew where a route stands after any change: whether it
is hungry, has surplus attempts, stands for its endpoint, or can be forgotten. Changes whose docstring says that it
"must follow" leave that to their caller, who has more to do at the same route.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic

from ._pool_state import (
    CLOSED,
    IDLE,
    LEASED,
    Abort,
    Attempt,
    C,
    Close,
    Counts,
    Dial,
    Grant,
    Home,
    Level,
    Order,
    Place,
    R,
    Ranking,
    Reason,
    Record,
    Ticket,
    W,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping


class Books(Generic[R, W, C]):
    """Counts, queues and rankings of a pool. The rules are in `Pool`."""

    def __init__(
        self,
        limit: int | None,
        limit_per_host: int | None,
        keepalive_timeout: float | None,
        endpoint_of: Callable[[R], Hashable],
    ) -> None:
        self._closed = False
        self._keepalive = math.inf if keepalive_timeout is None else keepalive_timeout
        self._endpoint_of = endpoint_of
        self._limit_per_host = limit_per_host or math.inf

        self._total: Level[R, W, C] = Level(limit or math.inf)
        self._homes: dict[R, Home[R, W, C]] = {}
        self._records: dict[Record[R, C], None] = {}  # leased and idle, oldest first
        self._queued: dict[W, Home[R, W, C]] = {}
        self._connecting = 0
        self._arrivals = 0  # counts waiters, attempts and beginnings of hunger
        self._hungry = 0  # how many routes are

        self._idle = self._total.idle
        # Dues that come before the keep-alive's end, which the order of `_idle` does not show.
        self._early: list[tuple[float, int, Record[R, C]]] = []
        # When `take` left the rules unsettled, or None: it gives a record, so no orders. The shell reads it.
        self.unsettled: float | None = None

        # Only where endpoints are limited:
        self._places: dict[Hashable, Place[R, W, C]] | None = {} if limit_per_host else None
        self._touched: dict[Place[R, W, C], None] = {}  # to be looked at by `_balance`
        self._ripening: Ranking[Place[R, W, C], float] = Ranking()  # when rule 4 will close an idle one of it

    # ---- questions ---------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def open(self) -> int:
        return self._total.open

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def connecting(self) -> int:
        """Attempts, those included that are aborted and have not ended."""
        return self._connecting

    @property
    def leased(self) -> int:
        return self._total.open - self._connecting - len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._queued)

    def open_of(self, route: R) -> int:
        """What `route` holds: leased, idle and attempts."""
        home = self._homes.get(route)
        return 0 if home is None else home.open

    def leases(self) -> Iterator[Record[R, C]]:
        """The leased connections, oldest connection first. Goes through all connections: for warnings and the end."""
        return (record for record in self._records if record.state is LEASED)

    def oldest_wait(self, now: float) -> float:
        """How many seconds the longest waiting waiter has waited, 0 if nobody waits. Goes through all routes."""
        oldest = (home.waiters[next(iter(home.waiters))].since for home in self._homes.values() if home.waiters)
        return max(now - min(oldest, default=now), 0.0)

    def oldest_waits(self, now: float) -> Mapping[Hashable, float]:
        """`oldest_wait` of every endpoint for which somebody waits. Goes through all routes: for statistics."""
        waits: dict[Hashable, float] = {}
        for home in self._homes.values():
            if home.waiters:
                endpoint = self._endpoint_of(home.route)
                since = home.waiters[next(iter(home.waiters))].since
                waits[endpoint] = max(now - since, waits.get(endpoint, 0.0))
        return waits

    def endpoints(self) -> Mapping[Hashable, Counts]:
        """The counts of every endpoint that has any. Goes through all routes and idle connections: for statistics."""
        idle: dict[Home[R, W, C], int] = {}
        for record in self._idle:
            idle[record.home] = idle.get(record.home, 0) + 1
        table: dict[Hashable, Counts] = {}
        for home in self._homes.values():
            endpoint = self._endpoint_of(home.route)
            was = table.get(endpoint, Counts())
            resting, connecting = idle.get(home, 0), length(home.attempts) + home.aborting
            table[endpoint] = Counts(
                open=was.open + home.open,
                leased=was.leased + home.open - resting - connecting,
                idle=was.idle + resting,
                connecting=was.connecting + connecting,
                waiting=was.waiting + length(home.waiters),
            )
        return table

    # ---- changes, one at a time --------------------------------------------------------------------------------------

    def _home(self, route: R) -> Home[R, W, C]:
        """What is known of `route`. Whoever asks ends with `_changed`, which forgets it again if it is empty."""
        home = self._homes.get(route)
        if home is None:
            place = None
            if self._places is not None:
                endpoint = self._endpoint_of(route)
                place = self._places.get(endpoint)
                if place is None:
                    place = self._places[endpoint] = Place(endpoint, self._limit_per_host)
                place.homes += 1
            home = self._homes[route] = Home(route, place)
        return home

    def _ticket(self, now: float) -> Ticket:
        self._arrivals += 1
        return Ticket(self._arrivals, now)

    def _queue(self, waiter: W, home: Home[R, W, C], ticket: Ticket) -> OrderedDict[W, Ticket]:
        waiters = home.waiters
        if waiters is None:
            waiters = home.waiters = OrderedDict()
        waiters[waiter] = ticket
        self._queued[waiter] = home
        return waiters

    def _unqueue(self, waiter: W, home: Home[R, W, C]) -> Ticket:
        assert home.waiters is not None
        ticket = home.waiters.pop(waiter)
        if not home.waiters:
            home.waiters = None
        del self._queued[waiter]
        return ticket

    def _grant(self, record: Record[R, C], orders: list[Order[R, W, C]]) -> None:
        """Lease `record` to the oldest waiter of its route."""
        home: Home[R, W, C] = record.home
        assert home.waiters is not None
        waiter = next(iter(home.waiters))
        record.ticket = self._unqueue(waiter, home)
        record.uses += 1
        orders.append(Grant(waiter, record))

    def _shelve(self, record: Record[R, C], now: float, due: float) -> None:
        """Make a leased connection idle; as `released` does on its hot path, but for any due."""
        home: Home[R, W, C] = record.home
        default = now + self._keepalive
        record.state = IDLE
        record.ticket = None
        record.idle_since = now
        record.due = due = min(due, record.expires)
        record.older = home.newest
        if record.older is not None:
            record.older.newer = record
        home.newest = record
        self._idle[record] = None
        if home.place is not None:
            home.place.idle[record] = None
        if due < default and record.filed != due:
            record.filed = due
            self._arrivals += 1
            heapq.heappush(self._early, (due, self._arrivals, record))
            if len(self._early) > 2 * len(self._idle) + 32:
                self._weed()

    def _weed(self) -> None:
        """File the early dues anew, without those of connections that are no longer idle."""
        for _, _, record in self._early:
            record.filed = None
        self._early.clear()
        for n, record in enumerate(self._idle):
            if record.due < record.idle_since + self._keepalive:
                record.filed = record.due
                self._early.append((record.due, n, record))
        heapq.heapify(self._early)

    def _unshelve(self, record: Record[R, C]) -> None:
        """Make an idle connection leased, from wherever it lies."""
        home: Home[R, W, C] = record.home
        newer, older = record.newer, record.older
        if newer is None:
            home.newest = older
        else:
            newer.older = older
        if older is not None:
            older.newer = newer
        record.newer = record.older = None
        record.state = LEASED
        del self._idle[record]
        if home.place is not None:
            del home.place.idle[record]

    def _first_due(self) -> float:
        """When the first idle connection is due by itself, or infinity."""
        early = self._early
        while early:
            due, _, record = early[0]
            if record.state is IDLE and record.due == due:
                break
            heapq.heappop(early)
            if record.filed == due:
                record.filed = None
        longest = next(iter(self._idle), None)
        if longest is None:
            return math.inf
        # Those without an early due become due in the order in which they became idle.
        return min(longest.due, early[0][0]) if early else longest.due

    def _close(self, record: Record[R, C], reason: Reason, orders: list[Order[R, W, C]]) -> None:
        self._forget(record)
        orders.append(Close(record, reason))

    def _forget(self, record: Record[R, C]) -> None:
        """A connection is no more."""
        if record.state is IDLE:
            self._unshelve(record)
        record.state = CLOSED
        del self._records[record]
        self._opened(record.home, -1)

    def _dial(self, home: Home[R, W, C], now: float, orders: list[Order[R, W, C]], *, prewarm: bool = False) -> None:
        """Start an attempt. `_changed` must follow."""
        self._arrivals += 1
        attempt: Attempt[R] = Attempt(home, self._arrivals, now, prewarm=prewarm)
        if home.attempts is None:
            home.attempts = OrderedDict()
        home.attempts[attempt] = None
        self._connecting += 1
        home.open += 1
        self._total.open += 1
        if home.place is not None:
            home.place.open += 1
        orders.append(Dial(home.route, attempt))

    def _abort(self, attempt: Attempt[R], orders: list[Order[R, W, C]]) -> None:
        """Abort a running attempt, which stays open. `_changed` must follow."""
        home: Home[R, W, C] = attempt.home
        self._remove_attempt(attempt, home)
        attempt.aborted = True
        self._count_aborting(home, 1)
        orders.append(Abort(attempt))

    def _end(self, attempt: Attempt[R]) -> Home[R, W, C]:
        """Strike an attempt out; it still counts as open. `_changed` or `_opened` must follow."""
        if attempt.ended:
            raise RuntimeError(f"ended, but not under way: {attempt!r}")
        home: Home[R, W, C] = attempt.home
        if self._homes.get(home.route) is not home:
            raise RuntimeError(f"not an attempt of this pool: {attempt!r}")
        if attempt.aborted:
            self._count_aborting(home, -1)
        else:
            self._remove_attempt(attempt, home)
        attempt.ended = True
        self._connecting -= 1
        return home

    def _remove_attempt(self, attempt: Attempt[R], home: Home[R, W, C]) -> None:
        assert home.attempts is not None
        del home.attempts[attempt]
        if not home.attempts:
            home.attempts = None

    def _count_aborting(self, home: Home[R, W, C], change: int) -> None:
        home.aborting += change
        self._total.aborting += change
        if home.place is not None:
            home.place.aborting += change

    def _opened(self, home: Home[R, W, C], change: int) -> None:
        home.open += change
        self._total.open += change
        if home.place is not None:
            home.place.open += change
        self._changed(home)

    def _changed(self, home: Home[R, W, C]) -> None:
        """Bring the rankings up to date after any change at `home`: worked out anew, not remembered."""
        place = home.place
        waiting, running = length(home.waiters), length(home.attempts)
        level = self._total if place is None else place
        if waiting > running:
            last = home.failed and running > 0
            if home.rank is None:
                self._hungry += 1
            if home.rank is None or home.rank[0] is not last or home.rank[1] != home.open:
                self._arrivals += 1
                home.rank = (last, home.open, self._arrivals)
                level.hungry.put(home, home.rank)
        elif home.rank is not None:
            home.rank = None
            self._hungry -= 1
            level.hungry.remove(home)
        if running > waiting and home.attempts is not None:
            oldest = next(iter(home.attempts)).number
            self._total.surplus.put(home, oldest)
            level.surplus.put(home, oldest)
        else:
            self._total.surplus.remove(home)
            level.surplus.remove(home)
        if not home.open and not waiting:
            self._drop_home(home)
        if place is not None:
            self._stand(place)
            self._touched[place] = None

    def _touch(self, home: Home[R, W, C]) -> None:
        if home.place is not None:
            self._touched[home.place] = None

    def _stand(self, place: Place[R, W, C]) -> None:
        """Rule 5: the hungriest route of an endpoint that has room stands for it among all."""
        best = None if place.full else place.hungry.first()
        if place.standing is not None and place.standing is not best:
            self._total.hungry.remove(place.standing)
        place.standing = best
        if best is not None and best.rank is not None:
            self._total.hungry.put(best, best.rank)

    def _drop_home(self, home: Home[R, W, C]) -> None:
        if self._homes.get(home.route) is home:
            del self._homes[home.route]
            if home.place is not None and self._places is not None:
                home.place.homes -= 1
                if not home.place.homes:
                    del self._places[home.place.endpoint]


def length(queue: OrderedDict[W, Ticket] | OrderedDict[Attempt[R], None] | None) -> int:
    """Of a queue that is None rather than empty."""
    return 0 if queue is None else len(queue)
