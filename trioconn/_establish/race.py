"""A staggered race of async callables: RFC 8305 section 5, without sockets.

Theory of operation
-------------------

One task drives, one task runs each attempt. The driver does nothing but this, until somebody has won or nothing is left
to try: start the next candidate when its time has come, else sleep until that time or until something happens.

When is it time for the next one?

* At once, if no attempt was started yet, or the *latest started* one has failed. The failure of an older one starts
  nothing: it has had its turn already. (The RFC does not say "at once", but every implementation does it.)
* Else when no running attempt is *due* any more. An attempt is due for the delay after its start; calling its
  ``progress()`` makes it due again, for the delay or for twice the time that it had needed until then, which is a round
  trip: a path that is slow but alive needs a further one or two for the handshake, and racing it would open connections
  in vain. Draft version 3 extends the timer likewise. Two seconds at most, the RFC's upper bound of the delay: a first
  packet that was lost makes any "round trip" a second longer.

Who wins? Who ends first; among those that end in the same tick of the event loop, in which trio shuffles the tasks,
who started first. The others' results are discarded, as is every result if the caller was cancelled or an attempt
raised what is no failure: nothing that was opened is left without an owner.

Exceptions: a nursery wraps all that passes it into a group. Nobody outside can use a group that says "Cancelled,
Cancelled", so it is unwrapped here: what is no failure comes out as it was raised, else the cancellation does. The
failures themselves never pass the nursery. They are kept in a list that no frame of an attempt refers to: an exception
holds its frames, and a frame that holds the exception makes a cycle that only the garbage collector ends (anyio#809).

KeyboardInterrupt arrives at checkpoints only: from start to end the frames here are protected.

In the commonest case there is one candidate and no more will come. Then there is no nursery and no task.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import trio

C = TypeVar("C")
R = TypeVar("R")

MIN_DELAY = 0.01  # seconds. RFC 8305 section 5: MUST have a lower bound, and MUST NOT be below 10 ms.
MAX_DELAY = 2.0  # seconds. RFC 8305 section 5: SHOULD have an upper bound, 2 s recommended.


def bounded(delay: float | None) -> float | None:
    """A configured delay in seconds within the bounds of RFC 8305; None or infinity: one after the other, so None.

    Zero becomes 10 ms. The bound is on the delay: after a failure the next attempt starts at once.
    """
    if delay is None or math.isinf(delay):
        return None
    return min(max(delay, MIN_DELAY), MAX_DELAY)


class Candidates(Generic[C]):
    """What is left to try. It may grow and be put into another order while a race is running.

    Args:
      waiting: in the order in which to try them.
      complete: whether no more will come.
    """

    def __init__(self, waiting: Iterable[C] = (), *, complete: bool = True) -> None:
        self._waiting = list(waiting)
        self._complete = complete
        self._changed = trio.Event()
        self.tried: list[C] = []

    @property
    def waiting(self) -> Sequence[C]:
        """Those not yet tried, in order."""
        return self._waiting

    @property
    def complete(self) -> bool:
        """Whether no more will come."""
        return self._complete

    def replace(self, waiting: Iterable[C]) -> None:
        """Other candidates, or another order. An attempt that runs goes on, even if its candidate has disappeared."""
        self._waiting = list(waiting)
        self.touch()

    def finish(self) -> None:
        """No more will come."""
        self._complete = True
        self.touch()

    def take(self) -> C:
        """The next one: from now on it counts as tried."""
        candidate = self._waiting.pop(0)
        self.tried.append(candidate)
        return candidate

    def touch(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()

    async def wait_changed(self) -> None:
        """Return after the next call of `replace`, `finish` or `touch`, or at once if there was one meanwhile."""
        await self._changed.wait()
        self._changed = trio.Event()


@dataclass(frozen=True, slots=True)
class Failure(Generic[C]):
    """An attempt that failed: its number, its candidate, and with what."""

    index: int
    candidate: C
    error: Exception


@dataclass(frozen=True, slots=True)
class Won(Generic[C, R]):
    """The attempt that won."""

    index: int
    candidate: C
    result: R


@dataclass(frozen=True, slots=True)
class Outcome(Generic[C, R]):
    """How a race ended.

    Attributes:
      won: the winner, or None.
      failures: in order of start.
      started: how many attempts there were. Those neither won nor failed have lost.
    """

    won: Won[C, R] | None
    failures: list[Failure[C]]
    started: int


class Attempt:
    """One attempt, as it sees itself.

    It does not know how it ended: the frames of an exception may refer to it.
    """

    __slots__ = ("_delay", "_started", "due", "index", "round_trip", "scope")

    def __init__(self, index: int, delay: float) -> None:
        self.index = index
        self.scope = trio.CancelScope()
        self.round_trip: float | None = None
        self._delay = delay
        self._started = trio.current_time()
        self.due = self._started + delay

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return trio.current_time() - self._started

    def progressed(self) -> None:
        """The peer answered: the delay runs again, and lasts at least two of its round trips (two seconds at most)."""
        if self.round_trip is None:
            self.round_trip = self.age
        self.due = trio.current_time() + max(self._delay, min(2 * self.round_trip, MAX_DELAY))


AttemptFn = Callable[[C, Attempt], Awaitable[R]]


@trio.lowlevel.enable_ki_protection
async def race(
    candidates: Candidates[C],
    attempt: AttemptFn[C, R],
    *,
    delay: float | None,
    discard: Callable[[R], None],
    feed: Callable[[], Awaitable[None]] | None = None,
    failures: tuple[type[Exception], ...] = (OSError,),
    max_in_flight: int = 12,
    max_total: int = 20,
) -> Outcome[C, R]:
    """Try the candidates, each a delay after the previous one, until one works.

    Args:
      candidates: what to try; may grow meanwhile.
      attempt: ``await attempt(candidate, me)`` returns a result or raises. ``me.progressed()`` says that it got on. It
        runs in a task of its own (with a single candidate in the caller's), and cleans up behind itself whatever it
        raises, cancellation included.
      delay: seconds, see `bounded`; None: one after the other.
      discard: called with every result that is not returned. Synchronous.
      feed: looks for more candidates while the race runs; the candidates are complete when it returns. It is
        cancelled when the race is over.
      failures: exceptions of an attempt that mean "try the next". All others end the race and come out unwrapped.
      max_in_flight: beyond, the oldest without a sign of life is dropped for the next; it fails with `TimeoutError`.
      max_total: so many are started at most.

    Returns:
      An `Outcome`. That nobody won is for the caller to turn into an exception. If the caller is cancelled, all
      attempts are cancelled and awaited, and nothing is left open.
    """
    if feed is None and candidates.complete and len(candidates.waiting) == 1:
        return await _alone(candidates.take(), attempt, failures)
    run = _Race(candidates, attempt, delay, failures, max_in_flight, max_total)
    interruption: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            if feed is not None:
                nursery.start_soon(run.run_feed, feed)
            await run.drive(nursery)
            nursery.cancel_scope.cancel()
    except BaseException as error:  # noqa: ASYNC103 - re-raised below, unless the race was won
        interruption = _unwrapped(error)
    won, losers, failed = run.hand_over()
    try:
        for loser in losers:
            discard(loser)
        if interruption is not None:
            if won is not None:
                discard(won.result)
            raise interruption
        return Outcome(won, failed, run.started)
    finally:
        del interruption, failed  # else this frame and the exception hold each other


async def _alone(candidate: C, attempt: AttemptFn[C, R], failures: tuple[type[Exception], ...]) -> Outcome[C, R]:
    try:
        return Outcome(Won(0, candidate, await attempt(candidate, Attempt(0, math.inf))), [], 1)
    except failures as error:
        return Outcome(None, [Failure(0, candidate, error)], 1)


def _unwrapped(error: BaseException) -> BaseException:
    """The one exception that stands for a group: the first that is no cancellation, else a cancellation."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        _, others = group.split(trio.Cancelled)
        error = (others or group).exceptions[0]
    return error


class _Race(Generic[C, R]):
    """The state of a race."""

    def __init__(
        self,
        candidates: Candidates[C],
        attempt: AttemptFn[C, R],
        delay: float | None,
        failures: tuple[type[Exception], ...],
        max_in_flight: int,
        max_total: int,
    ) -> None:
        self._candidates = candidates
        self._attempt = attempt
        self._delay = math.inf if delay is None else delay
        self._failures = failures
        self._max_in_flight = max_in_flight
        self._max_total = max_total
        self._running: dict[int, Attempt] = {}  # in order of start; the latest started is in it until it ends
        self._results: list[Won[C, R]] = []
        self._failed: list[Failure[C]] = []
        self._interrupted = False  # an attempt was cancelled from outside, or raised what is no failure
        self.started = 0

    def hand_over(self) -> tuple[Won[C, R] | None, list[R], list[Failure[C]]]:
        """The winner, the results of the others, the failures. Afterwards nothing here refers to them."""
        results = sorted(self._results, key=lambda won: won.index)
        failed = sorted(self._failed, key=lambda failure: failure.index)
        self._results, self._failed = [], []
        return (results[0] if results else None), [won.result for won in results[1:]], failed

    @trio.lowlevel.enable_ki_protection
    async def drive(self, nursery: trio.Nursery) -> None:
        """Start attempts at their time; return when somebody won, nothing is left, or there is no point any more."""
        while not self._results and not self._interrupted:
            more = self.started < self._max_total
            if not self._running and not (more and (self._candidates.waiting or not self._candidates.complete)):
                return
            next_start = math.inf
            if more and self._candidates.waiting:
                next_start = self._next_start()
                if trio.current_time() >= next_start:
                    if len(self._running) < self._max_in_flight:
                        self._start(nursery)
                        continue
                    self._drop_one()
                    next_start = math.inf
            with trio.move_on_at(next_start):
                await self._candidates.wait_changed()

    def _next_start(self) -> float:
        if self.started - 1 not in self._running:
            return -math.inf
        return max(attempt.due for attempt in self._running.values())

    def _start(self, nursery: trio.Nursery) -> None:
        me = Attempt(self.started, self._delay)
        self.started += 1
        self._running[me.index] = me
        nursery.start_soon(self._run, self._candidates.take(), me)

    def _drop_one(self) -> None:
        # The next starts only when its socket is closed: the bound is on sockets.
        victim = min(self._running.values(), key=lambda attempt: (attempt.round_trip is not None, attempt.index))
        victim.scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _run(self, candidate: C, me: Attempt) -> None:
        try:
            with me.scope:
                self._results.append(Won(me.index, candidate, await self._attempt(candidate, me)))
            if me.scope.cancelled_caught:
                text = f"no sign of life for {me.age:.1f} s: given up for the next address"
                self._failed.append(Failure(me.index, candidate, TimeoutError(text)))
        except self._failures as error:
            self._failed.append(Failure(me.index, candidate, error))
        except BaseException:
            self._interrupted = True
            raise
        finally:
            del self._running[me.index]
            self._candidates.touch()

    @trio.lowlevel.enable_ki_protection
    async def run_feed(self, feed: Callable[[], Awaitable[None]]) -> None:
        """Look for more candidates; afterwards there are no more."""
        await feed()
        self._candidates.finish()
