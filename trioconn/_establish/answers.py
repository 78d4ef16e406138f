"""What one caller is told about a name: batches of addresses as they arrive, and an end or an error.

Each caller has a channel of its own, an error object of its own (an exception must never be raised in two tasks), and
leaves without disturbing the others.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, Self

import trio

from .. import events
from .._errors import ConnectorClosedError, ResolveError, replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .dns_cache import Question, ResolveResult

FAMILIES: Final[dict[int, str]] = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


@dataclass(frozen=True, slots=True)
class Batch:
    """The addresses that one question brought.

    Attributes:
      family: the family that was asked for. `socket.AF_UNSPEC`: both, in an order that is to be kept.
      results: the addresses, best first; none if there are none of this family.
    """

    family: int
    results: list[ResolveResult]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question brought no address: the words, the number, and what caused it."""

    message: str
    errno: int | None = None
    cause: BaseException | None = None


class Lookup:
    """A question under way: who waits, and whether the resolver has been asked yet."""

    def __init__(self, question: Question, seconds: float) -> None:
        self.question = question
        self.scope = trio.CancelScope(relative_deadline=seconds)
        self.subscribers: set[Answers] = set()
        self.asked = trio.Event()


class Answers(trio.abc.ReceiveChannel[Batch]):
    """What one caller is told: a batch for each question, in the order in which the answers arrive, and the end.

    If there is no address at all, `ResolveError` comes in place of the end. Leave it by ``with`` or ``async with``.
    """

    def __init__(self, host: str, report: events.Report | None, left: Callable[[Iterable[Lookup]], None]) -> None:
        self._host = host
        self._report = report  # None also once LookupFinished has been reported, and before LookupStarted
        self._left = left
        self._send, self._receive = trio.open_memory_channel[Batch](len(FAMILIES))
        self._lookups: set[Lookup] = set()
        self._found: list[str] = []
        self._failures: list[Failure] = []

    @property
    def pending(self) -> frozenset[int]:
        """The families whose answers have not arrived yet."""
        return frozenset([lookup.question[1] for lookup in self._lookups])

    async def receive(self) -> Batch:
        """The next batch.

        Raises:
          trio.EndOfChannel: all questions are answered, and there were addresses.
          ResolveError: all questions are answered, and there were none.
          ConnectorClosedError: the connector was closed.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            self._raise_end()

    def receive_nowait(self) -> Batch:
        """As `receive`, or `trio.WouldBlock` if nothing has arrived since."""
        try:
            return self._receive.receive_nowait()
        except trio.EndOfChannel:
            self._raise_end()

    def close(self) -> None:
        """Leave, without a checkpoint. The lookups run on, to fill the cache."""
        lookups, self._lookups = self._lookups, set()
        for lookup in lookups:
            lookup.subscribers.discard(self)
        self._send.close()
        self._receive.close()
        self._left(lookups)
        self._finished(None if self._found else "the caller left before the answer came")

    async def aclose(self) -> None:
        """As `close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, family: int, results: Iterable[ResolveResult], failure: Failure | None) -> None:
        """An answer has come."""
        batch = Batch(family, list(results))
        self._found += [result.address for result in batch.results]
        if failure is not None:
            self._failures.append(failure)
        self._send.send_nowait(batch)

    def expect(self, lookups: Iterable[Lookup]) -> None:
        """These answers are still to come."""
        for lookup in lookups:
            lookup.subscribers.add(self)
            self._lookups.add(lookup)
        if not self._lookups:
            self._send.close()

    def answered(self, lookup: Lookup, results: Iterable[ResolveResult], failure: Failure | None) -> None:
        """One of them has come, or failed."""
        self._lookups.discard(lookup)
        self.add(lookup.question[1], results, failure)
        if not self._lookups:
            self._send.close()

    def _raise_end(self) -> NoReturn:
        if self._found:
            self._finished(None)
            raise trio.EndOfChannel
        causes = [failure.cause for failure in self._failures if failure.cause is not None]
        closed = [cause for cause in causes if isinstance(cause, ConnectorClosedError)]
        # The reasons of both families, mostly equal; that of IPv4 comes last and is the more telling one.
        reasons = list(dict.fromkeys(failure.message for failure in self._failures))
        error = ResolveError(
            f"cannot resolve {self._host}: {'; '.join(reasons)}", errno=self._failures[-1].errno, stage="resolve"
        )
        self._finished(str(error))
        if closed:
            raise replica(closed[0])
        if len(causes) == 1:
            raise error from causes[0]
        if causes:
            raise error from BaseExceptionGroup(f"both lookups of {self._host}", causes)
        raise error

    def _finished(self, error: str | None) -> None:
        report, self._report = self._report, None
        if report is not None:
            report(events.LookupFinished, host=self._host, addresses=tuple(self._found), error=error)
