"""What a peer did to a connection at rest is found before anybody gets it, and how connections end."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn
from trioconn import ConnectError, TLSError

from .peers import LOGIN, Visit, echo

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Authority

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
both = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])
FAKE = b"HTTP/1.1 200 OK\r\n\r\n"


def say_close_notify(visit: Visit) -> None:
    visit.sock.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError):
        visit.sock.unwrap()  # type: ignore[attr-defined]


class Prank:
    """Answers once; then does `act` when told to, in its own thread, and waits for the end."""

    def __init__(self, act: Callable[[Visit], object]) -> None:
        self._act = act
        self._go = threading.Event()
        self._done = threading.Event()

    def __call__(self, visit: Visit) -> None:
        visit.sock.sendall(visit.sock.recv(100))
        assert self._go.wait(20)
        self._act(visit)
        self._done.set()
        if visit.sock.fileno() != -1:
            visit.sock.settimeout(20)
            socket.socket.recv(visit.sock, 1000)

    def play(self) -> None:
        """Do it, and return when it is done. Blocks: no task runs meanwhile, and no event loop looks."""
        self._go.set()
        assert self._done.wait(20)


PRANKS: dict[str, tuple[Callable[[Visit], object], str]] = {
    "an answer that nobody asked for": (lambda visit: visit.sock.sendall(FAKE), "stray bytes"),
    "close_notify": (say_close_notify, "server closed"),
    "FIN": (lambda visit: socket.socket.shutdown(visit.sock, socket.SHUT_WR), "server closed"),
    "RST": (Visit.reset, "server closed"),
    "an answer and FIN": (
        lambda visit: (visit.sock.sendall(FAKE), socket.socket.shutdown(visit.sock, socket.SHUT_WR)),
        "stray bytes",
    ),
    "no TLS at all": (lambda visit: visit.send_raw(FAKE), "error"),
    "half a record": (lambda visit: visit.send_raw(b"\x17\x03\x03\x00\x40half"), "stray bytes"),
}


@both
@pytest.mark.security(57)
@pytest.mark.security(58)
@pytest.mark.parametrize("idle", [True, False], ids=["while idle", "before the release"])
@pytest.mark.parametrize("prank", PRANKS)
async def test_found_without_a_checkpoint(
    way: Any, ca1: Authority, prank: str, idle: bool, version: ssl.TLSVersion
) -> None:
    act, reason = PRANKS[prank]
    peer = Prank(act)
    with trio.fail_after(20):
        async with way("direct", ca1.server(version=version), lambda v: peer(v) if v is first[0] else echo(v)) as w:
            first = w.peer.visits
            conn = await w.connector.connect(w.target("https"))
            await conn.stream.send_all(b"x")
            assert await conn.stream.receive_some() == b"x"
            assert conn.stream.probe()
            if idle:
                conn.release()
                assert w.connector.statistics().idle == 1
                peer.play()
                with pytest.raises(trio.WouldBlock):
                    w.connector.connect_nowait(w.target("https"))
            else:
                peer.play()
                conn.release()
            w.check_closed()
            assert dict(w.connector.statistics().closed) == {reason: 1}
            async with await w.connector.connect(w.target("https")) as conn:
                assert not conn.reused
                await conn.stream.send_all(b"mine")
                assert await conn.stream.receive_some() == b"mine"


@pytest.mark.parametrize(("tickets", "kept"), [(100, True), (1000, False)])
async def test_endless_tickets_are_bounded(way: Any, ca1: Authority, tickets: int, kept: bool) -> None:
    context = ca1.server(version=V13)
    context.num_tickets = tickets
    with trio.fail_after(20):
        async with way("direct", context) as w:
            await w.connector.prewarm(w.target("https"), 1)
            await w.peer.visits[0].wait_shaken()  # the tickets are the end of the server's handshake
            if kept:
                conn = w.connector.connect_nowait(w.target("https"))
                await conn.stream.send_all(b"x")
                assert await conn.stream.receive_some() == b"x"
                conn.release()
            with pytest.raises(trio.WouldBlock) if not kept else contextlib.nullcontext():
                w.connector.connect_nowait(w.target("https")).close()
            assert dict(w.connector.statistics().closed) == {"not released" if kept else "stray bytes": 1}


@pytest.mark.security(23)
@pytest.mark.parametrize("path", ["http", "https", "socks5h", "https-socks5h"])
async def test_a_dead_connection_is_replaced_by_one_of_the_same_kind(way: Any, ca1: Authority, path: str) -> None:
    """What is dialled anew has everything that the first one had: TLS, names, logins, certificate, local address."""
    server = ca1.server()
    server.verify_mode = ssl.CERT_REQUIRED
    ca1.ca.configure_trust(server)
    peer = Prank(lambda visit: socket.socket.shutdown(visit.sock, socket.SHUT_WR))
    with trio.fail_after(20):
        async with way(
            path,
            server,
            lambda v: peer(v) if v is seen[0] else echo(v),
            ssl=ca1.client("alice"),
            local_addr=("127.0.0.1", 0),
        ) as w:
            seen = w.peer.visits
            conn = await w.connector.connect(w.target("wss"))
            await conn.stream.send_all(b"x")
            assert await conn.stream.receive_some() == b"x"
            conn.release()
            peer.play()
            await w.peer.visits[0].wait_ended()  # the end has come through the proxies, and back
            conn = await w.connector.connect(w.target("wss"))
            await conn.stream.send_all(b"x")
            assert await conn.stream.receive_some() == b"x"
            first, second = w.peer.visits
            for what in ("first", "sni", "client", "version", "alpn"):
                assert getattr(first, what) == getattr(second, what)
            assert (second.first, second.sni, second.client) == (b"\x16", "a.test", "alice")
            for told in (w.proxies.heads, w.proxies.socks):
                assert told[: len(told) // 2] == told[len(told) // 2 :]
            assert b"Basic aGlkZGVu" in b"".join(w.proxies.heads) or w.proxies.socks[1][0] == LOGIN[0].encode()
            conn.close()


# Before the handshake


@pytest.mark.security(55)
@pytest.mark.parametrize("path", ["direct", "unix", "custom", "http", "socks5h"])
@pytest.mark.parametrize("said", [FAKE, b"\x00", b"", b"\x15\x03\x03\x00\x02\x01\x00", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_what_comes_before_the_handshake_is_no_data(way: Any, ca1: Authority, path: str, said: bytes) -> None:
    """Plain text, one byte, nothing, close_notify and an alert; and then the end."""

    def speak(visit: Visit) -> None:
        with contextlib.suppress(OSError):
            visit.sock.sendall(said)
            visit.sock.shutdown(socket.SHUT_WR)
            while visit.sock.recv(1000):
                pass

    options = {"ssl": ca1.client()} if path == "custom" else {}
    with trio.fail_after(20):
        async with way(path, ca1.server(), raw=speak) as w:
            with pytest.raises(ConnectError) as caught:
                await w.connector.connect(w.target("https"), **options)
            w.check_closed()
            if path in ("direct", "unix", "custom"):
                assert type(caught.value) is TLSError
                assert (caught.value.stage, caught.value.hop) == ("tls", -1)


@pytest.mark.security(48)
@pytest.mark.parametrize("path", ["direct", "unix", "custom", "http", "https", "socks5h"])
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x03\x10\x00\x02", b"\x00"])
async def test_a_handshake_that_never_ends(way: Any, ca1: Authority, path: str, said: bytes) -> None:
    def stall(visit: Visit) -> None:
        visit.sock.sendall(said)
        while visit.sock.recv(1000):
            pass

    options = {"ssl": ca1.client()} if path == "custom" else {}
    with trio.fail_after(20):
        async with way(path, ca1.server(), raw=stall, connect_timeout=0.3) as w:
            with pytest.raises(trioconn.ConnectTimeoutError) as caught:
                await w.connector.connect(w.target("https"), **options)
            w.check_closed()
            if path != "custom":  # which says nothing of how far it has come
                assert (caught.value.stage, caught.value.hop) == ("tls", -1)
            await w.peer.visits[0].wait_ended()


@pytest.mark.security(56)
@pytest.mark.parametrize("path", ["direct", "http"])
async def test_a_failed_handshake_hands_out_nothing(way: Any, ca1: Authority, ca2: Authority, path: str) -> None:
    """The stream below a handshake that failed is closed: nobody can read what the stranger sent."""
    async with way(path, ca2.server(), lambda visit: visit.sock.sendall(b"secret of a stranger")) as w:
        with pytest.raises(trioconn.CertificateError):
            await w.connector.connect(w.target("https"))
        w.check_closed()
        for stream in w.sockets:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")


# Saying goodbye


def note_the_end(visit: Visit) -> None:
    """Tell close_notify from an end without one, answer it, and send what comes back."""
    visit.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    try:
        echo(visit)
    except ssl.SSLEOFError:
        visit.rest = b"cut"
        raise
    visit.rest = b"close_notify"
    with contextlib.suppress(OSError):
        visit.sock.unwrap()  # type: ignore[attr-defined]


ENDINGS = [
    "close", "aclose", "exception", "expiry", "evicted", "connector.aclose", "connector left", "abort_ssl", "no grace",
]  # fmt: skip


@both
@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_peer_hears_the_end(way: Any, ca1: Authority, ending: str, version: ssl.TLSVersion) -> None:
    """Every ending says close_notify, if that can be written at once; only the polite ones wait for the answer."""
    options: dict[str, Any] = {"expiry": {"keepalive_timeout": 0.01}, "evicted": {"limit": 1}}.get(ending, {})
    if ending == "no grace":
        options = {"ssl_shutdown_timeout": 0}
    with trio.fail_after(20):
        async with way("direct", ca1.server(version=version), note_the_end, **options) as w:
            conn = await w.connector.connect(w.target("https"))
            await conn.stream.send_all(b"x")
            assert await conn.stream.receive_some() == b"x"
            if ending == "close":
                conn.close()
            elif ending in ("aclose", "no grace"):
                await conn.aclose()
            elif ending == "exception":
                with pytest.raises(ZeroDivisionError):
                    async with conn:
                        raise ZeroDivisionError
            elif ending == "evicted":
                conn.release()
                (await w.connector.connect(w.target("https", "a.test."))).close()
            elif ending == "connector.aclose":
                await w.connector.aclose()
            elif ending == "abort_ssl":
                await w.connector.aclose(abort_ssl=True)
            else:
                conn.release()
            if ending != "connector left":
                await w.peer.visits[0].wait_ended()
        await w.peer.visits[0].wait_ended()
        assert w.peer.visits[0].rest == b"close_notify"
