"""Resolvers, and lookups that are shared and outlive whoever asked first.

Theory of operation
-------------------
A *question* is a name and a family. A resolver that can answer IPv6 and IPv4 separately (`Resolver.splits`) is asked
two questions, IPv6 first (RFC 8305 section 3), and each answer is handed on as it comes; other resolvers are asked one
question for both, and the order of their answer is kept.

Each question is a task of its own, in the connector's nursery. Whoever wants the answer subscribes to it. So nobody's
cancellation reaches a stranger who waits for the same name (aiohttp#2910), an answer that comes after its asker has
left still fills the cache, and every lookup has one deadline of its own and ends with the connector. Only when there
are a great many lookups at once is one ended that nobody waits for any more.

What comes from a resolver is not trusted: texts that are no IP addresses, families that were not asked for and
duplicates are dropped, and of the rest the first hundred are kept. Whatever a resolver raises becomes a `ResolveError`,
a new object for each subscriber, caused by the original.

Between looking into the cache and acting on it, nothing is awaited and no foreign code runs (aiohttp#4014, #10529):
events are reported before a lookup is entered in the books, and after it has left them.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from ipaddress import IPv4Address, ip_address
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from .. import events
from .._errors import ConnectorClosedError, ResolveError, shown
from .._names import ZONE, address_text, parse_host
from .answers import FAMILIES, Answers, Failure, Lookup
from .dns_cache import ResolveResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .._names import Host
    from .dns_cache import DNSCache, Question

MOST_ADDRESSES: Final = 100
"""Of one answer. A race tries 20; the others let load spread over all of a large set."""
MOST_ABANDONED: Final = 64
"""With more lookups than this running, those that nobody waits for are ended."""
LOOKUP_TIMEOUT: Final = 20.0
"""Seconds for one question. The C library gives up after 10 to 30, by its default of two tries of 5 s per server."""
# An error of one family is remembered as long as the addresses of the other, but not for ever.
_MOST_NEGATIVE = 60.0
_MOST_LOOKED_AT = 10_000


class Resolver(ABC):
    """Turns names into addresses. Subclass it to bring your own.

    Attributes:
      splits_families: whether `resolve` may be called for `socket.AF_INET6` and `socket.AF_INET` at the same time, so
        that neither waits for the other; the addresses are then sorted between the families by RFC 6724. If False, it
        is called once, and the order of its answer is kept.
    """

    splits_families: bool = False

    @abstractmethod
    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of `host`, best first.

        It is called in a task of its own and cancelled when its deadline is over or the connector is closed. Whoever
        waits for the answer gets a `ResolveError` if it raises an exception or the answer is empty.

        Args:
          host: a name in A-labels; it ends in a dot if it is absolute. Never an IP address.
          port: of no importance to most resolvers; 0 if unknown. The answer is used for all ports.
          family: the only family wanted, or `socket.AF_UNSPEC`.
        """

    async def aclose(self) -> None:
        """Release what the resolver holds. A connector closes the resolver it made, never one that it was given."""
        await trio.lowlevel.checkpoint()

    def splits(self, host: str) -> bool:
        """Whether `host` is to be looked up for each family separately: `splits_families`, unless a name is special."""
        return self.splits_families

    def why_late(self) -> str:
        """What keeps lookups from ending, for the message of one that ran out of time; empty if nothing is known."""
        return ""


class Lookups:
    """The lookups of one connector.

    Args:
      resolver: who answers.
      cache: where answers are kept; None keeps none. Lookups of the same name at the same time are shared all the same.
      lookup_timeout: seconds that one question may take.
    """

    def __init__(self, resolver: Resolver, *, cache: DNSCache | None, lookup_timeout: float = LOOKUP_TIMEOUT) -> None:
        self._resolver = resolver
        self._cache = cache
        self._seconds = lookup_timeout
        self._nursery: trio.Nursery | None = None
        self._closed = False
        # Every lookup in here has a task, which takes it out. One that was forgotten by `clear` is not in here.
        self._running: dict[Question, Lookup] = {}

    @property
    def running(self) -> int:
        """How many lookups are under way."""
        return len(self._running)

    def start(self, nursery: trio.Nursery) -> None:
        """From now on, lookups run as tasks of `nursery`."""
        self._nursery = nursery

    def close(self) -> None:
        """End all lookups. Whoever waits gets `ConnectorClosedError`."""
        self._closed = True
        for lookup in list(self._running.values()):
            self._finish(lookup, (), Failure("the connector was closed", cause=_closed()))
            lookup.scope.cancel()

    def clear(self, host: str | Host | None = None) -> None:
        """Forget what is known, of one host or of all. Lookups under way serve those who wait, and are not kept.

        Raises:
          InvalidTargetError: `host` is no host.
        """
        name = None if host is None else (parse_host(host) if isinstance(host, str) else host).name
        if self._cache is not None:
            self._cache.clear(name)
        for question in list(self._running):
            if name is None or question[0].removesuffix(".") == name:
                del self._running[question]

    def open(self, host: Host, family: int = socket.AF_UNSPEC, report: events.Report | None = None) -> Answers:
        """Begin to find the addresses of `host`, or join those who already do. Never blocks.

        What is in the cache is in the channel when this returns. An IP literal never reaches the resolver.

        Raises:
          ConnectorClosedError: the connector was closed.
        """
        if self._closed:
            raise _closed()
        if host.address is not None:
            return self._literal(host, family)
        name = host.dns_name
        questions = self._questions(name, family)  # asks foreign code, hence before the look into the cache
        now = trio.current_time()
        known = {question: self._cache.get(question, now) for question in questions} if self._cache is not None else {}
        unknown = [question for question in questions if known.get(question) is None]
        shared = all(question in self._running for question in unknown)
        answers = Answers(host.name, report if unknown else None, self._left)
        for (_, asked_family), entry in known.items():
            if entry is not None:
                failure = None if entry.results else Failure(entry.error, entry.errno)
                answers.add(asked_family, entry.results, failure)
        answers.expect(self._join(unknown))
        if report is not None:
            try:
                if self._cache is not None:
                    report(events.CacheMiss if unknown else events.CacheHit, host=host.name)
                if unknown:
                    report(events.LookupStarted, host=host.name, shared=shared)
            except BaseException:
                answers.close()
                raise
        return answers

    def _questions(self, name: str, family: int) -> list[Question]:
        if family == socket.AF_UNSPEC and self._resolver.splits(name):
            return [(name, socket.AF_INET6), (name, socket.AF_INET)]
        return [(name, family)]

    def _literal(self, host: Host, family: int) -> Answers:
        answers = Answers(host.name, None, self._left)
        own = socket.AF_INET if isinstance(host.address, IPv4Address) else socket.AF_INET6
        if family in (socket.AF_UNSPEC, own):
            answers.add(own, [ResolveResult(host.dial_name, own)], None)
        else:
            answers.add(own, (), Failure(f"it is an {FAMILIES[own]} address, and family= asks for the other one"))
        answers.expect(())
        return answers

    def _join(self, questions: Iterable[Question]) -> list[Lookup]:
        lookups: list[Lookup] = []
        for question in questions:
            lookup = self._running.get(question)
            if lookup is None:
                if self._nursery is None:
                    raise RuntimeError("a connector must be entered (async with connector) before it is used")
                lookup = Lookup(question, self._seconds)
                self._nursery.start_soon(
                    self._look_up, lookup, lookups[-1].asked if lookups else None, name=f"lookup of {question[0]}"
                )
                self._running[question] = lookup
            lookups.append(lookup)
        return lookups

    async def _look_up(self, lookup: Lookup, first: trio.Event | None) -> None:
        name, family = lookup.question
        results: list[ResolveResult] = []
        failure: Failure | None = Failure("the connector was closed", cause=_closed())  # unless we get further
        try:
            with lookup.scope:
                if first is not None:
                    # trio shuffles tasks. The other one sets the event and calls the resolver without a break, so the
                    # resolver has been called for IPv6 by now.
                    await first.wait()
                lookup.asked.set()
                try:
                    results = sanitised(await self._resolver.resolve(name, 0, family), family)
                    failure = None if results else Failure(f"it has no {FAMILIES.get(family, 'IP')} address")
                except Exception as exc:
                    failure = Failure(_reason(exc), exc.errno if isinstance(exc, OSError) else None, exc)
            if lookup.scope.cancelled_caught:
                late = f"no answer within {self._seconds:g} s"
                try:
                    why = self._resolver.why_late()
                except Exception:  # foreign code, in a task that must not raise
                    why = ""
                failure = Failure(f"{late}: {why}" if why else late, cause=TimeoutError("lookup"))
        finally:
            lookup.asked.set()
            self._finish(lookup, results, failure)

    def _finish(self, lookup: Lookup, results: Sequence[ResolveResult], failure: Failure | None) -> None:
        if self._running.get(lookup.question) is lookup:
            del self._running[lookup.question]
            if self._cache is not None and not self._closed:
                self._keep(self._cache, lookup.question, results, failure)
        subscribers, lookup.subscribers = lookup.subscribers, set()
        for answers in subscribers:
            answers.answered(lookup, results, failure)

    def _keep(
        self, cache: DNSCache, question: Question, results: Sequence[ResolveResult], failure: Failure | None
    ) -> None:
        # One family without addresses is remembered as long as the addresses of the other one: else every connection
        # to a host without IPv6 would soon wait for the same negative answer again.
        now = trio.current_time()
        name, family = question
        sibling = (name, socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6)
        other = cache.peek(sibling, now) if family in FAMILIES else None
        if failure is None:
            cache.put(question, results, now)
            here = cache.peek(question, now)
            if here is not None and other is not None and not other.results:
                cache.put_negative(
                    sibling, other.error, other.errno, now, until=min(here.expires, now + _MOST_NEGATIVE)
                )
        else:
            until = min(other.expires, now + _MOST_NEGATIVE) if other is not None and other.results else None
            cache.put_negative(question, failure.message, failure.errno, now, until=until)

    def _left(self, lookups: Iterable[Lookup]) -> None:
        for lookup in lookups:
            if (
                not lookup.subscribers
                and len(self._running) > MOST_ABANDONED
                and self._running.get(lookup.question) is lookup
            ):
                del self._running[lookup.question]  # whoever comes now asks anew
                lookup.scope.cancel()


def sanitised(results: Iterable[ResolveResult], family: int) -> list[ResolveResult]:
    """What of a resolver's answer can be used: IP addresses of the right family, canonical, each once, not too many.

    Raises:
      TypeError: it is not even iterable.
    """
    good: dict[str, ResolveResult] = {}
    for result in islice(results, _MOST_LOOKED_AT):
        text = _canonical(getattr(result, "address", None))
        if text is None or text in good:
            continue
        own = socket.AF_INET6 if ":" in text else socket.AF_INET
        if getattr(result, "family", own) != own or family not in (socket.AF_UNSPEC, own):
            continue
        ttl = getattr(result, "ttl", None)
        good[text] = ResolveResult(text, own, ttl if isinstance(ttl, (int, float)) else None)
        if len(good) == MOST_ADDRESSES:
            break
    return list(good.values())


def _canonical(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    literal, percent, zone = text.partition("%")
    if percent and not (ZONE.fullmatch(zone) and ":" in literal):
        return None
    try:
        return address_text(ip_address(literal)) + percent + zone
    except ValueError:
        return None


def _closed() -> ConnectorClosedError:
    return ConnectorClosedError("the connector was closed")


def _reason(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return shown(exc.strerror)
    try:
        text = str(exc)
    except Exception:  # foreign code; the type says something, too
        text = ""
    if isinstance(exc, ResolveError) and text:
        return shown(text)
    return f"the resolver raised {type(exc).__name__}" + (f": {shown(text)}" if text else "")
