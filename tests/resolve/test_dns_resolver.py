"""dnspython's resolver against a scripted name server on loopback."""

from __future__ import annotations

import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest
import trio

from trioconn._errors import ResolveError
from trioconn._establish.dns_cache import ResolveResult
from trioconn._establish.dns_resolver import DNSResolver
from trioconn._establish.resolve import Lookups
from trioconn._names import parse_host

from .fakes import V4, V6, addresses, texts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


class NameServer:
    """Answers by the script: records by (name, type), events that hold an answer back, response codes.

    A real server, because the order of the questions on the wire is to be seen.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[tuple[str, int, str, str]]] = {
            ("a.test.", "AAAA"): [("a.test.", 60, "AAAA", "2001:db8::1")],
            ("a.test.", "A"): [("a.test.", 30, "A", "192.0.2.1")],
        }
        self.gates: dict[str, trio.Event] = {}
        self.codes: dict[str, dns.rcode.Rcode] = {}
        self.truncated: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.asked_over_tcp: list[tuple[str, str]] = []
        self.port = 0

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listener = await self.listen()
        with trio.socket.socket(V4, socket.SOCK_DGRAM) as listening:
            await listening.bind(("127.0.0.1", self.port))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self.talk, [listener])
                task_status.started()
                while True:
                    wire, peer = await listening.recvfrom(4096)
                    query = dns.message.from_wire(wire)
                    kind = dns.rdatatype.to_text(query.question[0].rdtype)
                    self.asked.append((str(query.question[0].name), kind))
                    nursery.start_soon(self.answer, listening, peer, query, kind)

    async def listen(self) -> trio.SocketListener:
        """On a port that is free for datagrams as well."""
        while True:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
            try:
                with socket.socket(V4, socket.SOCK_DGRAM) as trial:
                    trial.bind(("127.0.0.1", self.port))
                return listener
            except OSError:
                await listener.aclose()

    async def talk(self, stream: trio.SocketStream) -> None:
        """One question over TCP, which is preceded by its length, as the answer is."""
        wire = b""
        while len(wire) < 2 or len(wire) < 2 + int.from_bytes(wire[:2], "big"):
            wire += await stream.receive_some()
        query = dns.message.from_wire(wire[2:])
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked_over_tcp.append((str(query.question[0].name), kind))
        response = self.response(query, kind).to_wire()
        await stream.send_all(len(response).to_bytes(2, "big") + response)

    async def answer(self, listening: Any, peer: Any, query: Any, kind: str) -> None:
        if kind in self.gates:
            await self.gates[kind].wait()
        response = self.response(query, kind)
        if kind in self.truncated:
            response.flags |= dns.flags.TC
            response.answer.clear()
        await listening.sendto(response.to_wire(), peer)

    def response(self, query: Any, kind: str) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        response.set_rcode(self.codes.get(kind, dns.rcode.NOERROR))
        for record in self.records.get((str(query.question[0].name), kind), []):
            name, ttl, record_kind, data = record
            response.answer.append(dns.rrset.from_text(name, ttl, "IN", record_kind, data))
        return response


@asynccontextmanager
async def running() -> AsyncGenerator[tuple[NameServer, DNSResolver]]:
    server = NameServer()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server, DNSResolver(nameservers=["127.0.0.1"], port=server.port, lifetime=1.0, hosts_file="/nonexistent")
        nursery.cancel_scope.cancel()


async def test_records_and_their_ttls() -> None:
    async with running() as (_server, resolver):
        assert await resolver.resolve("a.test", family=V6) == [ResolveResult("2001:db8::1", V6, 60.0)]
        assert await resolver.resolve("a.test") == [
            ResolveResult("2001:db8::1", V6, 60.0),
            ResolveResult("192.0.2.1", V4, 30.0),
        ]


@pytest.mark.security(93)
async def test_ttl_of_the_whole_chain_of_aliases() -> None:
    async with running() as (server, resolver):
        server.records["a.test.", "A"] = [("a.test.", 3, "CNAME", "b.test."), ("b.test.", 70, "A", "192.0.2.2"),
                                          ("evil.test.", 9, "A", "192.0.2.66")]  # fmt: skip
        assert await resolver.resolve("a.test", family=V4) == [ResolveResult("192.0.2.2", V4, 3.0)]


async def test_aaaa_is_on_the_wire_first() -> None:
    async with running() as (server, resolver), trio.open_nursery() as nursery:
        lookups = Lookups(resolver, cache=None)
        lookups.start(nursery)
        for _ in range(20):
            await addresses(lookups.open(parse_host("a.test")))
        for _ in range(5):
            await resolver.resolve("a.test")
        assert server.asked == [("a.test.", "AAAA"), ("a.test.", "A")] * 25


@pytest.mark.parametrize(("slow", "first"), [("AAAA", V4), ("A", V6)])
async def test_neither_family_waits_for_the_other(slow: str, first: int) -> None:
    async with running() as (server, resolver), trio.open_nursery() as nursery:
        server.gates[slow] = trio.Event()
        lookups = Lookups(resolver, cache=None)
        lookups.start(nursery)
        async with lookups.open(parse_host("a.test")) as answers:
            assert (await answers.receive()).family == first
            server.gates[slow].set()
            assert (await answers.receive()).family != first


async def test_an_answer_that_never_comes_does_not_spoil_the_other() -> None:
    async with running() as (server, resolver):
        server.gates["AAAA"] = trio.Event()
        assert texts(await resolver.resolve("a.test")) == ["192.0.2.1"]


async def test_no_such_name_no_record_and_broken_server() -> None:
    async with running() as (server, resolver):
        assert await resolver.resolve("b.test", family=V4) == []
        assert await resolver.resolve("b.test") == []
        server.codes = {"A": dns.rcode.NXDOMAIN, "AAAA": dns.rcode.NXDOMAIN}
        with pytest.raises(ResolveError, match="does not exist") as caught:
            await resolver.resolve("b.test")
        assert caught.value.errno == socket.EAI_NONAME
        server.codes = {"A": dns.rcode.SERVFAIL, "AAAA": dns.rcode.SERVFAIL}
        with pytest.raises(ResolveError, match="question for A"):
            await resolver.resolve("a.test", family=V4)


async def test_hosts_file_and_localhost_are_not_asked_for(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.7 a.test\n")
    async with running() as (server, _):
        resolver = DNSResolver(nameservers=["127.0.0.1"], port=server.port, hosts_file=hosts)
        assert await resolver.resolve("A.test.") == [ResolveResult("192.0.2.7", V4)]
        assert texts(await resolver.resolve("localhost")) == ["::1", "127.0.0.1"]
        assert texts(await resolver.resolve("x.localhost.", family=V4)) == ["127.0.0.1"]
        assert not server.asked


async def test_single_labels_are_asked_as_they_are() -> None:
    async with running() as (server, resolver):
        server.records["host.", "A"] = [("host.", 5, "A", "192.0.2.3")]
        assert texts(await resolver.resolve("host", family=V4)) == ["192.0.2.3"]


@pytest.mark.parametrize("kinds", [{"AAAA"}, {"A"}, {"A", "AAAA"}], ids=lambda kinds: "+".join(sorted(kinds)))
async def test_an_answer_too_long_for_a_datagram_is_asked_for_over_tcp(kinds: set[str]) -> None:
    async with running() as (server, resolver):
        server.truncated = kinds
        server.records["a.test.", "AAAA"] = [("a.test.", 60, "AAAA", f"2001:db8::{n:x}") for n in range(1, 100)]
        assert texts(await resolver.resolve("a.test")) == [*(f"2001:db8::{n:x}" for n in range(1, 100)), "192.0.2.1"]
        assert {kind for _, kind in server.asked_over_tcp} == kinds


async def test_name_servers_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for when the first name is, not when the resolver is made: the network may change in between."""
    async with running() as (server, _):
        resolver = DNSResolver(port=server.port, hosts_file="/nonexistent")

        def configure(resolver: dns.resolver.BaseResolver, *_: object) -> None:
            resolver.nameservers = ["127.0.0.1"]

        monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", configure)
        monkeypatch.setattr(dns.resolver.BaseResolver, "read_registry", configure)
        assert texts(await resolver.resolve("a.test")) == ["2001:db8::1", "192.0.2.1"]


async def test_cancellation_leaves_nothing_behind() -> None:
    async with running() as (server, resolver):
        server.gates = {"A": trio.Event(), "AAAA": trio.Event()}
        with trio.move_on_after(0.05) as scope:
            await resolver.resolve("a.test")
        assert scope.cancelled_caught
        server.gates = {}
        assert len(await resolver.resolve("a.test")) == 2


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(ImportError, match=r"trioconn\[dns\]"):
        DNSResolver()
