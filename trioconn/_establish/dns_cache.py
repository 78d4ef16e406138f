"""The table behind the DNS cache: bounded in time and in size. Pure; `now` is passed in.

Theory of operation
-------------------
The key is the question that was asked, ``(name, family)``, never a name that an answer contains (RUSTSEC-2026-0106 was
a cache filed by those) and not the port, which is no part of the question.

An entry lives as long as its records say; where the resolver knows no TTLs, as long as the table's own ``ttl``. Zero
is a value of its own, "never", and not "no limit" (aiohttp#7014 confused them). An empty answer is kept as well, for a
short while: without that, a name that does not exist costs a lookup for each attempt.

Every `get` hands out the addresses turned by one, so that load spreads; but only within a family. Which family comes
first was decided by RFC 6724, and turning the whole list would undo that for every second connection.

The least recently used entry goes when the table is full; expired ones go first and do not count.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Question: TypeAlias = tuple[str, int]
"""The DNS name, with its final dot if it is absolute, and the family asked for (0 for both)."""

_MOST_SECONDS = 86400.0
"""Of a record's TTL. They go up to 68 years (RFC 2181 section 8); RFC 8767 section 4 advises resolvers to cap them."""


@dataclass(frozen=True, slots=True)
class ResolveResult:
    """One address that a `Resolver` found.

    Attributes:
      address: an IP address as text; an IPv6 one may end in ``%scope``.
      family: `socket.AF_INET` or `socket.AF_INET6`.
      ttl: for how many seconds it may be kept, or None if that is unknown.
    """

    address: str
    family: int
    ttl: float | None = None


@dataclass(slots=True)
class Entry:
    """What is known about a question.

    Attributes:
      results: the addresses; none if the answer was negative.
      expires: when that ends, on the clock of `now`; may be infinite.
      error: why there are no addresses.
      errno: the number that came with `error`.
      turns: how often the entry was handed out.
    """

    results: tuple[ResolveResult, ...]
    expires: float
    error: str = ""
    errno: int | None = None
    turns: int = 0


class DNSCache:
    """Answers to DNS questions.

    Args:
      ttl: seconds that an answer without TTLs is kept; None keeps it for ever. 0 keeps nothing, whatever the records
        say.
      max_size: the number of entries; 0 keeps nothing.
      negative_ttl: seconds that a negative answer is kept, if it is not kept for a shorter time by `ttl`.

    Raises:
      ValueError: an argument is negative or not a number.
    """

    def __init__(self, *, ttl: float | None = 10.0, max_size: int = 1000, negative_ttl: float = 1.0) -> None:
        if ttl is not None and not ttl >= 0:  # also true of NaN
            raise ValueError(f"the TTL of the DNS cache must be None or at least 0 seconds, not {ttl!r}")
        if not negative_ttl >= 0:
            raise ValueError(f"negative_ttl must be at least 0 seconds, not {negative_ttl!r}")
        if max_size < 0:
            raise ValueError(f"the size of the DNS cache must be at least 0, not {max_size!r}")
        self._ttl = math.inf if ttl is None else float(ttl)
        self._negative_ttl = min(float(negative_ttl), self._ttl)
        self._max_size = max_size
        # Least recently used first.
        self._entries: OrderedDict[Question, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, question: Question, now: float) -> Entry | None:
        """What is known about `question`, with the addresses turned by one since the last time; None if nothing is."""
        entry = self.peek(question, now)
        if entry is None:
            return None
        self._entries.move_to_end(question)
        turned = Entry(_turned(entry.results, entry.turns), entry.expires, entry.error, entry.errno, entry.turns)
        entry.turns += 1
        return turned

    def peek(self, question: Question, now: float) -> Entry | None:
        """As `get`, without counting as a use."""
        entry = self._entries.get(question)
        if entry is None:
            return None
        if entry.expires <= now:
            del self._entries[question]
            return None
        return entry

    def put(self, question: Question, results: Sequence[ResolveResult], now: float) -> None:
        """Remember the addresses, for the shortest of their TTLs."""
        known = [_sensible(result.ttl) for result in results if result.ttl is not None]
        self._put(question, Entry(tuple(results), now + (min(known) if known else self._ttl)), now)

    def put_negative(
        self, question: Question, error: str, errno: int | None, now: float, *, until: float | None = None
    ) -> None:
        """Remember that there is no address, for the negative TTL, or until then."""
        expires = now + self._negative_ttl if until is None else min(until, now + self._ttl)
        self._put(question, Entry((), expires, error, errno), now)

    def clear(self, name: str | None = None) -> None:
        """Forget everything, or all about the name, with and without final dot. Unknown names are no error."""
        if name is None:
            self._entries.clear()
            return
        for question in [known for known in self._entries if known[0].removesuffix(".") == name.removesuffix(".")]:
            del self._entries[question]

    def _put(self, question: Question, entry: Entry, now: float) -> None:
        old = self._entries.pop(question, None)
        if entry.expires <= now or not self._ttl or not self._max_size:
            return
        if old is not None and {result.address for result in old.results} == {r.address for r in entry.results}:
            entry.turns = old.turns  # the same servers: the next one gets the next connection
        if len(self._entries) >= self._max_size:
            # One pass over a bounded table, for a lookup that cost a round trip.
            for expired in [known for known, other in self._entries.items() if other.expires <= now]:
                del self._entries[expired]
        while len(self._entries) >= self._max_size:
            self._entries.popitem(last=False)
        self._entries[question] = entry


def _sensible(ttl: float) -> float:
    return min(ttl, _MOST_SECONDS) if ttl > 0 else 0.0  # NaN is not greater than 0


def _turned(results: tuple[ResolveResult, ...], turns: int) -> tuple[ResolveResult, ...]:
    by_family: dict[int, list[ResolveResult]] = {}
    for result in results:
        by_family.setdefault(result.family, []).append(result)
    fresh = {family: iter(_rotated(same, turns)) for family, same in by_family.items()}
    return tuple([next(fresh[result.family]) for result in results])


def _rotated(results: list[ResolveResult], turns: int) -> list[ResolveResult]:
    cut = turns % len(results)
    return results[cut:] + results[:cut]
