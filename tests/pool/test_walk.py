"""A random walk over the pool that asserts the negation of its rules after every step.

The walk keeps its own naive books, in plain lists, from facts and orders alone; after every step the pool's counts must
equal theirs, no limit may be exceeded, nobody may be overtaken or forgotten, and no rule may be left unapplied. What
the rules prefer is shown by the examples in `test_rules.py`: a walk cannot see a wrong preference.
"""

from __future__ import annotations

import math
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trioconn._pool import Abort, Close, Dial, Grant, Pool, Refuse

ROUTES = ("A1", "A2", "B1", "B2", "C1")
INDEX = st.integers(0, 1_000)


class Walk(RuleBasedStateMachine):
    @initialize(
        limit=st.sampled_from([None, 1, 2, 3, 5]),
        limit_per_host=st.sampled_from([None, None, 1, 2, 3]),
        keepalive=st.sampled_from([None, 0, 0.25, 2.0]),
        max_uses=st.sampled_from([None, None, 3]),
        force_close=st.sampled_from([False, False, False, True]),
        lifetime=st.sampled_from([math.inf, math.inf, 4.0]),
    )
    def begin(self, limit, limit_per_host, keepalive, max_uses, force_close, lifetime):
        self.limit, self.per_host = limit or math.inf, limit_per_host or math.inf
        self.keepalive = math.inf if keepalive is None else keepalive
        self.max_uses, self.force_close, self.lifetime = max_uses or math.inf, force_close, lifetime
        self.pool: Pool[str, int, int] = Pool(
            limit=limit,
            limit_per_host=limit_per_host,
            keepalive_timeout=keepalive,
            max_uses=max_uses,
            force_close=force_close,
            endpoint_of=lambda route: route[0],
        )
        self.now = 1000.0
        self.names = 0
        self.queues: dict[str, list[int]] = {route: [] for route in ROUTES}  # in the order of service
        self.running: list[Any] = []
        self.aborted: list[Any] = []
        self.leased: list[tuple[int, Any]] = []  # (waiter, record)
        self.idle: list[Any] = []  # longest idle first
        self.ended = False

    # ---- carrying out orders ----

    def name(self) -> int:
        self.names += 1
        return self.names

    def carry_out(self, orders, *, refusable=()):
        orders = list(orders)
        for order in orders:
            match order:
                case Grant(waiter=waiter, record=record):
                    queue = self.queues[record.route]
                    assert queue[0] == waiter, "overtaken"
                    queue.pop(0)
                    if record in self.idle:
                        assert record.due > self.now, "an expired connection was handed out"
                        self.idle.remove(record)
                    self.leased.append((waiter, record))
                    assert record.state == "leased"
                    assert record.uses <= self.max_uses
                case Refuse(waiter=waiter):
                    assert waiter in refusable, "refused, but not concerned"
                    route = next(route for route, queue in self.queues.items() if waiter in queue)
                    assert self.queues[route][0] == waiter, "not the oldest"
                    self.queues[route].pop(0)
                case Dial(route=route, attempt=attempt):
                    assert attempt.route == route
                    assert not self.ended
                    self.running.append(attempt)
                case Abort(attempt=attempt):
                    self.running.remove(attempt)
                    self.aborted.append(attempt)
                case Close(record=record, reason=reason):
                    if record in self.idle:
                        self.idle.remove(record)
                    assert record.state == "closed"
                    assert reason in ("idle", "age", "uses", "evicted", "closed", "force_close")
            # Not only at the end, for orders are carried out one by one:
            if not isinstance(order, Grant | Refuse):
                assert self.held() <= self.limit
        return orders

    def held(self, belongs=lambda route: True) -> int:
        every = [*self.running, *self.aborted, *(record for _, record in self.leased), *self.idle]
        return sum(belongs(each.route) for each in every)

    # ---- facts ----

    @rule(route=st.sampled_from(ROUTES))
    def wanted(self, route):
        waiter = self.name()
        if self.ended:
            assert self.pool.wanted(waiter, route, self.now) == (Refuse(waiter),)
            return
        self.queues[route].append(waiter)
        self.carry_out(self.pool.wanted(waiter, route, self.now))

    @rule(route=st.sampled_from(ROUTES))
    def take(self, route):
        usable = [record for record in self.idle if record.route == route and record.due > self.now]
        record = self.pool.take(route, self.now)
        assert record is (usable[-1] if usable else None)
        if record is not None:
            self.idle.remove(record)
            self.leased.append((self.name(), record))
        if self.pool.unsettled is not None:
            assert self.pool.deadline() <= self.now
            self.carry_out(self.pool.expired(self.now))

    @precondition(lambda self: any(self.queues.values()))
    @rule(n=INDEX)
    def gave_up(self, n):
        waiting = [(route, waiter) for route, queue in self.queues.items() for waiter in queue]
        route, waiter = waiting[n % len(waiting)]
        self.queues[route].remove(waiter)
        surplus = len([a for a in self.running if a.route == route]) > len(self.queues[route])
        orders = self.carry_out(self.pool.gave_up(waiter, self.now))
        if surplus and any(a.route == route and not a.prewarm for a in [*self.running, *self.aborted]):
            aborts = [o for o in orders if isinstance(o, Abort) and o.attempt.route == route]
            assert aborts or not [a for a in self.running if a.route == route and not a.prewarm]

    @precondition(lambda self: self.running or self.aborted)
    @rule(n=INDEX, success=st.booleans())
    def attempt_ends(self, n, success):
        attempts = [*self.running, *self.aborted]
        attempt = attempts[n % len(attempts)]
        (self.running if attempt in self.running else self.aborted).remove(attempt)
        if success:
            waiters = list(self.queues[attempt.route])
            orders = self.pool.dialed(attempt, self.name(), self.now, expires=self.now + self.lifetime)
            if self.ended:
                assert [type(o) for o in orders] == [Close]
                return
            if waiters:
                assert orders[0] == Grant(waiters[0], attempt.record), "a fresh connection serves its own first"
            else:
                self.idle.append(attempt.record)
            self.carry_out(orders)
        else:
            there = [waiter for waiter in self.queues[attempt.route] if waiter <= self.came_before(attempt)]
            refusable = [] if attempt.aborted or attempt.prewarm else there if attempt.after_failure else there[:1]
            orders = self.carry_out(self.pool.dial_failed(attempt, self.now), refusable=refusable)
            assert len([o for o in orders if isinstance(o, Refuse)]) == len(refusable)

    def came_before(self, attempt) -> float:
        """The youngest of the waiters that are older than `attempt`, found out by its number."""
        home = attempt.home
        return max([w for w, ticket in (home.waiters or {}).items() if ticket.number < attempt.number], default=-1)

    @precondition(lambda self: self.leased)
    @rule(n=INDEX, idle_for=st.sampled_from([None, None, None, 0.125, 0]))
    def released(self, n, idle_for):
        _, record = self.leased.pop(n % len(self.leased))
        orders = self.pool.released(record, self.now, idle_for=idle_for)
        if record.state == "idle":
            self.idle.append(record)
        elif not any(isinstance(o, Grant) and o.record is record for o in orders):
            assert [o.reason for o in orders if isinstance(o, Close) and o.record is record]
        self.carry_out(orders)
        if self.ended or self.force_close or record.uses >= self.max_uses + (record.state == "leased"):
            assert record.state == "closed"

    @precondition(lambda self: self.leased)
    @rule(n=INDEX)
    def lease_dropped(self, n):
        _, record = self.leased.pop(n % len(self.leased))
        self.carry_out(self.pool.dropped(record, self.now))

    @precondition(lambda self: self.idle)
    @rule(n=INDEX)
    def idle_found_dead(self, n):
        record = self.idle.pop(n % len(self.idle))
        self.carry_out(self.pool.dropped(record, self.now))

    @precondition(lambda self: self.leased and not self.ended)
    @rule(n=INDEX)
    def bounced(self, n):
        waiter, record = self.leased.pop(n % len(self.leased))
        self.queues[record.route].insert(0, waiter)
        self.carry_out(self.pool.bounced(waiter, record, self.now))

    @rule(route=st.sampled_from(ROUTES), count=st.integers(0, 4))
    def prewarmed(self, route, count):
        orders = self.carry_out(self.pool.prewarmed(route, count, self.now))
        for order in orders:
            if isinstance(order, Dial) and order.attempt.prewarm:
                assert order.route == route
                assert self.pool.open_of(route) <= max(count, 1)

    @precondition(lambda self: self.running)
    @rule(n=INDEX, seconds=st.sampled_from([0.0625, 0.25, 1.0]))
    def attempt_takes_time_and_succeeds_and_is_released(self, n, seconds):
        """A common story that single steps tell too rarely: rule 4 needs dials that took time, and idle connections."""
        self.time_passes(seconds)
        before = {id(record) for _, record in self.leased}
        self.attempt_ends(n, success=True)
        for position, (_, record) in enumerate(self.leased):
            if id(record) not in before:
                self.released(position, None)
                break

    @rule(seconds=st.sampled_from([0.0, 0.0625, 0.125, 0.25, 1.0, 3.0]))
    def time_passes(self, seconds):
        """As a shell with a timer: the deadline is kept, and it is honest."""
        then = self.now + seconds
        for _ in range(1000):
            deadline = self.pool.deadline()
            if deadline is None or deadline > then:
                break
            just_before = math.nextafter(deadline, -math.inf)
            if just_before > self.now:
                assert list(self.pool.expired(just_before)) == [], "an order before the deadline"
                assert self.pool.deadline() == deadline
            self.now = max(self.now, deadline)
            assert self.carry_out(self.pool.expired(self.now)), "no order at the deadline"
        else:
            raise AssertionError("the deadline never passes")
        self.now = then
        assert list(self.pool.expired(then)) == []

    @rule(seconds=st.sampled_from([0.25, 2.0]))
    def time_passes_without_timer(self, seconds):
        self.now += seconds

    @precondition(lambda self: not self.ended)
    @rule(really=st.integers(0, 19))
    def closed(self, really):
        if really:
            return
        self.ended = True
        everybody = [waiter for queue in self.queues.values() for waiter in queue]
        orders = self.pool.closed(self.now)
        assert sorted(o.waiter for o in orders if isinstance(o, Refuse)) == sorted(everybody)
        for queue in self.queues.values():
            queue.clear()
        self.carry_out([o for o in orders if not isinstance(o, Refuse)])
        assert self.running == self.idle == []

    # ---- what must never be ----

    def room(self, route) -> bool:
        return self.held() < self.limit and self.held(lambda r: r[0] == route[0]) < self.per_host

    def hungry(self, route) -> bool:
        return len(self.queues[route]) > len([a for a in self.running if a.route == route])

    @invariant()
    def limits_hold(self):
        assert self.held() <= self.limit
        for endpoint in "ABC":
            assert self.held(lambda r, e=endpoint: r[0] == e) <= self.per_host

    @invariant()
    def counts_are_true(self):
        pool = self.pool
        waiting = sum(map(len, self.queues.values()))
        attempts = len(self.running) + len(self.aborted)
        assert (pool.open, pool.waiting) == (self.held(), waiting)
        assert (pool.leased, pool.idle, pool.connecting) == (len(self.leased), len(self.idle), attempts)
        assert {id(r) for r in pool.leases()} == {id(r) for _, r in self.leased}
        counts = pool.endpoints()
        for endpoint in "ABC":
            here = [
                sum(each.route[0] == endpoint for each in kind)
                for kind in ([r for _, r in self.leased], self.idle, [*self.running, *self.aborted])
            ]
            queued = sum(len(queue) for route, queue in self.queues.items() if route[0] == endpoint)
            expected = (sum(here), *here, queued)
            assert counts.get(endpoint, (0, 0, 0, 0, 0)) == expected
            assert (endpoint in counts) == (expected != (0, 0, 0, 0, 0)), "an empty endpoint is remembered"
        for route in ROUTES:
            assert pool.open_of(route) == self.held(lambda r, here=route: r == here)

    @invariant()
    def rule_1_nobody_waits_beside_an_idle_connection(self):
        for route, queue in self.queues.items():
            assert not (queue and any(record.route == route for record in self.idle))

    @invariant()
    def rule_2_nobody_is_hungry_where_there_is_room(self):
        for route in ROUTES:
            assert not (self.hungry(route) and self.room(route))

    @invariant()
    def rule_3b_no_surplus_attempt_starves_a_route(self):
        if self.ended or self.idle or self.aborted or self.held() < self.limit:
            return
        surplus = [a for a in self.running if not self.hungry(a.route) and self.surplus(a.route)]
        for route in ROUTES:
            endpoint_full = self.held(lambda r, here=route: r[0] == here[0]) >= self.per_host
            starves = self.hungry(route) and not self.held(lambda r, here=route: r == here) and not endpoint_full
            assert not (starves and surplus)

    def surplus(self, route) -> int:
        return len([a for a in self.running if a.route == route]) - len(self.queues[route])

    @invariant()
    def rule_4_no_route_starves_beside_a_connection_idle_too_long(self):
        """By 4c, after half a second at most; said again in the terms of the walk, not of the pool's ranking."""
        deadline = self.pool.deadline()
        if self.ended or (deadline is not None and deadline <= self.now):
            return  # the timer is late
        for route in ROUTES:
            failing = any(a.route == route for a in self.running) and self.pool._homes[route].failed
            if not self.hungry(route) or failing:
                continue
            here = [record for record in self.idle if record.route[0] == route[0]]
            endpoint_full = self.held(lambda r, e=route[0]: r[0] == e) >= self.per_host
            looked_at = here[:1] if endpoint_full else self.idle[:1]
            assert all(self.now - record.idle_since < 0.5 for record in looked_at)

    @invariant()
    def nobody_is_forgotten(self):
        """Somebody waits: then an attempt runs for the route, or its level is full of what others hold."""
        for route, queue in self.queues.items():
            if queue and not any(a.route == route for a in self.running):
                assert not self.room(route)

    @invariant()
    def idle_connections_are_in_order(self):
        assert list(self.pool._idle) == self.idle
        assert [r.idle_since for r in self.idle] == sorted(r.idle_since for r in self.idle)


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
