"""Resolvers that do as they are told: nothing here asks the network."""

from __future__ import annotations

import socket
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import trio

from trioconn._establish.dns_cache import ResolveResult
from trioconn._establish.resolve import Resolver

if TYPE_CHECKING:
    from collections.abc import Iterable

V4, V6, ANY = socket.AF_INET, socket.AF_INET6, socket.AF_UNSPEC


def results(*addresses: str, ttl: float | None = None) -> list[ResolveResult]:
    return [ResolveResult(address, V6 if ":" in address else V4, ttl) for address in addresses]


class FakeResolver(Resolver):
    """Answers from `answers`, by (name, family); an exception there is raised. Waits for `gates` if there is one."""

    def __init__(self, answers: dict[tuple[str, int], Any] | None = None, *, splits: bool = False) -> None:
        self.splits_families = splits
        self.answers = {} if answers is None else answers
        self.gates: dict[int, trio.Event] = {}
        self.asked: list[tuple[str, int]] = []
        self.ended: list[tuple[str, int]] = []
        self.asked_of_family: defaultdict[int, int] = defaultdict(int)

    async def resolve(self, host: str, port: int = 0, family: int = ANY) -> list[ResolveResult]:
        assert port == 0
        self.asked.append((host, family))
        try:
            await trio.lowlevel.checkpoint()
            if family in self.gates:
                await self.gates[family].wait()
            answer = self.answers.get((host, family), results("192.0.2.1"))
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[no-any-return]  # some tests answer nonsense
        finally:
            self.ended.append((host, family))


class Reports:
    """Collects events as (class name, fields)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: type, **fields: Any) -> None:
        self.seen.append((kind.__name__, fields))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


async def addresses(answers: Any) -> list[str]:
    with answers:
        return [result.address async for batch in answers for result in batch.results]


def texts(found: Iterable[ResolveResult]) -> list[str]:
    return [result.address for result in found]
