"""``trioconn demo``: what the library does, shown on loopback, and checked while it is shown.

Each scene uses one connector as a program would, and says what came of it. What it says it has looked at first: a claim
that does not hold is shown as such, and the exit code is 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from .. import CertificateError, Connection, ConnectorStatistics, TCPConnector, TLSInfo, UnixConnector, events
from .demo_screen import Screen, Sockets, living_tasks, open_descriptors
from .demo_servers import HOST, Names, Servers, servers
from .demo_traces import play
from .options import run
from .terminal import Look

if TYPE_CHECKING:
    import trustme

    from .demo_traces import Parse

_PATIENCE = 10.0  # seconds; nothing here takes one
_RACE_DELAY = 0.25  # seconds: the connector's default, and RFC 8305's recommendation
_LIMIT = 2
_CLIENTS = 10


def demo(parse: Parse | None = None) -> int:
    """Run the demo; gives 0 if every claim was true. With `parse`, which reads command lines, show traces instead."""
    try:
        import trustme
    except ImportError:
        print('The demo makes certificates with trustme: pip install "trioconn[demo]"', file=sys.stderr)
        return 1
    if parse is not None:
        return 0 if run(play, trustme.CA(), parse) else 1
    screen = Screen(Look.of(sys.stdout))
    try:
        run(_play, screen, trustme.CA())
    except Exception as error:
        screen.claim(False, f"the demo ended in {type(error).__name__}: {error}")
    return screen.end()


async def _play(screen: Screen, authority: trustme.CA) -> None:
    tasks, descriptors = living_tasks(), open_descriptors()
    sockets = Sockets()
    heard: list[events.Event] = []
    with trio.fail_after(_PATIENCE):
        async with servers(authority) as where:
            standing = living_tasks()
            async with TCPConnector(
                ssl=where.trust,
                limit_per_host=_LIMIT,
                resolver=Names(where.mute),
                happy_eyeballs_delay=_RACE_DELAY,
                socket_factory=sockets.make,
                observers=[heard.append],
            ) as connector:
                for scene in (
                    partial(_reuse, screen, where, connector),
                    partial(_limit, screen, where, connector),
                    partial(_race, screen, where, connector, heard),
                    partial(_idle, screen, where, connector),
                    partial(_certificate, screen, where, connector),
                    partial(_unix, screen, where),
                ):
                    await _shown(screen, scene)
                held = await connector.connect(f"https://shop.test:{where.tls}")  # when the block ends, on purpose
            statistics = connector.statistics()
            await _shutdown(screen, sockets, held, statistics, lambda: living_tasks() <= standing)
    after = open_descriptors()
    screen.claim(living_tasks() == tasks, "servers ended too: no task is left that was not there before")
    if descriptors is not None:
        screen.claim(after == descriptors, f"and no descriptor: {descriptors} open before, {after} after")
    _statistics(screen, statistics)


async def _shown(screen: Screen, scene: Callable[[], Awaitable[None]]) -> None:
    """Show a scene; one that breaks is a claim that did not hold, and the next ones are shown all the same."""
    try:
        await scene()
    except Exception as error:
        screen.claim(False, f"this ended in {type(error).__name__}: {error}")


async def _until(true: Callable[[], bool]) -> None:
    """Wait until `true` says so, but not for long: whether it did is the claim that follows."""
    with trio.move_on_after(2):
        while not true():  # noqa: ASYNC110 - a program would go on with its work; nothing wakes who counts
            await trio.sleep(0.005)


async def ask(connection: Connection, line: str) -> str:
    """Send a line and return the answer: what a protocol would do on its lease."""
    await connection.stream.send_all(line.encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        data = await connection.stream.receive_some()
        if not data:
            raise trio.BrokenResourceError("the server hung up")
        answer += data
    return answer.decode().strip()


async def _reuse(screen: Screen, where: Servers, connector: TCPConnector) -> None:
    screen.scene(
        "A connection is made once, and used again",
        'async with await connector.connect("https://shop.test") as conn: ...; conn.release()',
    )
    uses: list[int] = []
    answers: set[str] = set()
    layers: dict[int, TLSInfo] = {}
    for _ in range(5):
        async with await connector.connect(f"https://shop.test:{where.tls}") as conn:
            answers.add(await ask(conn, "hello"))
            uses.append(conn.uses)
            layers[conn.info.number] = conn.info.tls[-1]
            conn.release()
    layer = next(iter(layers.values()))
    screen.claim(
        uses == [1, 2, 3, 4, 5] and len(layers) == 1 and answers == {"ok hello"},
        f"{len(uses)} exchanges over TLS used {len(layers)} connection",
    )
    screen.claim(
        layer.server_name == "shop.test" and layer.version in ("TLSv1.2", "TLSv1.3"),
        f"{layer.version}, {layer.cipher}, certificate verified for {layer.server_name}",
    )


async def _limit(screen: Screen, where: Servers, connector: TCPConnector) -> None:
    screen.scene(f"A limit of {_LIMIT} per host, and {_CLIENTS} who want in", f"TCPConnector(limit_per_host={_LIMIT})")
    route = connector.route(f"tcp://plain.test:{where.plain}")
    most_open = most_waiting = 0
    served: list[int] = []
    numbers: Counter[int] = Counter()

    async def client(number: int) -> None:
        nonlocal most_open, most_waiting
        async with await connector.connect(route) as conn:
            host = connector.statistics().hosts[route.endpoint]
            most_open, most_waiting = max(most_open, host.open), max(most_waiting, host.waiting)
            await ask(conn, "slow")
            served.append(number)
            numbers[conn.info.number] += 1
            conn.release()

    async with trio.open_nursery() as nursery:
        for number in range(_CLIENTS):
            nursery.start_soon(client, number)
    screen.claim(
        most_open == _LIMIT, f"never more than {most_open} connections open, while up to {most_waiting} waited"
    )
    screen.claim(
        sorted(served) == list(range(_CLIENTS)) and len(numbers) == _LIMIT,
        f"all {len(served)} served, by {len(numbers)} connections",
    )


async def _race(screen: Screen, where: Servers, connector: TCPConnector, heard: list[events.Event]) -> None:
    screen.scene("A dead address loses the race", 'await connector.connect("https://race.test")')
    if where.mute is None:
        screen.note("left out: loopback has only one address here")
        return
    url = f"https://race.test:{where.race}"
    begin = len(heard)
    async with await connector.connect(url) as first:
        race = _outcomes(heard[begin:])
        for address, started, text in race:
            screen.row(address, f"began at {started * 1000:3.0f} ms", text)
        outcome = {address: text for address, _, text in race}
        waited = race[-1][1] - race[0][1]
        screen.claim(
            outcome[where.mute].startswith("lost") and outcome[HOST].startswith("won"),
            f"{where.mute} takes connections and says nothing: TCP alone would have chosen it",
        )
        screen.claim(
            _RACE_DELAY * 0.9 <= waited < 1,
            f"after {_RACE_DELAY * 1000:.0f} ms the next address was tried, TLS included",
        )
        begin = len(heard)
        async with await connector.connect(url) as second:
            again = _outcomes(heard[begin:])
            screen.claim(
                [address for address, _, _ in again] == [HOST] and second.info.number != first.info.number,
                f"the next connection to race.test began with {HOST}: it remembers who won",
            )
            second.release()
        first.release()


def _outcomes(heard: Sequence[events.Event]) -> list[tuple[str, float, str]]:
    """Of each address in the race: itself, when its turn came in seconds, what became of it."""
    begun: dict[int, tuple[str, float]] = {}
    ends: dict[int, str] = {}
    zero = 0.0
    for event in heard:
        if isinstance(event, events.AttemptStarted):
            zero = zero or event.at
            begun[event.index] = (event.address[0], event.at - zero)
        elif isinstance(event, events.AttemptEvent):
            for kind, word in (
                (events.AttemptWon, "won"),
                (events.AttemptLost, "lost"),
                (events.AttemptFailed, "failed"),
            ):
                if isinstance(event, kind):
                    ends[event.index] = word
    return [(address, at, ends.get(index, "no end")) for index, (address, at) in begun.items()]


async def _idle(screen: Screen, where: Servers, connector: TCPConnector) -> None:
    screen.scene("A server closes a connection that lies idle", "connector.statistics().closed")
    url = f"tcp://plain.test:{where.plain}"
    await _provoke(connector, url, "bye")
    await _until(lambda: "server closed" in connector.statistics().closed)
    screen.claim(
        connector.statistics().closed.get("server closed") == 1,
        "'server closed': its connection left the pool by itself, before anybody asked for it",
    )
    await _provoke(connector, url, "chatter")
    await where.chattered.wait()
    async with await connector.connect(url) as conn:
        screen.claim(
            connector.statistics().closed.get("stray bytes") == 1 and await ask(conn, "hello") == "ok hello",
            "'stray bytes': another said something that nobody had asked for; it was not handed out again",
        )
        conn.release()


async def _provoke(connector: TCPConnector, url: str, line: str) -> None:
    async with await connector.connect(url) as conn:
        await ask(conn, line)
        conn.release()


async def _certificate(screen: Screen, where: Servers, connector: TCPConnector) -> None:
    screen.scene("A certificate for somebody else", f'await connector.connect("https://shop.test:{where.wrong}")')
    before = connector.statistics()
    try:
        async with await connector.connect(f"https://shop.test:{where.wrong}"):
            screen.claim(False, "the certificate should have been refused")
    except CertificateError as error:
        screen.note(f"{type(error).__name__}: {error}")
        screen.claim(
            error.stage == "tls" and "shop.test" in str(error),
            f"refused before a byte was sent; error.stage is {error.stage!r}",
        )
    after = connector.statistics()
    screen.claim(after.open == before.open, "the failed attempt left nothing behind")


async def _unix(screen: Screen, where: Servers) -> None:
    screen.scene("The same over a Unix socket", 'UnixConnector("/run/shop.sock")')
    if where.path is None:
        screen.note("left out: this system has no Unix sockets")
        return
    async with UnixConnector(where.path, ssl=where.trust) as connector:
        async with await connector.connect("https://local.test") as conn:
            answer = await ask(conn, "hello")
            conn.release()
        async with connector.connect_nowait("https://local.test") as again:
            screen.claim(
                answer == "ok hello" and again.reused and again.info.tls[-1].server_name == "local.test",
                "TLS over it verified for local.test, the connection reused",
            )


async def _shutdown(
    screen: Screen,
    sockets: Sockets,
    held: Connection,
    statistics: ConnectorStatistics,
    tasks_ended: Callable[[], bool],
) -> None:
    screen.scene(
        "Leaving the block leaves nothing", "async with TCPConnector() as connector: ...  # and out, a lease still held"
    )
    made, still_open = sockets.counts()
    screen.claim(made > 0 and not still_open, f"{made} sockets were made, {still_open} are open")
    screen.claim(
        statistics.open == 0 and statistics.created == sum(statistics.closed.values()) and held.closed,
        f"{statistics.created} connections were created, {sum(statistics.closed.values())} closed, one of them leased",
    )
    await _until(tasks_ended)  # the servers' own tasks see the end of their connections a moment later
    screen.claim(tasks_ended(), "and none of its tasks runs")


def _statistics(screen: Screen, statistics: ConnectorStatistics) -> None:
    screen.scene("What it counted", "connector.statistics()")
    screen.row("created", str(statistics.created))
    screen.row("reused", str(statistics.reused))
    screen.row("failed", _tally(statistics.failed))
    screen.row("closed", _tally(statistics.closed))


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
