"""A route is the key: whatever decides whom we talk to, as whom, over what, how far trusted, makes two routes unequal.

Two tables. The first goes through every field of everything that a route consists of, by reflection: a field that is
added without a row fails. The second goes through what callers can say.
"""

from __future__ import annotations

import dataclasses
import gc
import ssl
from ipaddress import IPv4Address
from typing import Any

import pytest
import trio

import trioconn
from trioconn import Fingerprint, InvalidTargetError, Proxy, Route, TCPConnector
from trioconn._names import Host
from trioconn._route import (
    ConnectStep,
    ContextTrust,
    CustomHop,
    DefaultTrust,
    Hop,
    PipeHop,
    Secret,
    SocksStep,
    TCPHop,
    TLSStep,
    UnixHop,
)

HOST = Host("a.test")
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
OTHER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TRUST = ContextTrust.of(CONTEXT)

# One value of each part of a route, and for each of its fields another value.
PARTS: list[tuple[Any, dict[str, Any]]] = [
    (
        HOST,
        {"name": "b.test", "absolute": True, "address": IPv4Address("127.0.0.1"), "zone": "lo"},
    ),
    (TCPHop(HOST, 443), {"host": Host("b.test"), "port": 444, "local_addr": ("127.0.0.1", 0)}),
    (UnixHop("/t/a"), {"path": "/t/A"}),
    (PipeHop(r"\\.\pipe\a"), {"path": r"\\.\pipe\b"}),
    (CustomHop(HOST, 443), {"host": None, "port": 444}),
    (DefaultTrust(verified=True), {"verified": False}),
    (TRUST, {"context": OTHER_CONTEXT, "policy": (), "authorities": 7}),
    (
        TLSStep(DefaultTrust(verified=True), "a.test"),
        {"trust": TRUST, "server_name": None, "alpn": ("h2",), "pin": bytes(32), "hop": 0},
    ),
    (
        ConnectStep(HOST, 443, None, Secret(()), 0),
        {
            "host": Host("b.test"),
            "port": 444,
            "auth": Secret(("", "")),
            "headers": Secret(((b"A", b"b"),)),
            "hop": 1,
        },
    ),
    (
        SocksStep("socks5", HOST, 443, None, 0),
        {"kind": "socks5h", "host": Host("b.test"), "port": 444, "auth": Secret(("", "")), "hop": 1},
    ),
    (Secret(("u", "Secret")), {"value": ("u", "secret")}),
    (Hop("http", "p.test", 80), {"scheme": "https", "host": "q.test", "port": 81}),
]
ROUTE: dict[str, Any] = {
    "scheme": "https",
    "host": "a.test",
    "port": 443,
    "is_ssl": True,
    "endpoint": ("a.test", 443, True),
    "first": TCPHop(HOST, 443),
    "steps": (TLSStep(DefaultTrust(verified=True), "a.test"),),
}
ROUTE_FIELDS: dict[str, Any] = {
    "scheme": "wss",
    "host": "b.test",
    "port": 444,
    "is_ssl": False,
    "endpoint": ("b.test", 443, True),
    "first": TCPHop(HOST, 444),
    "steps": (),
    "proxies": (Hop("http", "p.test", 80),),
    "isolation": "x",
    "forwarded": True,
    "request_headers": Secret(()),
}
# What is only another view of `first` and `steps`, for people to read.
DERIVED = {"server_name", "alpn_protocols", "local_addr", "path"}
# The connector: routes of two connectors never meet, since each accepts only its own.
NOT_COMPARED = {"maker"}


@pytest.mark.security(2)
@pytest.mark.security(3)
@pytest.mark.security(18)
@pytest.mark.parametrize("part", PARTS, ids=lambda row: type(row[0]).__name__)
def test_every_field_of_every_part_makes_a_difference(part: tuple[Any, dict[str, Any]]) -> None:
    value, others = part
    assert set(others) == {field.name for field in dataclasses.fields(value)}, "a field has no row"
    for name, other in others.items():
        different = dataclasses.replace(value, **{name: other})
        assert different != value, name
        assert different == dataclasses.replace(value, **{name: other}), name
        assert len({value, different}) == 2


@pytest.mark.security(2)
def test_every_field_of_a_route_makes_a_difference() -> None:
    names = {field.name for field in dataclasses.fields(Route) if field.init}
    assert set(ROUTE_FIELDS) | DERIVED | NOT_COMPARED == names, "a field of Route has no row"
    route = Route(**ROUTE)
    assert route == Route(**ROUTE)
    assert hash(route) == hash(Route(**ROUTE))
    for name, other in ROUTE_FIELDS.items():
        assert Route(**ROUTE | {name: other}) != route, name


def test_the_parts_of_the_union_are_all_in_the_table() -> None:
    kinds = {type(value) for value, _ in PARTS}
    assert kinds >= {TCPHop, UnixHop, PipeHop, CustomHop, TLSStep, ConnectStep, SocksStep, DefaultTrust, ContextTrust}


def test_a_route_cannot_be_changed() -> None:
    route = Route(**ROUTE)
    for name in ("port", "steps", "isolation"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(route, name, None)


PROXY = "https://u:Secret@p.test"
SAYINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # what one caller said, what another one said: security.md section 3, attributes 3 to 26
    ({"target": "https://a.test"}, {"target": "https://b.test"}),
    ({"target": "https://a.test"}, {"target": "https://a.test."}),
    ({"target": "https://a.test"}, {"target": "https://a.test:444"}),
    ({"target": "https://a.test:80"}, {"target": "http://a.test"}),
    ({"target": "https://[fe80::1%1]"}, {"target": "https://[fe80::1%2]"}),
    ({"target": "https://[fe80::1%1]"}, {"target": "https://[fe80::1]"}),
    ({}, {"server_hostname": "b.test"}),
    ({"ssl": True}, {"ssl": False}),
    ({"ssl": True}, {"ssl": CONTEXT}),
    ({"ssl": CONTEXT}, {"ssl": OTHER_CONTEXT}),
    ({"ssl": Fingerprint(bytes(32))}, {"ssl": False}),
    ({"ssl": Fingerprint(bytes(32))}, {"ssl": Fingerprint(bytes(31) + b"x")}),
    ({"ssl": Fingerprint(bytes(32))}, {"ssl": Fingerprint(bytes(48))}),
    ({"ssl": Fingerprint(bytes(32))}, {"ssl": Fingerprint(bytes(32), context=CONTEXT)}),
    ({"ssl": CONTEXT}, {"ssl": Fingerprint(bytes(32), context=CONTEXT)}),
    ({}, {"alpn_protocols": ["h2"]}),
    ({"alpn_protocols": ["h2", "http/1.1"]}, {"alpn_protocols": ["http/1.1", "h2"]}),
    ({}, {"proxy": PROXY}),
    ({"proxy": PROXY}, {"proxy": "https://u:secret@p.test"}),
    ({"proxy": PROXY}, {"proxy": "https://U:Secret@p.test"}),
    ({"proxy": PROXY}, {"proxy": "https://p.test"}),
    ({"proxy": "https://p.test"}, {"proxy": Proxy("https://p.test", auth=("", ""))}),
    ({"proxy": "https://p.test"}, {"proxy": "http://p.test:443"}),
    ({"proxy": "https://p.test"}, {"proxy": "https://q.test"}),
    ({"proxy": "https://p.test"}, {"proxy": "https://p.test:444"}),
    ({"proxy": "https://p.test"}, {"proxy": Proxy("https://p.test", ssl=False)}),
    ({"proxy": "https://p.test"}, {"proxy": Proxy("https://p.test", ssl=CONTEXT)}),
    ({"proxy": "https://p.test"}, {"proxy": Proxy("https://p.test", ssl=Fingerprint(bytes(32)))}),
    ({"proxy": "https://p.test"}, {"proxy": Proxy("https://p.test", server_hostname="q.test")}),
    ({"proxy": "https://p.test"}, {"proxy": Proxy("https://p.test", headers={"A": "b"})}),
    ({"proxy": Proxy("https://p.test", headers={"A": "B"})}, {"proxy": Proxy("https://p.test", headers={"A": "b"})}),
    ({"proxy": "https://p.test", "proxy_headers": {"A": "b"}}, {"proxy": "https://p.test"}),
    ({"proxy": ["http://p.test", "http://q.test"]}, {"proxy": ["http://q.test", "http://p.test"]}),
    ({"proxy": ["http://p.test", "http://q.test"]}, {"proxy": "http://p.test"}),
    ({"proxy": "socks5://p.test"}, {"proxy": "socks5h://p.test"}),
    ({"proxy": "socks5://p.test"}, {"proxy": "socks5://u:p@p.test"}),
    ({"proxy": "socks5://u:p@p.test"}, {"proxy": "socks5://u:q@p.test"}),
    ({"target": "http://a.test", "proxy": "http://p.test"}, {"target": "ws://a.test", "proxy": "http://p.test"}),
    ({"target": "http://a.test", "proxy": PROXY}, {"target": "http://a.test", "proxy": "https://u:x@p.test"}),
    ({}, {"local_addr": ("127.0.0.1", 0)}),
    ({"local_addr": ("127.0.0.1", 0)}, {"local_addr": ("127.0.0.1", 1)}),
    ({}, {"isolation": ""}),
    ({"isolation": 1}, {"isolation": True}),
    ({"isolation": "a"}, {"isolation": b"a"}),
    ({"isolation": ("a", "b")}, {"isolation": ("a", "c")}),
]


@pytest.mark.security(1)
@pytest.mark.security(5)
@pytest.mark.security(9)
@pytest.mark.security(10)
@pytest.mark.security(11)
@pytest.mark.security(12)
@pytest.mark.security(15)
@pytest.mark.security(16)
@pytest.mark.security(31)
@pytest.mark.case("aiohttp#2981")
@pytest.mark.case("aiohttp#12835")
@pytest.mark.parametrize("pair", SAYINGS, ids=range(len(SAYINGS)))
def test_two_callers_who_said_different_things_never_share(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    connector = TCPConnector()
    one, two = (connector.route(**{"target": "https://a.test"} | saying) for saying in pair)
    again = connector.route(**{"target": "https://a.test"} | pair[0])
    assert one == again
    assert hash(one) == hash(again)
    assert one != two
    for route in (one, two):
        assert "Secret" not in repr(route)
        assert "secret" not in repr(route)


class Loose(trioconn.BaseConnector):
    """Dials into the void, and counts."""

    dials = 0

    async def create_stream(self, route: Route) -> trio.abc.Stream:
        self.dials += 1
        return trio.testing.memory_stream_pair()[0]


@pytest.mark.security(14)
@pytest.mark.parametrize(
    "saying", [{"ssl": False}, {"isolation": "x"}, {"server_hostname": "b.test"}, {"ssl": CONTEXT}]
)
async def test_unequal_routes_do_not_share_a_connection(saying: dict[str, Any]) -> None:
    async with Loose() as connector:
        for options, dials in (({}, 1), (saying, 2), ({}, 2), (saying, 2)):
            async with await connector.connect("https://a.test", **options) as conn:
                conn.release()
            assert connector.dials == dials


@pytest.mark.security(65)
async def test_context_policy_changed_between_two_leases() -> None:
    context = ssl.create_default_context()
    async with Loose(observers=[]) as connector:
        route = connector.route("https://a.test", ssl=context)
        for _ in range(2):
            async with await connector.connect(route) as conn:
                conn.release()
        assert connector.dials == 1
        context.check_hostname = False
        with pytest.raises(InvalidTargetError, match="changed after the route was made"):
            await connector.connect(route)
        with pytest.raises(InvalidTargetError, match="changed after the route was made"):
            connector.connect_nowait(route)
        # A new route is another key: what was made under the old policy is not handed out.
        async with await connector.connect("https://a.test", ssl=context) as conn:
            assert not conn.reused
        assert connector.dials == 2


async def test_the_plan_of_a_url_is_made_anew_when_a_context_changed() -> None:
    context = ssl.create_default_context()
    async with TCPConnector(ssl=context) as connector:
        # The connector's own context, through the cache of plans.
        with pytest.raises(trioconn.ConnectError):
            await connector.connect("https://127.0.0.1:1")
        context.check_hostname = False
        with pytest.raises(trioconn.ConnectError):
            await connector.connect("https://127.0.0.1:1")


def test_the_number_of_authorities_is_in_the_snapshot_and_not_asked_again(ca: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    before = ContextTrust.of(context)
    ca.configure_trust(context)
    assert before.is_current()  # OpenSSL loads authorities from directories as it meets them
    assert before != ContextTrust.of(context)


def test_the_identity_of_a_context_is_not_recycled() -> None:
    connector = TCPConnector()
    routes = set()
    for _ in range(50):
        routes.add(connector.route("https://a.test", ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)))
    gc.collect()
    assert len(routes) == 50
