"""Whose connection it is: what one caller said is never answered by what was made for another, nor by chance."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn
from trioconn import CertificateError, Fingerprint, Proxy
from trioconn._establish import tls_context

from .peers import LOGIN, Loopback, Peer, Proxies, read_head

if TYPE_CHECKING:
    from trioconn import Connection

    from .conftest import Authority

pytest.importorskip("socksio", reason="the extra socks is not installed")


async def ping(conn: Connection) -> None:
    await conn.stream.send_all(b"x")
    assert await conn.stream.receive_some() == b"x"


async def use(connector: Any, target: str, **options: Any) -> bool:
    """A lease that is given back: whether it was of a connection that had served before."""
    async with await connector.connect(target, **options) as conn:
        await ping(conn)
        reused: bool = conn.reused
        conn.release()
    return reused


@pytest.mark.security(2)
@pytest.mark.security(5)
@pytest.mark.security(9)
@pytest.mark.security(10)
@pytest.mark.security(11)
@pytest.mark.security(16)
async def test_every_option_of_a_call_makes_a_connection_of_its_own(way: Any, ca1: Authority) -> None:
    async with way("direct", ca1.server("a.test", "b.test")) as w:
        context, other = ca1.client(), ca1.client()
        http, socks = w.proxies.url("http"), w.proxies.url("socks5h")
        sayings: list[dict[str, Any]] = [
            {},
            {"ssl": context},
            {"ssl": other},
            {"ssl": False},
            {"ssl": Fingerprint(await leaf_digest(w))},
            {"ssl": Fingerprint(await leaf_digest(w), context=context)},
            {"server_hostname": "b.test"},
            {"local_addr": ("127.0.0.1", 0)},
            {"isolation": "x"},
            {"isolation": ""},
            {"isolation": 1},
            {"isolation": True},
            {"ssl": False, "alpn_protocols": ["h2"]},
            {"ssl": False, "alpn_protocols": ["h2", "http/1.1"]},
            {"proxy": http},
            {"proxy": http, "proxy_headers": {"X": "y"}},
            {"proxy": http, "proxy_headers": {"X": "Y"}},
            {"proxy": Proxy(http, auth=("u", "Secret"))},
            {"proxy": Proxy(http, auth=("u", "secret"))},
            {"proxy": Proxy(http, auth=("u", ""))},
            {"proxy": Proxy(socks, auth=("u", "Secret"))},
            {"proxy": socks},
            {"proxy": w.proxies.url("socks5")},
            {"proxy": Proxy(w.proxies.url("https"), ssl=context)},
            {"proxy": Proxy(w.proxies.url("https"), ssl=other)},
            {"proxy": Proxy(w.proxies.url("https"), ssl=False)},
            {"proxy": [http, socks]},
            {"proxy": [socks, http]},
        ]
        target = w.target("https")
        before = len(w.peer.visits)
        for _ in range(2):
            for saying in sayings:
                first = len(w.peer.visits) < before + len(sayings)
                assert await use(w.connector, target, **saying) is not first, saying
        assert len(w.peer.visits) == before + len(sayings)
        assert w.connector.statistics().idle == len(sayings)


async def leaf_digest(w: Any) -> bytes:
    async with await w.connector.connect(w.target("https"), isolation="asking") as conn:
        certificate = conn.info.tls[-1].certificate
        assert certificate
    return sha256(certificate).digest()


@pytest.mark.security(4)
async def test_paths_are_compared_byte_by_byte(ca1: Authority) -> None:
    with tempfile.TemporaryDirectory(prefix="tc-") as folder:
        names = ["A", "a", "ä", "a\u0308"]  # the last two look the same
        paths = [os.path.join(folder, name) for name in names]
        if len({os.path.normcase(path) for path in paths}) < len(paths):
            pytest.skip("this system's paths do not tell upper case from lower")
        for path, name in zip(paths, names, strict=True):
            said = name.encode()
            with Peer(ca1.server(), lambda visit, said=said: visit.sock.sendall(visit.sock.recv(1) + said), path=path):
                async with trioconn.UnixConnector(path) as connector:
                    async with await connector.connect("unix:") as conn:
                        await conn.stream.send_all(b"x")
                        assert await conn.stream.receive_some() == b"x" + said
                    route = connector.route("unix:")
                    assert [route == trioconn.UnixConnector(p).route("unix:") for p in paths] == [
                        p == path for p in paths
                    ]


@pytest.mark.security(14)
@pytest.mark.parametrize("schemes", [("http", "https"), ("https", "http"), ("tcp", "tls"), ("wss", "ws")])
async def test_one_port_that_speaks_both(way: Any, ca1: Authority, schemes: tuple[str, str]) -> None:
    async with way("direct", ca1.server()) as w:
        for scheme in schemes * 2:
            await use(w.connector, w.target(scheme))
        assert [visit.first == b"\x16" for visit in w.peer.visits] == [
            scheme in ("https", "wss", "tls") for scheme in schemes
        ]


@pytest.mark.security(15)
@pytest.mark.parametrize("path", ["direct", "unix", "http", "socks5h"])
async def test_unverified_is_nobody_elses(way: Any, ca2: Authority, path: str) -> None:
    """A connection that somebody made without verification is not for those who want it."""
    async with way(path, ca2.server()) as w:
        await use(w.connector, w.target("https"), ssl=False)
        assert await use(w.connector, w.target("https"), ssl=False)
        for options in ({}, {"ssl": True}):
            with pytest.raises(CertificateError):
                await w.connector.connect(w.target("https"), **options)
            with pytest.raises(trio.WouldBlock):
                w.connector.connect_nowait(w.target("https"), **options)
        assert len(w.peer.visits) == 3
        assert await use(w.connector, w.target("https"), ssl=False)


@pytest.mark.security(16)
async def test_the_server_name_of_a_call(way: Any, ca1: Authority) -> None:
    async with way("direct", ca1.server("a.test")) as w:
        await use(w.connector, w.target("https", "127.0.0.1"), server_hostname="a.test")
        with pytest.raises(CertificateError, match=r"b\.test"):
            await w.connector.connect(w.target("https", "127.0.0.1"), server_hostname="b.test")
        assert [visit.sni for visit in w.peer.visits] == ["a.test", "b.test"]


@pytest.mark.security(17)
async def test_two_origins_behind_one_socks_proxy(ca1: Authority) -> None:
    proxies = Proxies()
    with Peer(ca1.server()) as one, Peer(ca1.server()) as two:
        async with (
            proxies.running(),
            trioconn.TCPConnector(ssl=ca1.client(), proxy=proxies.url("socks5h"), resolver=Loopback()) as connector,
        ):
            for _ in range(2):
                await use(connector, f"tcp://a.test:{one.port}")
                await use(connector, f"https://a.test:{two.port}")
    assert [told[2:] for told in proxies.socks] == [(b"a.test", one.port), (b"a.test", two.port)]
    assert [peer.visits[0].first for peer in (one, two)] == [b"x", b"\x16"]


@pytest.mark.security(21)
@pytest.mark.security(22)
async def test_contexts_are_kept_apart(way: Any, ca1: Authority) -> None:
    """Two connectors with contexts of their own, in turns: each connection is made with its own."""
    old, new = ca1.client(), ca1.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    async with (
        way("direct", ca1.server(), force_close=True, ssl=old) as w,
        trioconn.TCPConnector(resolver=Loopback(), ssl=new, force_close=True) as other,
    ):
        for _ in range(3):
            await use(w.connector, w.target("https"))
            await use(other, w.target("https"))
            await use(other, w.target("https"), ssl=False)
            await w.peer.visits[-1].wait_shaken()
        assert [visit.version for visit in w.peer.visits] == ["TLSv1.2", "TLSv1.3", "TLSv1.3"] * 3
        # A default context is one per set of options; what is verified is not the one that verifies nothing.
        with pytest.raises(CertificateError):
            await other.connect(w.target("https"), ssl=True)
        await use(other, w.target("https"), ssl=False, alpn_protocols=["h2"])
        with pytest.raises(CertificateError):
            await other.connect(w.target("https"), ssl=True, alpn_protocols=["h2"])


@pytest.mark.security(6)
@pytest.mark.security(7)
@pytest.mark.security(8)
async def test_isolation(way: Any, ca1: Authority) -> None:
    tags: list[Any] = [
        None,
        "",
        "alice",
        "bob",
        "Alice",
        b"alice",
        0,
        False,
        (),
        ("alice",),
        ("alice", "x"),
        (("alice",),),
    ]
    async with way("direct", ca1.server()) as w:
        for reused in (False, True):
            for tag in tags:
                assert await use(w.connector, w.target("tcp"), isolation=tag) is reused, tag
        # What is bound to an identity for good is not given back at all.
        async with await w.connector.connect(w.target("tcp"), isolation="once") as conn:
            await ping(conn)
        with pytest.raises(trio.WouldBlock):
            w.connector.connect_nowait(w.target("tcp"), isolation="once")
        assert w.connector.statistics().idle == len(tags)


@pytest.mark.security(94)
async def test_ended_twice_touches_nobody_elses_descriptor(way: Any, ca1: Authority) -> None:
    async with way("direct", ca1.server()) as w:
        conn = await w.connector.connect(w.target("https"))
        stream, number = conn.stream, w.sockets[0].fileno()
        conn.close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            spare = []
            while ours.fileno() != number and len(spare) < 50 and theirs.fileno() != number:
                spare.append(socket.socket())
                if spare[-1].fileno() == number:
                    break
            conn.close()
            conn.release()
            await conn.aclose()
            await stream.aclose()
            w.sockets[0].close_nowait()
            ours.sendall(b"x")
            assert theirs.recv(1) == b"x"
            for each in spare:
                each.getsockname()  # still open
                each.close()


# What proxies are told, and origins are not


@pytest.mark.security(25)
@pytest.mark.security(26)
@pytest.mark.security(28)
@pytest.mark.security(30)
@pytest.mark.parametrize("scheme", ["https", "wss", "ws", "tcp", "tls"])
@pytest.mark.parametrize("kind", ["http", "https"])
async def test_a_connect_says_what_is_for_the_proxy_and_origins_hear_nothing_of_it(
    way: Any, ca1: Authority, scheme: str, kind: str
) -> None:
    async with way("direct", ca1.server()) as w:
        proxy = Proxy(
            w.proxies.url(kind),
            auth=LOGIN,
            headers={"X-Tenant": "hidden"},
            **({"ssl": ca1.client()} if kind == "https" else {}),
        )
        conn = await w.connector.connect(w.target(scheme), proxy=proxy)
        assert (conn.forwarded, conn.proxy_headers) == (False, ())
        await conn.stream.send_all(b"Cookie: mine")
        assert await conn.stream.receive_some() == b"Cookie: mine"
        (head,) = w.proxies.heads
        authority = f"a.test:{w.peer.port}"
        assert head.split(b"\r\n") == [
            f"CONNECT {authority} HTTP/1.1".encode(),
            f"Host: {authority}".encode(),
            b"Proxy-Authorization: Basic aGlkZGVuLXVzZXI6aGlkZGVuLXBhc3N3b3Jk",
            b"X-Tenant: hidden",
            b"",
            b"",
        ]
        assert bytes(w.peer.visits[0].data) == b"Cookie: mine"
        conn.close()


@pytest.mark.security(31)
async def test_each_proxy_gets_its_own_login_and_no_other(ca1: Authority) -> None:
    one, two = Proxies(), Proxies()
    with Peer(ca1.server()) as peer:
        async with one.running(), two.running(), trioconn.TCPConnector(resolver=Loopback()) as connector:
            target = f"tcp://a.test:{peer.port}"
            await use(connector, target, proxy=Proxy(one.url("http"), auth=LOGIN))
            await use(connector, target, proxy=two.url("http"))
            await use(connector, target, proxy=one.url("http"))
            await use(connector, target, proxy=[Proxy(one.url("http"), auth=LOGIN), two.url("http", "127.0.0.1")])
            await use(connector, target, proxy=[two.url("http"), Proxy(one.url("http", "127.0.0.1"), auth=LOGIN)])
    assert [b"Authorization" in head for head in one.heads] == [True, False, True, True]
    assert [b"Authorization" in head for head in two.heads] == [False, False, False]


@pytest.mark.security(29)
@pytest.mark.parametrize("status", [401, 407])
@pytest.mark.parametrize("login", [None, LOGIN])
async def test_who_asks_for_a_password_gets_no_more_than_it_had(status: int, login: tuple[str, str] | None) -> None:
    heads: list[bytes] = []

    async def refuse(stream: trio.SocketStream) -> None:
        while True:
            try:
                heads.append(await read_head(stream))
            except trio.BrokenResourceError:
                return
            await stream.send_all(
                b"HTTP/1.1 %d no\r\nWWW-Authenticate: Basic realm=x\r\nProxy-Authenticate: Basic realm=x\r\n"
                b"Content-Length: 0\r\n\r\n" % status
            )

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, refuse, 0)
        port = listeners[0].socket.getsockname()[1]
        async with trioconn.TCPConnector(resolver=Loopback()) as connector:
            with pytest.raises(trioconn.ProxyRefusedError) as caught:
                await connector.connect("https://a.test", proxy=Proxy(f"http://127.0.0.1:{port}", auth=login))
            assert caught.value.status == status
            assert connector.statistics().open == 0
        nursery.cancel_scope.cancel()
    assert len(heads) == 1
    assert heads[0].lower().count(b"authorization") == (login is not None)


# ALPN, client certificates, key log


@pytest.mark.parametrize("path", ["direct", "unix", "https"])
async def test_alpn(way: Any, ca1: Authority, path: str) -> None:
    server = ca1.server()
    server.set_alpn_protocols(["h2", "http/1.1"])
    own = ca1.client()
    own.set_alpn_protocols(["http/1.1"])
    async with way(path, server) as w:
        for options, agreed in (
            ({"ssl": False, "alpn_protocols": ["http/1.1", "h2"]}, "h2"),
            ({"ssl": False, "alpn_protocols": ("http/1.1",)}, "http/1.1"),
            ({"ssl": False, "alpn_protocols": ["x"]}, None),
            ({"ssl": False}, None),
            ({"ssl": own}, "http/1.1"),
        ):
            async with await w.connector.connect(w.target("https"), **options) as conn:
                await ping(conn)
                assert conn.info.tls[-1].alpn == conn.stream.selected_alpn_protocol() == agreed
                assert w.peer.visits[-1].alpn == agreed
                assert conn.route.alpn_protocols == tuple(options.get("alpn_protocols", ()))
        with pytest.raises(TypeError, match="set_alpn_protocols"):
            await w.connector.connect(w.target("https"), ssl=own, alpn_protocols=["h2"])


@pytest.mark.security(42)
@pytest.mark.parametrize("path", ["direct", "unix", "http", "https", "socks5h", "https-socks5h"])
async def test_client_certificates_are_the_targets_and_never_the_proxys(way: Any, ca1: Authority, path: str) -> None:
    server = ca1.server()
    server.verify_mode = ssl.CERT_REQUIRED
    ca1.ca.configure_trust(server)
    async with way(path, server, ssl=ca1.client("alice")) as w:
        assert w.proxies.context is not None
        w.proxies.context.verify_mode = ssl.CERT_OPTIONAL
        ca1.ca.configure_trust(w.proxies.context)
        conn = await w.connector.connect(w.target("https"))
        await ping(conn)
        assert w.peer.visits[0].client == "alice"
        assert w.proxies.clients == ([None] if "https" in path else [])
        conn.close()
        # None is picked by itself. TLS 1.3 tells the handshake's outcome with the first data.
        async with await w.connector.connect(w.target("https"), ssl=ca1.client()) as conn:
            with pytest.raises(trio.BrokenResourceError, match="certificate required"):
                await ping(conn)


async def test_a_key_log_by_the_environment(
    way: Any, ca1: Authority, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSLKEYLOGFILE is for the contexts that this library makes, when it makes them."""
    log = tmp_path / "keys"
    async with way("direct", ca1.server()) as w:
        monkeypatch.setattr(tls_context, "_contexts", type(tls_context._contexts)())
        monkeypatch.setenv("SSLKEYLOGFILE", os.fspath(log))
        await use(w.connector, w.target("https"), ssl=False)
        monkeypatch.delenv("SSLKEYLOGFILE")
        text = log.read_text()
        assert "CLIENT_TRAFFIC_SECRET_0" in text
        await use(w.connector, w.target("https"))  # a caller's context is left as it is
        assert log.read_text() == text


async def test_a_key_log_that_cannot_be_written(
    way: Any, ca1: Authority, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with way("direct", ca1.server()) as w:
        monkeypatch.setattr(tls_context, "_contexts", type(tls_context._contexts)())
        monkeypatch.setenv("SSLKEYLOGFILE", os.fspath(tmp_path / "no such folder" / "keys"))
        with pytest.raises(trioconn.TLSError, match="SSLKEYLOGFILE") as caught:
            await w.connector.connect(w.target("https"), ssl=False)
        assert (caught.value.stage, caught.value.hop) == ("tls", -1)
        with pytest.raises(trioconn.ProxyConnectError, match="SSLKEYLOGFILE"):
            await w.connector.connect(w.target("tcp"), proxy=w.proxies.url("https"))
        w.check_closed()
        monkeypatch.delenv("SSLKEYLOGFILE")
        await use(w.connector, w.target("https"), ssl=False)


@pytest.mark.security(65)
@pytest.mark.parametrize("granted", ["a connection", "an attempt"])
async def test_a_policy_changed_while_somebody_waits(way: Any, ca1: Authority, granted: str) -> None:
    """Who asked under one policy is not given, under another, what was made before."""
    context = ca1.client()
    outcome: list[BaseException] = []
    async with way("direct", ca1.server(), ssl=context, limit=1) as w:
        holder = await w.connector.connect(w.target("https" if granted == "a connection" else "tcp"))

        async def wait() -> None:
            with pytest.raises(trioconn.InvalidTargetError, match="changed") as caught:
                await w.connector.connect(w.target("https"))
            outcome.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            holder.release() if granted == "a connection" else holder.close()
        assert len(outcome) == 1
        w.check_closed()


@pytest.mark.security(65)
async def test_a_policy_changed_in_the_checkpoint_of_connect(way: Any, ca1: Authority) -> None:
    context = ca1.client()
    async with way("direct", ca1.server()) as w:
        route = w.connector.route(w.target("https"), ssl=context)

        async def change() -> None:
            context.check_hostname = False

        async def ask() -> None:
            with pytest.raises(trioconn.InvalidTargetError, match="changed"):
                await w.connector.connect(route)

        for _ in range(10):  # trio shuffles who comes first
            context.check_hostname = True
            async with await w.connector.connect(route) as conn:
                await ping(conn)
                conn.release()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(change)
        assert 1 <= len(w.peer.visits) <= 10
