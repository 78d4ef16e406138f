"""``trioconn get URL``: real requests over one connector, and what became of them.

A number of clients share the requests. Each takes a lease, makes one exchange, and gives the connection back if it is
clean. What fails is counted under its name: for a connection that could not be made the stage and the hop, for one that
broke the moment.

The exit code is 0 if every request was answered (with ``--fail``: and no status was 400 or more), else 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import h11
import trio

from .. import BaseConnector, ConnectError, ConnectorStatistics, InvalidTargetError, Route
from .http import Answer, Request, StaleConnectionError, exchange
from .options import add_connection_options, count, make_connector, proxies, run, seconds, trust
from .terminal import Look

_PROGRESS_INTERVAL = 0.1  # seconds
_WIDTH_OF_BAR = 30


def add_get(make: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the parser of this command with `make`, the ``add_parser`` of a parser of commands."""
    parser = make(
        "get",
        help="real requests over one connector: throughput, latencies, connections, errors by stage",
        description="Sends HTTP/1.1 requests over one connector and tells what became of them.",
        epilog="Exit code: 0 if every request was answered, else 1.",
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", help="http:// or https://")
    load = parser.add_argument_group("how much")
    load.add_argument("-n", "--requests", type=count, default=1, help="how many requests (default: 1)")
    load.add_argument("-c", "--concurrency", type=count, default=1, help="how many clients share them (default: 1)")
    load.add_argument("--limit", type=count, default=100, help="most connections at a time (default: 100)")
    what = parser.add_argument_group("what")
    what.add_argument("-X", "--method", default="GET", help="default: GET")
    what.add_argument("-I", "--head", action="store_const", const="HEAD", dest="method", help="the same as -X HEAD")
    what.add_argument("-H", "--header", metavar="NAME:VALUE", action="append", default=[], help="send this, too")
    what.add_argument("--fail", action="store_true", help="count answers with a status of 400 or more as errors")
    what.add_argument(
        "--timeout",
        metavar="S",
        type=seconds,
        default=30.0,
        help="seconds for one request, waiting for a connection included (default: 30)",
    )
    add_connection_options(parser)


def get(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
      ValueError: the command line cannot be honoured.
    """
    request = Request.make(arguments.method, arguments.url, tuple(map(_header, arguments.header)))
    connector = make_connector(arguments, proxies(arguments), trust(arguments), {}, limit=arguments.limit)
    route = connector.route(arguments.url)
    tally = Tally(statistics=connector.statistics())
    load = _Load(connector, route, request, tally, arguments)
    try:
        run(load.run)
    finally:  # what was done before an interrupt is shown, too
        _show(Look.of(sys.stdout), str(route), tally)
    return tally.exit_code


@dataclass(slots=True)
class Tally:
    """What became of the requests.

    Attributes:
      began, ended: on the clock of the run.
      latencies: of answered requests, in seconds, waiting included.
      waits: how long each of these waited for its connection.
      repeated: requests sent a second time, because a reused connection had gone stale.
      errors: how often each happened, by its name.
      examples: the whole message of the first of each.
      statistics: the connector's, when the last request was over.
    """

    statistics: ConnectorStatistics
    began: float = 0.0
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list[float])
    waits: list[float] = field(default_factory=list[float])
    statuses: Counter[int] = field(default_factory=Counter[int])
    received: int = 0
    repeated: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, str] = field(default_factory=dict[str, str])

    def failed(self, name: str, message: str) -> None:
        """Count an error."""
        self.errors[name] += 1
        self.examples.setdefault(name, message)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed and something was answered."""
        return 1 if self.errors or not self.latencies else 0


@dataclass(slots=True)
class _Moment:
    """How far a request has come: what it is doing, and when it got its connection."""

    phase: str = "waiting for a connection"
    leased: float = 0.0


class _Load:
    """The clients, and what they share."""

    def __init__(
        self,
        connector: BaseConnector,
        route: Route,
        request: Request,
        tally: Tally,
        arguments: argparse.Namespace,
    ) -> None:
        self._connector = connector
        self._route = route
        self._request = request
        self._tally = tally
        self._total: int = arguments.requests
        self._clients: int = min(arguments.concurrency, arguments.requests)
        self._timeout: float = arguments.timeout
        self._strict: bool = arguments.fail
        self._begun = 0

    async def run(self) -> None:
        """Send all requests."""
        tally = self._tally
        tally.began = trio.current_time()
        try:
            async with self._connector, trio.open_nursery() as progress:
                if sys.stderr.isatty():
                    progress.start_soon(self._show_progress)
                try:
                    async with trio.open_nursery() as clients:
                        for _ in range(self._clients):
                            clients.start_soon(self._client)
                finally:
                    tally.ended = trio.current_time()
                    tally.statistics = self._connector.statistics()
                progress.cancel_scope.cancel()
        finally:
            if sys.stderr.isatty():
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    async def _client(self) -> None:
        while self._begun < self._total:
            self._begun += 1
            await self._one()

    async def _one(self) -> None:
        tally = self._tally
        began = trio.current_time()
        moment = _Moment()
        with trio.move_on_after(self._timeout) as scope:
            try:
                answer = await self._exchange(moment)
            except StaleConnectionError as error:
                tally.failed("a reused connection ended without an answer", str(error))
            except ConnectError as error:
                hop = f" (proxy {error.hop})" if error.hop >= 0 else ""
                tally.failed(f"{type(error).__name__} at stage {error.stage}{hop}", str(error))
            except h11.RemoteProtocolError as error:
                tally.failed("not HTTP/1.1, or cut short", str(error))
            except trio.BrokenResourceError as error:
                tally.failed("the connection broke", str(error.__cause__ or error))
            else:
                tally.latencies.append(trio.current_time() - began)
                tally.waits.append(moment.leased - began)
                tally.statuses[answer.status] += 1
                tally.received += answer.received
                if self._strict and answer.status >= 400:
                    tally.failed(f"status {answer.status}", f"the server answered {answer.status}")
        if scope.cancelled_caught:
            tally.failed(f"timed out {moment.phase}", f"no answer within {self._timeout:g} s")

    async def _exchange(self, moment: _Moment) -> Answer:
        """One request and its answer, the request sent again if a stale connection made that necessary."""
        try:
            return await self._exchange_once(moment)
        except StaleConnectionError:
            if not self._request.is_safe_to_repeat:
                raise
        self._tally.repeated += 1
        return await self._exchange_once(moment)

    async def _exchange_once(self, moment: _Moment) -> Answer:
        moment.phase = "waiting for a connection"
        async with await self._connector.connect(self._route) as lease:
            moment.phase = "waiting for the answer"
            moment.leased = trio.current_time()
            return await exchange(lease, self._request)

    async def _show_progress(self) -> None:
        look = Look.of(sys.stderr)
        while True:
            tally = self._tally
            done = len(tally.latencies) + tally.errors.total()
            seconds = max(trio.current_time() - tally.began, 1e-9)
            statistics = self._connector.statistics()
            full = round(_WIDTH_OF_BAR * done / self._total)
            bar = look("█" * full + "░" * (_WIDTH_OF_BAR - full), "blue")
            print(
                f"\r\x1b[K{bar} {done}/{self._total}  {done / seconds:.0f}/s  {statistics.open} open, "
                f"{statistics.waiting} waiting, {tally.errors.total()} errors",
                end="",
                file=sys.stderr,
                flush=True,
            )
            await trio.sleep(_PROGRESS_INTERVAL)


def percentile(sorted_values: Sequence[float], part: float) -> float:
    """The smallest of the values that at least `part` of them (0 to 1) do not exceed."""
    return sorted_values[max(0, math.ceil(part * len(sorted_values)) - 1)]


def _show(look: Look, route: str, tally: Tally) -> None:
    def row(name: str, text: str, style: str | None = None) -> None:
        print(f"{look(f'{name:<12}', 'bold')}{look(text, 'bad') if style else look(text)}")

    seconds = tally.ended - tally.began
    row("target", route)
    if tally.latencies:
        rate = len(tally.latencies) / seconds if seconds else 0
        row("answered", f"{len(tally.latencies)} in {seconds:.2f} s, {rate:.0f} per second, {_size(tally.received)}")
        row("status", ", ".join(f"{status}: {n}" for status, n in sorted(tally.statuses.items())))
        row("latency", _percentiles(tally.latencies))
        row("of it wait", _percentiles(tally.waits))
    statistics = tally.statistics
    resumed = f", {statistics.resumed} resumed a TLS session" if statistics.resumed else ""
    row("connections", f"{statistics.created} made, reused {statistics.reused} times{resumed}")
    if statistics.closed:
        row("closed", ", ".join(f"{reason}: {n}" for reason, n in sorted(statistics.closed.items())))
    if tally.repeated:
        row("repeated", f"{tally.repeated}, because a reused connection had ended")
    for name, number in tally.errors.most_common():
        row("error", f"{number} x {name}: {tally.examples[name]}", "bad")
    if not tally.errors:
        row("errors", "none")


def _percentiles(values: list[float]) -> str:
    ordered = sorted(values)
    parts = [
        f"{name} {_milliseconds(percentile(ordered, p))}" for name, p in (("50%", 0.5), ("90%", 0.9), ("99%", 0.99))
    ]
    return ", ".join([*parts, f"max {_milliseconds(ordered[-1])}"])


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _size(octets: int) -> str:
    size = float(octets)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise InvalidTargetError(f"-H takes NAME:VALUE, not {text!r}")
    return name.strip(), value.strip()
