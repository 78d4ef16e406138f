"""What the pool keeps, without its rules: orders, connections, attempts, routes, levels, and a ranking.

`_pool_books.py` keeps all this true, `_pool.py` decides; nothing here does either.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from ._values import Value

R = TypeVar("R", bound=Hashable)
W = TypeVar("W", bound=Hashable)
C = TypeVar("C")

State = Literal["leased", "idle", "closed"]
LEASED: Final = "leased"
IDLE: Final = "idle"
CLOSED: Final = "closed"

Reason = Literal["idle", "age", "uses", "evicted", "closed", "force_close"]
"""Why the pool has a connection closed: keep-alive over, lifetime over, uses used up, given up for a hungrier route,
pool closed, ``force_close``."""


# ---- orders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Grant(Value, Generic[R, W, C]):
    """Hand the connection of `record` to `waiter`, which is queued no longer."""

    waiter: W
    record: Record[R, C]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Refuse(Value, Generic[W]):
    """Raise in `waiter`, which is queued no longer: the failure just reported, or that the connector is closed."""

    waiter: W


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dial(Value, Generic[R]):
    """Start `attempt`, and report its end by `Pool.dialed` or `Pool.dial_failed`."""

    route: R
    attempt: Attempt[R]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Abort(Value, Generic[R]):
    """Cancel `attempt`. Its end must be reported all the same: until then its slot is taken."""

    attempt: Attempt[R]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Close(Value, Generic[R, C]):
    """Close the connection of `record`, which is counted no longer. At once: its slot may already be given away."""

    record: Record[R, C]
    reason: Reason


Order: TypeAlias = Grant[R, W, C] | Refuse[W] | Dial[R] | Abort[R] | Close[R, C]


class Counts(NamedTuple):
    """What is open at one endpoint (``open == leased + idle + connecting``), and how many wait."""

    open: int = 0
    leased: int = 0
    idle: int = 0
    connecting: int = 0
    waiting: int = 0


# ---- what is kept ----------------------------------------------------------------------------------------------------


class Record(Generic[R, C]):
    """One connection, from `Pool.dialed` until it is closed.

    Attributes:
      connection: what the shell hangs here; opaque to the pool.
      uses: how often it was handed out.
      created, dial_time: when its attempt succeeded, and how long that took.
      expires: the end of its lifetime; it is not handed out from then on.
      state: ``"leased"``, ``"idle"`` or ``"closed"``.
      idle_since, due: while idle: since when, and when it is to be closed at the latest.
      filed: the `due` under which it stands in the pool's file of early dues, or None.
      ticket: the ticket of the waiter that holds it, for the case that it bounces.
      newer, older: its neighbours among the idle connections of its route.
    """

    __slots__ = (
        "connection", "created", "dial_time", "due", "expires", "filed", "home", "idle_since", "newer", "older",
        "state", "ticket", "uses",
    )  # fmt: skip

    def __init__(self, home: Home[R, Any, C], connection: C, created: float, dial_time: float, expires: float) -> None:
        self.home: Home[R, Any, C] = home
        self.connection: C = connection
        self.created: float = created
        self.dial_time: float = dial_time
        self.expires: float = expires
        self.uses: int = 0
        self.state: State = LEASED
        self.idle_since: float = created
        self.due: float = math.inf
        self.filed: float | None = None
        self.ticket: Ticket | None = None
        self.newer: Record[R, C] | None = None
        self.older: Record[R, C] | None = None

    @property
    def route(self) -> R:
        return self.home.route

    def __repr__(self) -> str:
        return f"<Record {self.connection!r} of {self.route!r}: {self.state}, {self.uses} uses>"


class Attempt(Generic[R]):
    """One attempt to connect, from its Dial order until its end is reported.

    Attributes:
      number: its place in the common count of arrivals: a waiter with a smaller number waited when it began.
      began: when.
      prewarm: whether nobody waited for it (rule 7).
      after_failure: whether the latest attempt of its route had failed when it began (rule 6).
      aborted, ended: how far it has come.
      record: its connection, if it succeeded; no order names one that became idle.
    """

    __slots__ = ("aborted", "after_failure", "began", "ended", "home", "number", "prewarm", "record")

    def __init__(self, home: Home[R, Any, Any], number: int, began: float, *, prewarm: bool) -> None:
        self.home = home
        self.number = number
        self.began = began
        self.prewarm = prewarm
        self.after_failure = home.failed
        self.aborted = False
        self.ended = False
        self.record: Record[R, Any] | None = None

    @property
    def route(self) -> R:
        return self.home.route

    def __repr__(self) -> str:
        state = "ended" if self.ended else "aborted" if self.aborted else "running"
        return f"<Attempt {self.number} at {self.route!r}: {state}>"


class Ticket(NamedTuple):
    """When a waiter came: `number` in the common count of arrivals, `since` on the clock."""

    number: int
    since: float


Rank: TypeAlias = tuple[bool, int, int]
"""Of a hungry route: whether it comes last (rule 6), how much it holds, since when it is hungry so; least first."""


class Home(Generic[R, W, C]):
    """What is known of one route that has a waiter or something open.

    `waiters` and `attempts` are None rather than empty, for there may be very many routes with neither.

    Attributes:
      open: its connections, leased and idle, and its attempts, aborted ones included.
      newest: the newest of its idle connections, from which `Record.older` leads to the others.
      waiters: who waits, in the order of service, with their tickets.
      attempts: its running attempts, oldest first; aborted ones are only counted, in `aborting`.
      failed: whether the attempt that ended last failed.
      rank: while it is hungry, its place among the hungry.
    """

    __slots__ = (
        "aborting", "attempts", "failed", "newest", "open", "place", "rank", "route", "waiters",
    )  # fmt: skip

    def __init__(self, route: R, place: Place[R, W, C] | None) -> None:
        self.route: R = route
        self.place: Place[R, W, C] | None = place
        self.open: int = 0
        self.newest: Record[R, C] | None = None
        self.waiters: OrderedDict[W, Ticket] | None = None
        self.attempts: OrderedDict[Attempt[R], None] | None = None
        self.aborting: int = 0
        self.failed: bool = False
        self.rank: Rank | None = None


Item = TypeVar("Item", bound=Hashable)
Key = TypeVar("Key", bound="tuple[Any, ...] | float")


class Ranking(Generic[Item, Key]):
    """Items by their keys, of which the least can be asked for: a heap whose outdated entries are passed over.

    Every operation costs O(log n), amortised. Nothing is allocated while it is empty.
    """

    __slots__ = ("_count", "_heap", "_keys")

    def __init__(self) -> None:
        self._keys: dict[Item, Key] | None = None
        self._heap: list[tuple[Key, int, Item]] = []
        self._count = 0  # makes entries distinct, so that items are never compared

    def put(self, item: Item, key: Key) -> None:
        """Enter `item`, or change its key."""
        if self._keys is None:
            self._keys = {}
        elif self._keys.get(item) == key:
            return
        self._keys[item] = key
        self._count += 1
        heapq.heappush(self._heap, (key, self._count, item))
        if len(self._heap) > 2 * len(self._keys) + 32:
            self._heap = [(k, n, i) for n, (i, k) in enumerate(self._keys.items())]
            self._count = len(self._heap)
            heapq.heapify(self._heap)

    def remove(self, item: Item) -> None:
        """Strike `item` out, if it is here."""
        if self._keys is not None and self._keys.pop(item, None) is not None and not self._keys:
            self._keys = None
            self._heap = []

    def first(self) -> Item | None:
        """The item with the least key, or None."""
        keys = self._keys
        if keys is None:
            return None
        heap = self._heap
        while keys.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][2]

    def key(self, item: Item) -> Key:
        """The key of an item that is here."""
        assert self._keys is not None
        return self._keys[item]


class Level(Generic[R, W, C]):
    """What a limit bounds: the whole pool, or (as `Place`) one endpoint.

    Attributes:
      idle: its idle connections, longest idle first.
      hungry: its hungry routes. For the whole pool: of each endpoint that has room only the hungriest.
      surplus: its routes with more running attempts than waiters, by the number of their oldest running attempt.
      aborting: how many of its attempts are aborted and have not ended.
    """

    __slots__ = ("aborting", "hungry", "idle", "limit", "open", "surplus")

    def __init__(self, limit: float) -> None:
        self.limit: float = limit
        self.open: int = 0
        self.aborting: int = 0
        self.idle: OrderedDict[Record[R, C], None] = OrderedDict()
        self.hungry: Ranking[Home[R, W, C], Rank] = Ranking()
        self.surplus: Ranking[Home[R, W, C], int] = Ranking()

    @property
    def full(self) -> bool:
        return self.open >= self.limit


class Place(Level[R, W, C]):
    """One endpoint, in a pool that limits endpoints.

    Attributes:
      homes: how many routes it has.
      standing: the route that stands for it in `hungry` of the whole pool.
    """

    __slots__ = ("endpoint", "homes", "standing")

    def __init__(self, endpoint: Hashable, limit: float) -> None:
        super().__init__(limit)
        self.endpoint: Hashable = endpoint
        self.homes: int = 0
        self.standing: Home[R, W, C] | None = None
