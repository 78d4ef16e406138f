"""OWN: the thin shell around the pool that decides and the dial that establishes.

Theory of operation
-------------------
In the connector's nursery (`_crew.py`) live the attempts, the polite closings, one task that keeps time and one that
watches idle connections. The shell starts them, carries facts to the pool, and the pool's orders back:

* Between a fact and its orders there is no ``await``. trio runs one task at a time, so there is nothing to lock.
* These stretches run under KeyboardInterrupt protection: an interrupt arrives at a checkpoint, never between a fact and
  its orders.
* A grant stands on the waiter (`_waiter.py`): whoever leaves the queue looks whether there is one, and gives it back
  before anything else can happen.
* A connection is probed when it is released, when it is handed out, and when a waiter that was granted one resumes,
  each time in the same stretch in which it changes hands.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeAlias

import trio
from trio.lowlevel import enable_ki_protection

from . import events
from ._alarm import Alarm, Impatience
from ._attempt import Dialler, ProtocolFactory, explained, make, timed_out
from ._connection import Held
from ._crew import Crew, can_say_goodbye, close_foreign, say_goodbye
from ._errors import ConnectError, ConnectorClosedError, replica
from ._establish.dial import Dialling
from ._observing import Audience, Observer
from ._pool import NOTHING, Abort, Attempt, Close, Dial, Grant, Order, Pool
from ._route import Route
from ._waiter import AnyRecord, Waiter
from ._watch import Watch

logger = logging.getLogger("trioconn.connector")

AnyAttempt: TypeAlias = Attempt[Route]
Orders: TypeAlias = "Iterable[Order[Route, Waiter, Held]]"


class Prewarm:
    """A caller of prewarm, and the attempts that it waits for."""

    def __init__(self) -> None:
        self.running = 0
        self.error: BaseException | None = None
        self.ended = trio.Event()


class Run:
    """One attempt's task, from the order to its end."""

    __slots__ = ("attempt", "dialling", "scope", "waited_by")

    def __init__(self, attempt: AnyAttempt, dialling: Dialling) -> None:
        self.attempt = attempt
        self.dialling = dialling
        self.scope = trio.CancelScope()
        self.waited_by: list[Prewarm] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a shell makes connections and ends them: the options of a connector that are neither the pool's nor plan's.

    Attributes:
      dial: makes a stream.
      judge: the connector's own ``is_clean``, or None where the stream's probe says all.
      connect_timeout: seconds, or None.
      ceil_threshold: a longer ``connect_timeout`` ends on a whole second of the clock.
      grace: seconds that a polite closing may take; 0: none is polite.
      harvest: keeps the TLS sessions of a connection; true when there is nothing more to keep of it. Or None.
    """

    dial: Dialler
    judge: Callable[[trio.abc.Stream], bool] | None
    protocol_factory: ProtocolFactory | None
    connect_timeout: float | None
    ceil_threshold: float
    max_lifetime: float | None
    jitter: float
    grace: float
    harvest: Callable[[Held], bool] | None


class Shell:
    """The tasks, timers and connections of one connector."""

    def __init__(self, pool: Pool[Route, Waiter, Held], habits: Habits, audience: Audience) -> None:
        self.pool = pool
        self.habits = habits
        self.audience = audience
        self.closed = False
        self.thread = 0
        self.clock: Callable[[], float] = trio.current_time
        self.token: trio.lowlevel.TrioToken | None = None
        self.admits: trio.lowlevel.TrioToken | None = None  # the run in which leases can be had: none once closed
        self.created = self.reused = self.resumed = self.aborted = 0
        self.failed: Counter[str] = Counter()
        self.closed_by: Counter[str] = Counter()

        self.crew = Crew()

        self._watch: Watch[AnyRecord] | None = None
        self._alarm = Alarm()
        self._impatience = Impatience(pool, habits.connect_timeout)
        self._watcher = trio.CancelScope()
        self._runs: dict[AnyAttempt, Run] = {}
        # Waiters, dials and connections are counted each for itself: their numbers are for people.
        self._waiters = count(1)
        self._dials = count(1)
        self._connections = count(1)

    # ---- life --------------------------------------------------------------------------------------------------------

    @enable_ki_protection
    async def enter(self) -> trio.Nursery:
        """Open the nursery and start the two standing tasks."""
        self._watch = Watch()  # before the nursery: it may fail, for want of a descriptor
        nursery = await self.crew.open()
        self.token = self.admits = trio.lowlevel.current_trio_token()
        self.thread = threading.get_ident()
        # Of this run's clock: half of what trio.current_time() takes, which looks for the run first.
        self.clock = trio.lowlevel.current_clock().current_time
        nursery.start_soon(self._alarm.run, self._time_is_up, name="trioconn timer")
        nursery.start_soon(self._keep_watch, name="trioconn watch")
        return nursery

    async def close(self, *, polite: bool) -> None:
        """Close everything, and wait until all attempts and farewells have ended. If cancelled: at once."""
        try:
            self.shut_down(polite=polite)
            if not polite:
                self.crew.cut_short()
            await self.crew.rest()
        except BaseException:
            self.crew.cut_short()
            raise

    @enable_ki_protection
    async def leave(self, leaving: BaseException | None) -> None:
        """Close what is left, end the nursery. `leaving` is what already comes out of the ``async with`` block."""
        assert self.crew.nursery is not None and self._watch is not None
        self.crew.nursery.cancel_scope.cancel()
        try:
            self.shut_down(polite=False)
        finally:
            try:
                await self.crew.leave(leaving)  # noqa: ASYNC102 - all it waits for is cancelled
            finally:
                self._watch.close()

    @enable_ki_protection
    def shut_down(self, *, polite: bool) -> None:
        """Rule 8 and its consequences, up to where something has to be waited for. May be called again."""
        if self.closed:
            return
        self.closed = True
        self.admits = None
        polite = polite and self.habits.grace > 0
        now = trio.current_time()
        leased = list(self.pool.leases())
        orders = list(self.pool.closed(now))
        ending = [order.record.connection for order in orders if isinstance(order, Close)]
        self.obey(order for order in orders if not isinstance(order, Close))
        for record in leased:
            self.obey(self.pool.dropped(record, now))
            ending.append(record.connection)
        for held in ending:
            if polite and can_say_goodbye(held.stream):
                self._end(held, "closed")
                self.crew.start("trioconn farewell", partial(self.crew.bid_farewell, held.stream, self.habits.grace))
            else:
                self._close(held, "closed")
        for record in leased:
            lease = None if record.connection.lease is None else record.connection.lease()
            if lease is not None:
                lease.connector_closed()
        self.audience.tell()
        self._alarm.stop()
        self._watcher.cancel()

    # ---- handing out -------------------------------------------------------------------------------------------------

    def take(self, route: Route) -> AnyRecord | None:
        """An idle connection of `route` that is clean at this moment, or None. The hot path."""
        pool = self.pool
        now = self.clock()
        while True:
            record = pool.take(route, now)
            if record is None:
                return None
            held = record.connection
            if held.is_clean():
                held.leased_at = now
                self.reused += record.uses > 1  # a connection of prewarm's may be new
                if pool.unsettled is not None:
                    self.obey(pool.expired(now))
                return record
            self._close(held, held.stream.probe_reason or "stray bytes")
            self.obey(pool.dropped(record, now))

    @enable_ki_protection
    async def wait(self, route: Route, observers: Sequence[Observer]) -> AnyRecord:
        """Queue for a connection of `route`. If this raises, nothing has been taken."""
        now = self.clock()
        waiter = Waiter(route, next(self._waiters), now, observers)
        if observers:
            self.audience.join(waiter)
        if self.audience.active:
            self.audience.add(events.Queued(at=now, route=route, waiter=waiter.number), waiter)
        outcome = "failed"
        try:
            orders = self.pool.wanted(waiter, route, now)
            if orders is not NOTHING:
                self.obey(orders)
            elif self.audience.active:
                self.audience.tell()
            self._impatience.somebody_waits(now)
            self._alarm.bring_forward(self._impatience.due)
            while True:
                await waiter.park()
                if waiter.error is not None:
                    raise waiter.error
                record = self._collect(waiter)
                if record is not None:
                    outcome = "granted"
                    return record
        except BaseException as error:
            # No checkpoint from here on: what met the cancellation in the same tick is given back before anybody runs.
            if isinstance(error, trio.Cancelled):
                outcome = "cancelled"
            elif isinstance(error, ConnectorClosedError):
                outcome = "closed"
            self._give_up(waiter)
            raise
        finally:
            waiter.error = None  # it holds this frame, which holds the waiter
            if not self.pool.waiting:
                self._stop_worrying()
            if self.audience.active:
                self._queue_ended(waiter, outcome)

    def _collect(self, waiter: Waiter) -> AnyRecord | None:
        """What `waiter` was granted, if it is still clean; else `waiter` is back at the head of its queue."""
        record, waiter.record = waiter.record, None
        assert record is not None
        held = record.connection
        if held.closed:  # between the grant and now, with the connector
            raise ConnectorClosedError("the connector was closed")
        if record.uses == 1:
            # Straight from its dial: nobody had it before, and many servers speak first. What the peer has sent, or
            # that it has gone already, is for the caller to read; to bounce it would be to dial again and again.
            held.leased_at = self.clock()
            return record
        now = self.clock()
        fresh = now < record.expires
        if fresh and held.is_clean():
            held.leased_at = now
            self.reused += record.uses > 1
            return record
        waiter.queued = True
        self._close(held, (held.stream.probe_reason or "stray bytes") if fresh else "age")
        self.obey(self.pool.bounced(waiter, record, now))
        return None

    def _stop_worrying(self) -> None:
        # Nobody waits. Left where it is, the alarm would make the clock of a test run on to where nothing happens.
        planned = self._impatience.due
        self._impatience.nobody_waits()
        if planned <= self._alarm.at < math.inf:
            self._alarm.set(math.inf)
            self._arm()

    def _give_up(self, waiter: Waiter) -> None:
        if waiter.record is not None:
            self.give_back(waiter.record, None)
        elif waiter.queued:
            waiter.queued = False
            self.obey(self.pool.gave_up(waiter, trio.current_time()))

    def _queue_ended(self, waiter: Waiter, outcome: str) -> None:
        now = trio.current_time()
        event = events.QueueEnded(
            at=now, route=waiter.route, waiter=waiter.number, outcome=outcome, waited=now - waiter.since
        )
        self.audience.add(event, waiter)
        self.audience.leave(waiter)

    async def prewarm(self, route: Route, n: int) -> None:
        """Start attempts until `route` holds `n`, as far as there is room, and wait for them."""
        prewarm = Prewarm()
        self._start_prewarm(prewarm, route, n)
        if prewarm.running:
            await prewarm.ended.wait()
        if self.closed:
            raise ConnectorClosedError("the connector was closed")
        if prewarm.error is not None:
            # Attempts count as open, and one that was begun since, for somebody who waits, is no connection yet.
            running = sum(run.dialling.route == route for run in self._runs.values())
            if self.pool.open_of(route) - running < n:
                raise prewarm.error

    @enable_ki_protection
    def _start_prewarm(self, prewarm: Prewarm, route: Route, n: int) -> None:
        self.obey(self.pool.prewarmed(route, n, trio.current_time()))
        for run in self._runs.values():
            if run.dialling.route == route and not run.attempt.aborted:
                run.waited_by.append(prewarm)
                prewarm.running += 1

    # ---- the end of a lease ------------------------------------------------------------------------------------------

    @enable_ki_protection
    def give_back(self, record: AnyRecord, idle_for: float | None) -> None:
        """A lease is over, and its holder vouches for the stream."""
        held = record.connection
        if held.closed:
            return
        if not held.is_clean():
            self.drop(record, held.stream.probe_reason or "stray bytes")
            return
        if not held.plain and not self._may_stay(held):
            self.drop(record, "protocol")
            return
        now = self.clock()
        if idle_for is None:
            orders = self.pool.released(record, now)
        else:
            usable = isinstance(idle_for, int | float) and idle_for > 0  # release() never raises; NaN is not usable
            orders = self.pool.released(record, now, idle_for=idle_for if usable else 0.0)
        if self.audience.active:
            self._tell_released(held, now, alone=orders is NOTHING)
        if orders is not NOTHING:
            self.obey(orders)
        elif record.due < self._alarm.at:  # rarely: others became idle before it
            self._arm()

    def _tell_released(self, held: Held, now: float, *, alone: bool) -> None:
        event = events.Released(at=now, route=held.route, connection=held.number, leased=now - held.leased_at)
        if alone:
            self.audience.tell_lease(event)
        else:
            self.audience.add(event)  # told with what follows from it, when that has been done

    def _may_stay(self, held: Held) -> bool:
        """What there is to do for connections with TLS or a protocol."""
        if held.protocol is not None and self._protocol_is_done(held.protocol):
            return False
        if not held.harvested:  # TLS 1.3 sends its tickets when it likes; after an exchange they have come
            held.harvested = self.habits.harvest is None or self.habits.harvest(held)
            held.plain = held.harvested and held.protocol is None
        return True

    def _is_clean(self, held: Held, judge: Callable[[trio.abc.Stream], bool]) -> bool:
        """The connector's own ``is_clean``. One that raises has not said yes, and no task may be inside a call."""
        try:
            return not getattr(held.stream, "in_use", False) and bool(judge(held.raw))
        except Exception:
            logger.exception("is_clean() raised for a connection to %s, which is closed", held.route)
            return False

    def _protocol_is_done(self, protocol: object) -> bool:
        try:
            return bool(getattr(protocol, "should_close", False))
        except Exception:
            logger.exception("should_close of %r raised, and its connection is closed", type(protocol).__name__)
            return True

    @enable_ki_protection
    def drop(self, record: AnyRecord, reason: str) -> None:
        """A lease is over, or an idle connection is dead: close it."""
        held = record.connection
        if not held.closed:
            self._close(held, reason)
            self.obey(self.pool.dropped(record, trio.current_time()))

    async def say_goodbye(self, record: AnyRecord, reason: str) -> None:
        """A lease is over: close its connection, politely where that means something.

        The slot is free when the socket is closed and not before: the limit holds to the last one.
        """
        stream = record.connection.stream
        if record.connection.closed or self.habits.grace <= 0 or not can_say_goodbye(stream):
            self.drop(record, reason)
            await trio.lowlevel.checkpoint()
            return
        assert self._watch is not None
        # The stream closes its descriptor before the pool is told, and by then the number may be another's.
        self._watch.forget(record.connection.fd)
        record.connection.fd = -1
        try:
            await say_goodbye(stream, self.habits.grace)
        finally:
            self.drop(record, reason)

    def run_soon(self, f: Callable[[], object]) -> None:
        """Call `f` in the connector's run, from whatever thread. Does nothing once the run has ended."""
        assert self.token is not None
        try:
            self.token.run_sync_soon(f)
        except trio.RunFinishedError:
            pass  # and with the run ended what there was to do

    # ---- orders ------------------------------------------------------------------------------------------------------

    @enable_ki_protection
    def obey(self, orders: Orders, error: BaseException | None = None) -> None:
        """Carry out what the pool ordered. `error` is the failure that Refuse orders are about."""
        for order in orders:
            if isinstance(order, Grant):
                order.waiter.record = order.record
                order.waiter.wake()
            elif isinstance(order, Dial):
                self._start_dial(order.route, order.attempt)
            elif isinstance(order, Close):
                self._close(order.record.connection, order.reason)
            elif isinstance(order, Abort):
                self.aborted += 1
                self._runs[order.attempt].scope.cancel()
            else:
                waiter = order.waiter
                if error is None:
                    waiter.error = ConnectorClosedError("the connector was closed")
                else:
                    # One exception object must not be raised in two tasks: each gets its own.
                    waiter.error, error = error, replica(error)
                waiter.wake()
        if self.audience.active:
            self.audience.tell()
        self._arm()

    def _start_dial(self, route: Route, attempt: AnyAttempt) -> None:
        dialling = Dialling(route, next(self._dials), trio.current_time(), self.audience)
        run = self._runs[attempt] = Run(attempt, dialling)
        if self.audience.active:
            self.audience.add(events.DialStarted(at=dialling.started, route=route, dial=dialling.number))
        self.crew.start(f"trioconn dial {route}", partial(self._attempt, run))

    # ---- attempts ----------------------------------------------------------------------------------------------------

    @enable_ki_protection
    async def _attempt(self, run: Run) -> None:
        held: Held | None = None
        error: BaseException | None = None
        habits = self.habits
        try:
            with run.scope as scope:
                scope.deadline = self._deadline(habits.connect_timeout)
                held = await make(
                    run.dialling, habits.dial, habits.protocol_factory, self.close_later, self._connections
                )
            if held is None and not run.attempt.aborted and habits.connect_timeout is not None:
                error = timed_out(run.dialling, habits.connect_timeout)
        except trio.Cancelled:
            raise  # of the nursery
        except BaseException as exc:
            # Whatever somebody's create_stream or protocol factory raised goes to who waits, not into the nursery.
            error = explained(exc, run.dialling)
        finally:
            # In one stretch with the end of the dial, also if that was a cancellation of the whole nursery.
            self._attempt_ended(run, held, error)
            del held, error

    def _deadline(self, seconds: float | None) -> float:
        if seconds is None or seconds == math.inf:
            return math.inf
        deadline = trio.current_time() + seconds
        return math.ceil(deadline) if seconds > self.habits.ceil_threshold else deadline

    @enable_ki_protection
    def _attempt_ended(self, run: Run, held: Held | None, error: BaseException | None) -> None:
        now = trio.current_time()
        del self._runs[run.attempt]
        if held is not None:
            self.obey(self._succeeded(run, held, now))
        else:
            stage = error.stage if isinstance(error, ConnectError) else "other"
            if error is not None:
                self.failed[stage] += 1
            if self.audience.active:
                where: dict[str, Any] = {"at": now, "route": run.dialling.route, "dial": run.dialling.number}
                self.audience.add(
                    events.DialAborted(**where)
                    if error is None
                    else events.DialFailed(**where, error=error, stage=stage)
                )
            self.obey(self.pool.dial_failed(run.attempt, now), error)
        for prewarm in run.waited_by:
            prewarm.running -= 1
            if prewarm.error is None and error is not None:
                prewarm.error = replica(error)
            if not prewarm.running:
                prewarm.ended.set()

    def _succeeded(self, run: Run, held: Held, now: float) -> Orders:
        expires = math.inf
        if self.habits.max_lifetime is not None:
            expires = now + self.habits.max_lifetime * (1 - self.habits.jitter * random.random())
        orders = self.pool.dialed(run.attempt, held, now, expires=expires)
        self.created += 1
        self.resumed += held.session_reused
        if self.audience.active:
            self.audience.add(
                events.Created(
                    at=now,
                    route=held.route,
                    connection=held.number,
                    dial=run.dialling.number,
                    seconds=held.created - run.dialling.started,
                    session_reused=held.session_reused,
                )
            )
        record = run.attempt.record
        assert record is not None and self._watch is not None
        if self.habits.judge is not None:
            held.is_clean = partial(self._is_clean, held, self.habits.judge)
        if record.state != "closed":
            self._watch.add(held.fd, record)
        return orders

    # ---- closing -----------------------------------------------------------------------------------------------------

    def _close(self, held: Held, reason: str) -> None:
        """Close a connection now. Telling the pool is the caller's part."""
        self._end(held, reason)
        held.stream.close_nowait()

    def _end(self, held: Held, reason: str) -> None:
        assert not held.closed and self._watch is not None
        held.closed = True
        self.closed_by[reason] += 1
        self._watch.forget(held.fd)  # before it is closed: the number comes back
        if self.audience.active:
            now = trio.current_time()
            self.audience.add(
                events.Closed(at=now, route=held.route, connection=held.number, reason=reason, age=now - held.created)
            )

    def close_later(self, stream: trio.abc.Stream) -> None:
        """Have a task close a foreign stream that cannot be closed without one."""
        self.crew.start("trioconn farewell", partial(close_foreign, stream))

    # ---- the standing tasks ------------------------------------------------------------------------------------------

    def _time_is_up(self) -> None:
        now = trio.current_time()
        self._impatience.look(now)
        self.obey(self.pool.expired(now))  # which sets the alarm again

    def _arm(self) -> None:
        deadline = self.pool.deadline()
        due = self._impatience.due
        self._alarm.bring_forward(due if deadline is None or deadline > due else deadline)

    @enable_ki_protection
    async def _keep_watch(self) -> None:
        assert self._watch is not None
        with self._watcher:
            while True:
                for record in await self._watch.wait():
                    # Only a hint, and late: it may be leased again, or closed.
                    held = record.connection
                    if record.state == "idle" and not held.is_clean():
                        self.drop(record, held.stream.probe_reason or "server closed")
