"""Random programs against a real connector, with what must hold asked after every step.

A program is bytes, so that it can be written down: the first few choose the options and the world, then three for each
step. The same bytes and the same seed of the scheduler (`replay.fixed_order`) are the same run, to the step:
``run_program(bytes.fromhex("…"))`` replays a finding.

Several steps may happen in one tick, before any task has run; only then is waited until all are blocked, and asked:

* no limit is exceeded, counted at the sockets, at the moment at which each is opened;
* what the connector counts is what the clients hold, wait for, and what is open;
* within a route nobody is overtaken;
* who waits beside room, or beside an idle connection of its route, has an attempt under way;
* the timer is set for the next deadline, and none has passed unnoticed;
* a connection to which its peer said something unasked, or which it left, is not handed out again, and an answer is
  the one to its own question.

In the end everybody who waits is served, unless nothing bounds an attempt that hangs; and after the block is left,
however it is left, nothing is open and no task runs.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from typing import Any

import trio
import trio.testing

import trioconn
from trioconn import events

from .replay import fixed_order
from .worlds import HOSTS, MOODS, STRAY, MemoryWorld, SocketWorld, Wire, World

STEP = 3
HEAD = 10
_DIRTY = {"server closed", "stray bytes", "age", "closed", "broken", "error"}


class Oops(Exception):
    """What a client raises inside its lease."""


class Client:
    """A task that wants a connection, holds it, and does with it what it is told."""

    def __init__(self, number: int, route: trioconn.Route) -> None:
        self.number = number
        self.route = route
        self.scope = trio.CancelScope()
        self.lease: trioconn.Connection | None = None
        self.wire: Wire | None = None
        self.waits = True
        self.done = False
        self.parting = False
        self.tell, self.told = trio.open_memory_channel[str](math.inf)

    @property
    def holds(self) -> bool:
        """Whether it has a lease that counts: a polite closing counts until it is over."""
        return self.lease is not None and (self.parting or not self.lease.closed)


class Program:
    """One run of one program."""

    def __init__(self, data: bytes) -> None:
        self.data = data.ljust(HEAD, b"\0")
        head = self.data
        self.seed = int.from_bytes(head[0:2], "big")
        self.options: dict[str, Any] = {
            "limit": (2, 1, 3, 5, 0)[head[2] % 5],
            "limit_per_host": (0, 0, 1, 2)[head[3] % 4],
            "keepalive_timeout": (15.0, None, 0.25, 0)[head[4] % 4],
            "max_uses": (None, None, 3)[head[5] % 3],
            "force_close": head[5] % 8 == 7,
            "max_lifetime": (None, None, None, 3.0)[head[6] % 4],
            "connect_timeout": (2.0, 30.0, None)[head[7] % 3],
        }
        self.kind = ("memory", "sockets", "race", "tls")[(0, 0, 0, 1, 1, 2, 2, 3)[head[8] % 8]]
        self.ending = ("drain", "drain", "leave", "raise", "cancel", "aclose")[head[9] % 6]
        self.clients: list[Client] = []
        self.kept: list[trioconn.Connection] = []
        self.prewarming: list[trio.CancelScope] = []
        self.log: list[str] = []
        self.lines = 0
        self.found: Counter[str] = Counter()
        # By observers: who waits, by route and number, and what became of those who waited no longer, since last asked.
        self.queue: dict[int, trioconn.Route] = {}
        self.served: list[tuple[int, trioconn.Route]] = []
        self.dirty = False
        self.errors: list[BaseException] = []
        self.hasty = False  # clients ask one question and go

    # ---- what clients do ---------------------------------------------------------------------------------------------

    def hear(self, event: events.Event) -> None:
        if isinstance(event, events.Queued):
            self.queue[event.waiter] = event.route
        elif isinstance(event, events.QueueEnded):
            route = self.queue.pop(event.waiter)
            if event.outcome in {"granted", "failed"}:
                self.served.append((event.waiter, route))
        elif isinstance(event, events.Closed):
            self.dirty = self.dirty or event.reason in _DIRTY

    def got(self, lease: trioconn.Connection) -> Wire:
        wire = self.world.wire_of(lease)
        assert not wire.poisoned, f"{lease} is of a connection whose peer spoke, or left, while it was idle"
        assert not (lease.reused and wire.sullied), f"{lease} is of a connection that its peer had sullied"
        self.found["reused" if lease.reused else "fresh"] += 1
        return wire

    async def client(self, client: Client, target: str, options: dict[str, Any]) -> None:
        with client.scope:
            try:
                async with await self.connector.connect(target, **options) as lease:
                    client.waits = False
                    client.wire = self.got(lease)
                    client.lease = lease
                    await self.serve(client, lease)
            except trioconn.ConnectError as error:
                self.found[f"failed: {error.stage}"] += 1
                self.raised(error)
            except trioconn.ConnectorClosedError as error:
                self.found["closed"] += 1
                self.raised(error)
            except Oops:
                pass
        client.waits, client.done = False, True
        client.lease = None

    def raised(self, error: BaseException) -> None:
        assert not any(error is other for other in self.errors), "one exception was raised in two tasks"
        self.errors.append(error)

    async def serve(self, client: Client, lease: trioconn.Connection) -> None:
        if self.hasty:
            with trio.move_on_after(1):  # its peer may be mute
                if await self.exchange(client, lease):
                    lease.release()
            return
        async for word in client.told:
            if word == "ask":
                if not await self.exchange(client, lease):
                    return
            elif word == "release":
                lease.release()
            elif word == "aclose":
                client.parting = not lease.closed
                try:
                    await lease.aclose()
                finally:
                    client.parting = False
            elif word == "raise":
                raise Oops
            elif word == "leave":
                return

    async def exchange(self, client: Client, lease: trioconn.Connection) -> bool:
        """Ask, and hear the answer. False if the peer has gone, or said something else before."""
        self.lines += 1
        question = b"question %d\n" % self.lines
        answer = b""
        try:
            await lease.stream.send_all(question)
            while len(answer) < len(question):
                some = await lease.stream.receive_some(len(question) - len(answer))
                if not some:
                    break
                answer += some
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        assert client.wire is not None
        if answer == question:
            self.found["answered"] += 1
            return True
        assert client.wire.sullied or lease.closed, f"{answer!r} is not the answer to {question!r}"
        assert answer.replace(STRAY, b"") in question, f"{answer!r} is not the answer to {question!r}"
        return False

    async def warm(self, scope: trio.CancelScope, target: str, options: dict[str, Any], n: int) -> None:
        with scope:
            try:
                await self.connector.prewarm(target, n, **options)
            except (trioconn.ConnectError, trioconn.ConnectorClosedError):
                pass

    async def shut(self, abort: bool) -> None:
        await self.connector.aclose(abort_ssl=abort)

    # ---- steps -------------------------------------------------------------------------------------------------------

    def pick(self, clients: list[Client], n: int) -> Client | None:
        return clients[n % len(clients)] if clients else None

    def do(self, op: str, a: int, b: int) -> str:
        """One step, without a checkpoint. Returns what was done, in words."""
        holders = [client for client in self.clients if client.holds]
        if op == "connect":
            target, options = self.targets[a % len(self.targets)]
            client = Client(len(self.clients), self.connector.route(target, **options))
            self.clients.append(client)
            self.nursery.start_soon(self.client, client, target, options)
            return f"client {client.number} wants {client.route}"
        if op == "nowait":
            target, options = self.targets[a % len(self.targets)]
            try:
                lease = self.connector.connect_nowait(target, **options)
            except (trio.WouldBlock, trioconn.ConnectorClosedError) as error:
                return f"nowait: {type(error).__name__}"
            self.got(lease)
            self.kept.append(lease)
            return f"kept {lease!r}"
        if op in {"release", "ask", "aclose", "raise", "leave"}:
            client = self.pick(holders, a)
            if client is None:
                return "nobody holds"
            client.tell.send_nowait(op)
            return f"client {client.number}: {op}"
        if op == "release now":
            client = self.pick(holders, a)
            if client is None or client.lease is None:
                return "nobody holds"
            client.lease.release(idle_for=(None, 0.25, 0)[b % 3])
            return f"client {client.number} releases now"
        if op == "close now":
            client = self.pick(holders, a)
            if client is None or client.lease is None or client.parting:
                return "nobody holds"
            client.lease.close()
            return f"client {client.number} closes now"
        if op in {"cancel waiter", "cancel any"}:
            client = self.pick([c for c in self.clients if not c.done and (c.waits or op == "cancel any")], a)
            if client is None:
                return "nobody to cancel"
            client.scope.cancel()
            return f"client {client.number} is cancelled"
        if op == "let go":
            if not self.kept:
                return "nothing kept"
            lease = self.kept.pop(a % len(self.kept))
            if b % 3 == 0:
                lease.release()
            elif b % 3 == 1:
                lease.close()
            del lease  # else it is lost, and the finalizer's turn
            return f"let go, {('released', 'closed', 'lost')[b % 3]}"
        if op == "mood":
            kind, seconds = MOODS[a % len(MOODS)]
            host = HOSTS[b % len(HOSTS)]
            self.world.set_mood(host, kind, seconds)
            return f"{host} is {kind} after {seconds}"
        if op in {"stray", "close", "reset", "half"}:
            wires = [wire for wire in self.world.live() if wire.peer is not None]
            if not wires:
                return "nothing is open"
            wire = wires[a % len(wires)]
            self.sully(wire, op)
            return f"peer {self.world.wires.index(wire)} of {wire.host}: {op}"
        if op == "prewarm":
            target, options = self.targets[a % len(self.targets)]
            scope = trio.CancelScope()
            self.prewarming.append(scope)
            self.nursery.start_soon(self.warm, scope, target, options, b % 4)
            return f"prewarm {target} {b % 4}"
        if op == "cancel prewarm":
            if self.prewarming:
                self.prewarming.pop(a % len(self.prewarming)).cancel()
            return "a prewarming is cancelled"
        if op == "shut":
            if a % 8:
                return "nothing"
            self.nursery.start_soon(self.shut, bool(b % 2))
            return "aclose"
        assert op == "settle"
        return "nothing"

    def idle_wires(self, *, uses: int = 0) -> list[Wire]:
        records = [record for record in self.pool._idle if record.uses >= uses]
        idle = {record.connection.raw if self.kind == "memory" else record.connection.fd for record in records}
        return [
            wire for wire in self.world.live() if (wire.ours if self.kind == "memory" else wire.ours.fileno()) in idle
        ]

    def sully(self, wire: Wire, how: str) -> None:
        wire.sullied = True
        wire.poisoned = wire.poisoned or wire in self.idle_wires()
        if how == "stray":
            self.world.stray(wire)
        else:
            wire.gone = True
            self.world.hang_up(wire, how)

    async def step(self, number: int, a: int, b: int) -> None:
        op = OPS[number % len(OPS)]
        if op in {"sleep", "jump"}:
            seconds = (0.0, 0.125, 0.25, 0.5, 1.0, 3.0, 20.0)[a % 7]
            self.log.append(f"{op} {seconds}")
            if op == "jump":
                self.clock.jump(seconds)
            else:
                await trio.sleep(seconds)
        else:
            self.log.append(self.do(op, a, b >> 1))
        if b & 1:
            await trio.testing.wait_all_tasks_blocked()
            self.check()
            self.log.append("--")

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All tasks are blocked: ask."""
        pool, shell, world = self.pool, self.connector._shell, self.world
        assert not world.excess, world.excess
        statistics = self.connector.statistics()
        limit, per_host = self.options["limit"] or math.inf, self.options["limit_per_host"] or math.inf
        assert statistics.open <= limit
        assert all(host.open <= per_host for host in statistics.hosts.values())
        assert statistics.open == statistics.leased + statistics.idle + statistics.connecting
        holding = sum(client.holds for client in self.clients) + sum(not lease.closed for lease in self.kept)
        assert statistics.leased == holding, "a grant was lost, or a slot"
        assert statistics.waiting == sum(client.waits for client in self.clients), "somebody is forgotten"
        assert statistics.waiting == len(self.queue)
        assert statistics.connecting == len(shell._runs)
        live, standing = len(world.live()), statistics.leased + statistics.idle
        assert standing <= live <= standing + world.per_attempt * statistics.connecting, (
            "sockets are not what is counted"
        )
        assert not any(client.waits and client.scope.cancel_called for client in self.clients)

        # First in, first out: who was served came before all who wait. (Who bounced off a connection that went bad at
        # the last moment is again the first of its queue, but others have been served meanwhile.)
        if not self.dirty:
            for waiter, route in self.served:
                assert not any(other < waiter for other, its in self.queue.items() if its == route), "overtaken"
        self.found["waited"] += len(self.served)
        self.served.clear()
        self.dirty = False

        if self.connector.closed:
            assert not statistics.idle and not statistics.waiting
            return
        running = Counter(run.dialling.route for run in shell._runs.values() if not run.attempt.aborted)
        idle = Counter(record.route for record in pool._idle)
        for route, waiting in Counter(self.queue.values()).items():
            host = statistics.hosts[route.endpoint]
            room = statistics.open < limit and host.open < per_host
            assert not idle[route], "waits beside an idle connection"
            if waiting > running[route]:
                assert not room, "waits beside room, without an attempt"
        for wire in self.idle_wires(uses=1):  # one straight from its dial was not released: its server may speak first
            assert wire.poisoned or not wire.sullied, "what its peer has sullied was kept at release"
        for wire in self.idle_wires():
            # (Of memory there is no descriptor to watch.)
            assert self.kind == "memory" or not wire.gone, "the peer has hung up, and nobody noticed"
        deadline = pool.deadline()
        assert deadline is None or deadline > trio.current_time(), "a deadline has passed unnoticed"
        assert deadline is None or shell._alarm.at <= deadline, "the timer is set too late"
        self.found["checked"] += 1

    # ---- the whole ---------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """The steps."""
        for at in range(HEAD, len(self.data) - STEP + 1, STEP):
            await self.step(*self.data[at : at + STEP])
        await trio.testing.wait_all_tasks_blocked()
        self.check()
        if self.ending == "drain":
            await self.drain()
        elif self.ending == "aclose":
            await self.connector.aclose()
        elif self.ending == "raise":
            raise Oops
        elif self.ending == "cancel":
            self.outer.cancel()
            await trio.lowlevel.checkpoint()

    async def drain(self) -> None:
        """All hosts are well, and all clients quick: then nobody waits for long."""
        for host in HOSTS:
            self.world.set_mood(host, *MOODS[0])
        self.hasty = True
        for lease in self.kept:
            lease.release()
        for client in self.clients:
            client.tell.send_nowait("leave")
            if client.holds:
                client.scope.deadline = trio.current_time() + 1  # it may be waiting for an answer that never comes
        await trio.sleep(100)
        if self.options["connect_timeout"] is not None:
            waiting = [client.number for client in self.clients if not client.done]
            assert not waiting, f"not everybody was served in the end: {waiting}"
        self.check()

    async def main(self) -> None:
        """The world, the connector, the steps, the end."""
        random.seed(self.seed)  # of the lifetimes' jitter
        async with trio.open_nursery() as peers:
            if self.kind == "memory":
                self.world: World = MemoryWorld(peers, {**self.options, "observers": [self.hear]})
            else:
                flags = {"tls": self.kind == "tls", "race": self.kind == "race"}
                self.world = SocketWorld(peers, {**self.options, "observers": [self.hear]}, **flags)
            self.connector = self.world.connector
            self.pool = self.connector._shell.pool
            self.targets = self.world.targets()
            self.clock: Any = trio.lowlevel.current_clock()
            with trio.CancelScope() as self.outer:
                try:
                    async with trio.open_nursery() as self.nursery:
                        try:
                            async with self.connector:
                                await self.play()
                        except Oops:
                            assert self.ending == "raise"
                        finally:
                            # Also of leases that are held, or parted from, while the connector ends.
                            for scope in self.prewarming:
                                scope.cancel()
                            for client in self.clients:
                                client.scope.cancel()
                finally:
                    self.kept.clear()
            self.check_end()
            peers.cancel_scope.cancel()

    def check_end(self) -> None:
        """The connector was left."""
        shell = self.connector._shell
        assert shell.crew.nursery is not None and not shell.crew.nursery.child_tasks
        assert not shell._runs and not shell.crew.busy
        statistics = self.connector.statistics()
        assert not statistics.open and not statistics.waiting and not statistics.hosts, statistics
        assert not self.world.live(), "a socket is left open"
        assert not self.world.excess, self.world.excess
        assert not self.queue


# As often as they stand here. The first does nothing: programs shrink towards it.
OPS = (
    *("settle", "connect", "connect", "connect", "connect", "connect", "connect", "connect"),
    *("release", "release", "release now", "release now", "release now", "ask", "ask", "aclose", "raise", "leave"),
    *("close now", "cancel waiter", "cancel waiter", "cancel any", "nowait", "nowait", "let go", "let go"),
    *("mood", "mood", "stray", "close", "reset", "half", "prewarm", "cancel prewarm"),
    *("sleep", "sleep", "sleep", "jump", "shut"),
)


def run_program(data: bytes) -> Counter[str]:
    """Run one program. Returns what happened in it, counted; a finding is an exception, with the steps in its note."""
    program = Program(data)
    try:
        with fixed_order(program.seed), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of the leases that are lost on purpose
            trio.run(program.main, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseException as error:
        told = "\n  ".join(program.log)
        error.add_note(f"run_program(bytes.fromhex({data.hex()!r}))  # seed {program.seed}")
        error.add_note(f"{program.kind}, {program.options}, end: {program.ending}\n  {told}")
        raise
    return program.found
