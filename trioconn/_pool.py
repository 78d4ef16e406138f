"""DECIDE: who gets which connection, what to open, what to close. Facts in, orders out.

Theory of operation
===================

The pool does no I/O, reads no clock, knows no trio. The shell tells it *facts*, methods in the past tense that carry
`now`, and carries out the *orders* that each returns: `Grant`, `Refuse`, `Dial`, `Abort`, `Close`. Routes, waiters and
connections are opaque. A fact changes one thing; then the rules run to a fixed point (`_settle`): they are written as
conditions on the present state ("a route is hungry and has room"), never as reminders to wake somebody, so that no
order of events can forget a waiter.

*Open* = leased + idle + attempts, counted per route (`Home`), per endpoint (`Place`) and in total. `limit` bounds the
total, `limit_per_host` the endpoint, which several routes may share. An attempt counts one until its end is reported,
also after Abort. A Close counts at once.

1. **Serve.** A route never has both an idle connection and a waiter. Newest idle first, so that a pool shrinks after a
   burst. Waiters of a route are first in, first out. Expiry and lifetime are tested at take-out and at release, uses at
   release.
2. **Grow.** A route is *hungry* while it has more waiters than running attempts. Attempts are counted, not paired with
   waiters. While endpoint and total have room, the hungry route with fewest open gets a Dial (tie: hungry longest
   with that many; were its hunger dated from before its last Dial, fifty hosts on a limit of ten would starve some).
   This also decides every *slot* freed by a drop, a failure, expiry or max_uses; a freed *connection* goes by rule 4.
3. **Attempts belong to routes.** Success serves the oldest waiter, else becomes idle; so does an aborted attempt that
   succeeds. Failure refuses the oldest waiter that was already waiting when the attempt began, else nobody. *Surplus*
   attempts (more than waiters) run on as capacity: aborting them at once looks thrifty and is a trap, for with two
   clients, quick requests and slow dials each release would abort a dial and each request start one, for ever. They are
   aborted in two cases:
   a. a waiter that gives up aborts the oldest surplus attempt, which was too slow for it (never one of prewarm's);
   b. when a level is full, nothing of it is idle and a hungry route has nothing open, its oldest surplus attempt is
      aborted for that route, one at a time.
4. **Balanced turns.** With no room, a connection of route g, freed or idle, is closed for the hungriest route h only if
   a. g holds at least two more than h; or
   b. h holds nothing and the connection has had its *turn*: at least 8 uses and at least twice the time its dial took
      since it was made; if g has waiters, h's oldest must also have come before g's oldest; or
   c. it has been idle as long as its dial took (keeping it costs by now what a redial costs), at most 0.5 s.
   Of the idle ones only the longest idle is looked at. A fresh connection serves its own oldest waiter first.
5. **Two levels.** If an endpoint is full, candidates are its own routes and its own longest idle connection. If the
   total is full, candidates are the routes of endpoints with room, and for a freed connection those of its own
   endpoint. The first sentence holds whether or not the total is full too: with limit 2 and 1 per host, an idle
   connection would otherwise keep another route of its endpoint waiting until keep-alive ends.
6. **Failing routes come last.** A route whose latest attempt failed and which has one running sorts behind all others
   and takes nothing from anyone; free room it may use. If an attempt that began after another's failure fails too, the
   failure refuses every waiter that was there when it began.
7. **Prewarm** starts attempts that nobody waits for, into free room only. Their failures refuse nobody. **Bounced**: a
   granted connection that proved dirty or expired is dropped, its waiter goes back to the head of its queue.
8. **Closed**: refuse all waiters, close all idle, abort all attempts. Later results and releases are closed.

Three modules: this one decides; `_pool_books.py` counts and ranks; `_pool_state.py` says what of.
Where no endpoint is limited there are no places at all: endpoints are then counted only when somebody asks.

Cost: no fact scans connections, waiters or routes. Queues are OrderedDicts (a plain dict degrades at `next(iter())`
after deletions at its front), the idle connections of one route are linked to each other, and what needs "the least of"
is a heap (`Ranking`). The hot path, `take` and `released` while nobody is hungry, changes no count and makes no order.

`expired(now)` gives an order if and only if `deadline() <= now`. So the moments of rule 4 are computed, not tested:
`_ripe` says *when* a connection may be closed for a route.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from ._pool_books import Books, length
from ._pool_state import (
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
    R,
    Ranking,
    Reason,
    Record,
    Refuse,
    W,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

__all__ = [
    "NOTHING",
    "Abort",
    "Attempt",
    "Close",
    "Counts",
    "Dial",
    "Grant",
    "Order",
    "Pool",
    "Reason",
    "Record",
    "Refuse",
]

Orders: TypeAlias = "Sequence[Order[R, W, C]]"
NOTHING: tuple[()] = ()
"""What a fact returns when nothing at all follows from it, so that the shell need not even look at the deadline."""

_TURN_USES = 8
_TURN_DIALS = 2
_LONGEST_IDLE_KEPT = 0.5  # seconds, rule 4c


def _same(route: Hashable) -> Hashable:
    return route


class Pool(Books[R, W, C]):
    """The connections of one connector, as facts and orders. Single-threaded, not re-entrant.

    Args:
      limit: how many may be open in total; None or 0: any number.
      limit_per_host: how many may be open per endpoint; None or 0: any number.
      keepalive_timeout: seconds after which an idle connection is closed; None: never, 0: nothing is kept.
      max_uses: after how many uses a connection is closed at release; None: never.
      force_close: whether every connection is closed at release.
      endpoint_of: the endpoint of a route.

    Every fact takes `now`, in seconds on a clock that never goes back. A fact that cannot be, such as the release of a
    connection that is not leased, raises `RuntimeError` at once, before anything is changed.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        limit_per_host: int | None = None,
        keepalive_timeout: float | None = 15.0,
        max_uses: int | None = None,
        force_close: bool = False,
        endpoint_of: Callable[[R], Hashable] = _same,
    ) -> None:
        super().__init__(limit, limit_per_host, keepalive_timeout, endpoint_of)
        self._max_uses = math.inf if max_uses is None else max_uses
        self._force_close = force_close
        # Whether some connections are retired at release for other reasons than their age: one test for the hot path.
        self._retiring = force_close or max_uses is not None or self._keepalive == 0

    # ---- the hot path ------------------------------------------------------------------------------------------------

    def take(self, route: R, now: float) -> Record[R, C] | None:
        """Hand out the newest usable idle connection of `route`, which is leased then; None if there is none.

        After None, call `wanted`. Nobody is overtaken: a route with an idle connection has no waiters (rule 1). If
        `unsettled` is true afterwards, call `expired(now)`: others are hungry, and what is left may concern them.
        """
        home = self._homes.get(route)
        if home is None:
            return None
        record = home.newest
        if record is None:
            return None
        if record.due <= now:
            return self._take_older(record, now)
        home.newest = older = record.older
        if older is not None:
            older.newer = None
            record.older = None
        del self._idle[record]
        record.state = LEASED
        record.uses += 1
        if home.place is not None:
            del home.place.idle[record]
        if self._hungry:
            self._leave_unsettled(home, now)
        return record

    def released(self, record: Record[R, C], now: float, *, idle_for: float | None = None) -> Orders[R, W, C]:
        """A leased connection came back clean. `idle_for` shortens its keep-alive, this once."""
        if record.state is not LEASED:
            raise RuntimeError(f"released, but not leased: {record!r}")
        home = record.home
        due = now + self._keepalive
        if self._hungry or home.waiters is not None or idle_for is not None or record.expires < due or self._retiring:
            return self._freed(record, now, due if idle_for is None else min(due, now + max(idle_for, 0.0)))
        record.state = IDLE
        record.ticket = None
        record.idle_since = now
        record.due = due
        record.older = older = home.newest
        if older is not None:
            older.newer = record
        home.newest = record
        self._idle[record] = None
        if home.place is not None:
            home.place.idle[record] = None
        return NOTHING

    # ---- facts -------------------------------------------------------------------------------------------------------

    def wanted(self, waiter: W, route: R, now: float) -> Orders[R, W, C]:
        """`waiter` wants a connection of `route`. It is granted at once, or queued."""
        if waiter in self._queued:
            raise RuntimeError(f"waits already: {waiter!r}")
        if self._closed:
            return (Refuse(waiter),)
        orders: list[Order[R, W, C]] = []
        if self._idle:
            self._expire(now, orders)
            record = self.take(route, now)
            if record is not None:
                record.ticket = self._ticket(now)
                orders.append(Grant(waiter, record))
                return orders if self.unsettled is None else self._settle(now, orders)
        home = self._home(route)
        self._queue(waiter, home, self._ticket(now))
        if home.rank is not None and not orders and self.unsettled is None:
            return NOTHING  # it was hungry, so it stays where it stands
        self._changed(home)
        return self._settle(now, orders)

    def gave_up(self, waiter: W, now: float) -> Orders[R, W, C]:
        """`waiter`, which is still queued, leaves."""
        home = self._queued.get(waiter)
        if home is None:
            raise RuntimeError(f"gave up, but does not wait: {waiter!r}")
        orders: list[Order[R, W, C]] = []
        self._unqueue(waiter, home)
        if home.attempts is not None and len(home.attempts) > length(home.waiters):
            # Rule 3a. Attempts of prewarm stand in the way only while there are some at this very route.
            slow = next((attempt for attempt in home.attempts if not attempt.prewarm), None)
            if slow is not None:
                self._abort(slow, orders)
        self._changed(home)
        return self._settle(now, orders)

    def dialed(self, attempt: Attempt[R], connection: C, now: float, *, expires: float = math.inf) -> Orders[R, W, C]:
        """`attempt` succeeded, aborted or not. `expires`: when the connection's lifetime ends."""
        home = self._end(attempt)
        home.failed = False
        record: Record[R, C] = Record(home, connection, now, now - attempt.began, expires)
        attempt.record = record
        self._records[record] = None
        orders: list[Order[R, W, C]] = []
        if self._closed:
            self._close(record, "closed", orders)
        elif home.waiters is not None:
            self._grant(record, orders)  # rule 4: fresh, so nobody else is asked
            self._changed(home)
        else:
            self._shelve(record, now, now + self._keepalive)
            self._changed(home)
        return self._settle(now, orders)

    def dial_failed(self, attempt: Attempt[R], now: float) -> Orders[R, W, C]:
        """`attempt` failed, or it was aborted and its task has ended. The Refuse orders concern this very failure."""
        home = self._end(attempt)
        orders: list[Order[R, W, C]] = []
        if not attempt.aborted:
            home.failed = True
            if not attempt.prewarm:  # rule 7
                self._refuse(attempt, orders)
        self._opened(home, -1)
        return self._settle(now, orders)

    def dropped(self, record: Record[R, C], now: float) -> Orders[R, W, C]:
        """A leased connection was closed by its holder, or an idle one found dead. The shell closes it, unordered."""
        if record not in self._records:
            raise RuntimeError(f"dropped, but not open here: {record!r}")
        self._forget(record)
        return self._settle(now, [])

    def bounced(self, waiter: W, record: Record[R, C], now: float) -> Orders[R, W, C]:
        """What was granted to `waiter` proved unusable when it resumed (rule 7). The shell closes it, unordered."""
        if record.state is not LEASED:
            raise RuntimeError(f"bounced, but not leased: {record!r}")
        if waiter in self._queued:
            raise RuntimeError(f"waits already: {waiter!r}")
        if self._closed:
            self._forget(record)
            return (Refuse(waiter),)
        orders: list[Order[R, W, C]] = []
        self._forget(record)
        self._expire(now, orders)
        other = self.take(record.route, now)
        # Its old ticket: it came before all who wait here now, and counts as having waited all the time.
        ticket = record.ticket or self._ticket(now)
        if other is not None:  # rule 1
            other.ticket = ticket
            orders.append(Grant(waiter, other))
        else:
            home = self._home(record.route)
            self._queue(waiter, home, ticket).move_to_end(waiter, last=False)
            self._changed(home)
        return self._settle(now, orders)

    def expired(self, now: float) -> Orders[R, W, C]:
        """Time passed. Gives an order if and only if `deadline` was not after `now`."""
        return self._settle(now, [])

    def prewarmed(self, route: R, count: int, now: float) -> Orders[R, W, C]:
        """Start attempts that nobody waits for, into free room, until `route` holds `count` open (rule 7)."""
        orders: list[Order[R, W, C]] = []
        if self._closed:
            return orders
        self._settle(now, orders)  # room goes to the hungry first
        home = self._home(route)
        while home.open < count and not self._total.full and not (home.place is not None and home.place.full):
            self._dial(home, now, orders, prewarm=True)
        self._changed(home)
        return self._settle(now, orders)

    def closed(self, now: float) -> Orders[R, W, C]:
        """The connector closes (rule 8). What is leased stays counted until it is released or dropped."""
        orders: list[Order[R, W, C]] = []
        self._closed = self._retiring = True
        self.unsettled = None
        orders.extend([Refuse(waiter) for waiter in self._queued])
        homes = list(self._homes.values())
        for home in homes:
            for waiter in list(home.waiters or ()):
                self._unqueue(waiter, home)
            for attempt in list(home.attempts or ()):
                self._abort(attempt, orders)
        for record in list(self._idle):
            self._close(record, "closed", orders)
        for home in homes:
            self._changed(home)
        self._early.clear()
        self._touched.clear()
        self._ripening = Ranking()
        return orders

    # ---- questions ---------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """The next moment at which `expired` would give an order, or None: amortised O(log n)."""
        if self.unsettled is not None:
            return self.unsettled
        moment = math.inf
        if self._idle:
            moment = self._first_due()
            h = self._total.hungry.first() if self._total.full else None
            if h is not None:
                moment = min(moment, _ripe(next(iter(self._idle)), h))
        ripe = self._ripening.first()
        if ripe is not None:
            moment = min(moment, self._ripening.key(ripe))
        return None if moment == math.inf else moment

    # ---- the rules ---------------------------------------------------------------------------------------------------

    def _settle(self, now: float, orders: list[Order[R, W, C]]) -> Orders[R, W, C]:
        """Run the rules until none gives an order. Rule 1 needs no turn here: each fact keeps it by itself."""
        if not self._closed:
            while self._expire(now, orders) or self._grow(now, orders) or self._balance(now, orders):
                pass
        self.unsettled = None
        return orders

    def _expire(self, now: float, orders: list[Order[R, W, C]]) -> bool:
        """Close what has been idle, or has lived, long enough."""
        before = len(orders)
        while self._first_due() <= now:
            record = next(iter(self._idle))
            if record.due > now:
                record = self._early[0][2]
            self._close(record, "age" if record.expires <= now else "idle", orders)
        return len(orders) > before

    def _grow(self, now: float, orders: list[Order[R, W, C]]) -> bool:
        """Rule 2."""
        before = len(orders)
        while not self._total.full and (h := self._total.hungry.first()) is not None:
            self._dial(h, now, orders)
            self._changed(h)
        return len(orders) > before

    def _balance(self, now: float, orders: list[Order[R, W, C]]) -> bool:
        """Rules 3b and 4, the latter for idle connections: in total, then at each endpoint that changed (rule 5)."""
        if self._balance_level(self._total, now, orders):
            return True
        while (ripe := self._ripening.first()) is not None and self._ripening.key(ripe) <= now:
            self._ripening.remove(ripe)
            self._touched[ripe] = None
        while self._touched:
            place = next(iter(self._touched))
            if self._balance_level(place, now, orders):
                return True
            del self._touched[place]
            h = place.hungry.first() if place.full else None
            longest = next(iter(place.idle), None)
            if h is None or longest is None or (moment := _ripe(longest, h)) == math.inf:
                self._ripening.remove(place)
            else:
                self._ripening.put(place, moment)
        return False

    def _balance_level(self, level: Level[R, W, C], now: float, orders: list[Order[R, W, C]]) -> bool:
        h = level.hungry.first() if level.full else None
        if h is None:
            return False
        longest = next(iter(level.idle), None)
        if longest is not None:
            if now < _ripe(longest, h):
                return False
            self._close_for(h, longest, now, orders)
            return True
        g = level.surplus.first()
        if g is None or g.attempts is None or h.open or level.aborting:
            return False
        self._abort(next(iter(g.attempts)), orders)  # rule 3b
        self._changed(g)
        return True

    def _freed(self, record: Record[R, C], now: float, due: float) -> Orders[R, W, C]:
        """Rules 1 and 4 for a connection that was released: retire it, close it for another, hand it on, or keep it."""
        home = record.home
        orders: list[Order[R, W, C]] = []
        reason = self._unfit(record, now, due)
        if reason is not None:
            self._close(record, reason, orders)
        elif (h := self._claimant(record)) is not None and _ripe(record, h) <= now:
            self._close_for(h, record, now, orders)
        elif home.waiters is not None:
            self._grant(record, orders)
            if home.rank is not None and self.unsettled is None and length(home.waiters) > length(home.attempts):
                return orders  # as hungry as before: no rule can have come true
            self._changed(home)
        else:
            self._shelve(record, now, due)
            self._touch(home)
        return self._settle(now, orders)

    def _unfit(self, record: Record[R, C], now: float, due: float) -> Reason | None:
        """Why a released connection is not to be used again, if so."""
        if self._closed:
            return "closed"
        if self._force_close:
            return "force_close"
        if record.uses >= self._max_uses:
            return "uses"
        if record.expires <= now:
            return "age"
        return "idle" if due <= now else None

    def _claimant(self, record: Record[R, C]) -> Home[R, W, C] | None:
        """Rule 5: the hungriest route that could use the slot of a freed connection."""
        home: Home[R, W, C] = record.home
        h = self._total.hungry.first() if self._total.full else None
        if home.place is not None and home.place.full:
            own = home.place.hungry.first()
            if h is None or (own is not None and own.rank is not None and h.rank is not None and own.rank < h.rank):
                h = own
        return None if h is home else h

    def _take_older(self, record: Record[R, C] | None, now: float) -> Record[R, C] | None:
        """The newest was due, which an older one need not be; those that are due are left to `_expire`."""
        while record is not None and record.due <= now:
            record = record.older
        if record is not None:
            self._unshelve(record)
            record.uses += 1
            if self._hungry:
                self._leave_unsettled(record.home, now)
        return record

    def _leave_unsettled(self, home: Home[R, W, C], now: float) -> None:
        self.unsettled = now
        self._touch(home)

    def _close_for(self, h: Home[R, W, C], record: Record[R, C], now: float, orders: list[Order[R, W, C]]) -> None:
        """Rule 4: close `record` and dial `h` in its stead, at once: the freed slot is h's, not the hungriest's."""
        self._close(record, "evicted", orders)
        self._dial(h, now, orders)
        self._changed(h)

    def _refuse(self, attempt: Attempt[R], orders: list[Order[R, W, C]]) -> None:
        """Rules 3 and 6: whom the failure of `attempt` concerns."""
        home: Home[R, W, C] = attempt.home
        while home.waiters is not None:
            waiter = next(iter(home.waiters))
            if home.waiters[waiter].number > attempt.number:
                break
            self._unqueue(waiter, home)
            orders.append(Refuse(waiter))
            if not attempt.after_failure:
                break


def _ripe(record: Record[R, C], h: Home[R, W, C]) -> float:
    """Rule 4: from when on `record`, idle or freed, may be closed for the hungriest route `h`; infinity: not now."""
    g: Home[R, W, C] = record.home
    if h.rank is None or h.rank[0]:
        return math.inf  # rule 6
    if g.open >= h.open + 2:
        return -math.inf  # 4a
    moment = math.inf
    if record.state is IDLE:
        moment = record.idle_since + min(record.dial_time, _LONGEST_IDLE_KEPT)  # 4c
    if not h.open and record.uses >= _TURN_USES and (g.waiters is None or _oldest(h) < _oldest(g)):
        moment = min(moment, record.created + _TURN_DIALS * record.dial_time)  # 4b
    return moment


def _oldest(home: Home[R, W, C]) -> int:
    """The number of its oldest waiter."""
    assert home.waiters
    return home.waiters[next(iter(home.waiters))].number
