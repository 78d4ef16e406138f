"""A peer that is not the right one, by every way there is to it: each fails closed, in the same way."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn
from trioconn import CertificateError, Fingerprint, FingerprintMismatchError, ProxyConnectError

from .peers import PATHS, SECRETS, Visit

if TYPE_CHECKING:
    from .conftest import Authority

pytest.importorskip("socksio", reason="the extra socks is not installed")

SECURE = ["https", "wss", "tls"]


def leaf(context: ssl.SSLContext) -> Fingerprint:
    """The pin of a server's own certificate."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    lax.check_hostname = False
    lax.verify_mode = ssl.CERT_NONE
    client = lax.wrap_bio(outgoing, incoming)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    certificate = client.getpeercert(binary_form=True)
    assert certificate
    return Fingerprint(sha256(certificate).digest())


FAILURES: dict[str, tuple[Any, Any, type[CertificateError | FingerprintMismatchError], int]] = {
    # the server's context, ssl=, the class, OpenSSL's code
    "wrong name": (lambda ca1, _: ca1.server("b.test"), lambda ca1, _: ca1.client(), CertificateError, 62),
    "unknown authority": (lambda _, ca2: ca2.server("a.test"), lambda ca1, _: ca1.client(), CertificateError, 20),
    "expired": (lambda ca1, _: ca1.expired("a.test"), lambda ca1, _: ca1.client(), CertificateError, 10),
    "wrong pin": (
        lambda ca1, _: ca1.server("a.test"),
        lambda ca1, _: Fingerprint(bytes(32)),
        FingerprintMismatchError,
        0,
    ),
    "wrong pin, right context": (
        lambda ca1, _: ca1.server("a.test"),
        lambda ca1, _: Fingerprint(bytes(48), context=ca1.client()),
        FingerprintMismatchError,
        0,
    ),
    "right pin, wrong name": (
        lambda ca1, _: ca1.server("b.test"),
        lambda ca1, server: Fingerprint(leaf(server).digest, context=ca1.client()),
        CertificateError,
        62,
    ),
    "right pin, unknown authority": (
        lambda _, ca2: ca2.server("a.test"),
        lambda ca1, server: Fingerprint(leaf(server).digest, context=ca1.client()),
        CertificateError,
        20,
    ),
}


@pytest.mark.security(66)
@pytest.mark.security(81)
@pytest.mark.security(82)
@pytest.mark.security(83)
@pytest.mark.security(84)
@pytest.mark.security(87)
@pytest.mark.parametrize("scheme", SECURE)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("failure", FAILURES)
async def test_fails_closed(
    way: Any, ca1: Authority, ca2: Authority, failure: str, path: str, scheme: str, no_fd_leak: None
) -> None:
    serving, trusting, kind, code = FAILURES[failure]
    server = serving(ca1, ca2)
    option = trusting(ca1, server)
    with trio.fail_after(20):
        async with way(path, server) as w:
            for accepted in (1, 2):  # a second call meets the same: nothing is left of the first
                with pytest.raises(kind) as caught:
                    await w.connector.connect(w.target(scheme), ssl=option)
                w.check_closed()
                error = caught.value
                assert type(error) is kind
                assert (error.stage, error.hop) == ("tls" if kind is CertificateError else "pin", -1)
                assert error.route is not None and error.route.scheme == scheme
                if isinstance(error, CertificateError):
                    assert error.verify_code == code
                else:
                    assert error.expected.hex() in str(error) and error.got.hex() in str(error)
                assert not any(secret in f"{error} {error!r}" for secret in SECRETS)
                assert len(w.peer.visits) == accepted
                visit = w.peer.visits[-1]
                await visit.wait_ended()
                assert (visit.first, visit.sni, bytes(visit.data), visit.rest) == (b"\x16", "a.test", b"", b"")
                assert not visit.resumed
            counts = w.connector.statistics()
            assert dict(counts.failed) == {error.stage: 2} and counts.created == 0


@pytest.mark.security(38)
@pytest.mark.security(14)
@pytest.mark.parametrize("path", ["direct", "unix", "custom"])
@pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss", "tcp", "tls"])
async def test_the_scheme_alone_decides_on_tls(way: Any, ca1: Authority, path: str, scheme: str) -> None:
    options = {"ssl": ca1.client()} if scheme in SECURE else {}
    with trio.fail_after(20):
        async with way(path, ca1.server()) as w:
            async with await w.connector.connect(w.target(scheme), **options) as conn:
                await conn.stream.send_all(b"\x00hello")
                assert await conn.stream.receive_some() == b"\x00hello"
                assert bool(conn.info.tls) is (scheme in SECURE)
            assert w.peer.visits[0].first == (b"\x16" if scheme in SECURE else b"\x00")


@pytest.mark.security(78)
@pytest.mark.parametrize("path", ["direct", "socks5h"])
@pytest.mark.parametrize(
    ("names", "works"),
    [(("127.0.0.1",), True), (("a.test",), False), (("*.0.0.1",), False), (("127.0.0.2",), False)],
)
async def test_addresses_need_a_certificate_for_the_address(
    way: Any, ca1: Authority, path: str, names: tuple[str, ...], works: bool
) -> None:
    with trio.fail_after(20):
        async with way(path, ca1.server(*names)) as w:
            target = w.target("https", "127.0.0.1")
            if works:
                (await w.connector.connect(target)).close()
                await w.peer.visits[0].wait_shaken()
                assert w.peer.visits[0].sni is None  # RFC 6066 section 3: no addresses
            else:
                with pytest.raises(CertificateError) as caught:
                    await w.connector.connect(target)
                assert caught.value.verify_code == 64
                w.check_closed()


@pytest.mark.security(84)
@pytest.mark.parametrize("extra", [False, True])
async def test_a_pin_is_of_the_leaf_and_of_nothing_else(way: Any, ca1: Authority, extra: bool) -> None:
    """The pin of an authority in the chain is not satisfied by what the authority signed."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    child = ca1.ca.create_child_ca()
    child.issue_cert("a.test").configure_cert(server)
    pinned = ssl.PEM_cert_to_DER_cert((child if extra else ca1.ca).cert_pem.bytes().decode())
    async with way("direct", server) as w:
        pin = Fingerprint(sha256(pinned).digest(), context=ca1.client())
        with pytest.raises(FingerprintMismatchError):
            await w.connector.connect(w.target("https"), ssl=pin)
        w.check_closed()
        own = leaf(server)
        (await w.connector.connect(w.target("https"), ssl=own)).close()
        upper = Fingerprint(":".join(f"{byte:02X}" for byte in own.digest))
        (await w.connector.connect(w.target("https"), ssl=upper)).close()


# The proxies themselves


@pytest.mark.security(41)
@pytest.mark.security(42)
@pytest.mark.security(82)
@pytest.mark.security(83)
@pytest.mark.parametrize("scheme", ["http", "https", "wss", "tcp"])
@pytest.mark.parametrize(("path", "hop"), [("https", 0), ("https-socks5h", 0), ("http-https", 1)])
@pytest.mark.parametrize("failure", ["wrong name", "unknown authority", "expired", "wrong pin"])
async def test_a_wrong_proxy_hears_nothing(
    no_fd_leak: None, way: Any, ca1: Authority, ca2: Authority, failure: str, path: str, hop: int, scheme: str
) -> None:
    """However little the target is verified: the proxy's own certificate counts, before it is told anything."""
    _, _, kind, code = FAILURES[failure]
    with trio.fail_after(20):
        async with way(path, ca1.server()) as w:
            w.proxies.context = {
                "wrong name": lambda: ca1.server("a.test"),
                "unknown authority": lambda: ca2.server("proxy.test"),
                "expired": lambda: ca1.expired("proxy.test"),
                "wrong pin": lambda: ca1.server("proxy.test"),
            }[failure]()
            trust = Fingerprint(bytes(32)) if failure == "wrong pin" else ca1.client()
            chain = w.proxies.chain(path, trust)
            for _ in range(2):
                with pytest.raises(ProxyConnectError) as caught:
                    await w.connector.connect(w.target(scheme), proxy=chain, ssl=False)
                w.check_closed()
                error = caught.value
                assert type(error.__cause__) is kind
                assert (error.stage, error.hop) == ("pin" if failure == "wrong pin" else "tls", hop)
                assert getattr(error.__cause__, "verify_code", 0) == code
            assert len(w.proxies.heads) == (2 if hop else 0)  # only the one before it was told something
            assert w.proxies.socks == []
            assert w.peer.visits == []


# Every way of saying how a target is trusted


@pytest.mark.parametrize("path", ["direct", "unix", "https"])
async def test_the_older_spellings(way: Any, ca1: Authority, ca2: Authority, path: str) -> None:
    server = ca2.server()
    pin = leaf(server)
    for options in (
        {"verify_ssl": False},
        {"fingerprint": pin.digest},
        {"fingerprint": pin},
        {"ssl_context": ca2.client()},
    ):
        async with way(path, server, **({"ssl": True} | options)) as w:
            (await w.connector.connect(w.target("https"))).close()
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"verify_ssl": True}, CertificateError),
        ({"fingerprint": bytes(32)}, FingerprintMismatchError),
        ({"ssl_context": ca1.client()}, CertificateError),
    ]
    for wrong, kind in refused:
        async with way(path, server, **({"ssl": True} | wrong)) as w:
            with pytest.raises(kind):
                await w.connector.connect(w.target("https"))
            w.check_closed()


@pytest.mark.parametrize("path", PATHS)
async def test_the_option_of_a_call_wins(way: Any, ca1: Authority, ca2: Authority, path: str) -> None:
    server = ca2.server()
    async with way(path, server) as w:
        for option in (False, ca2.client(), leaf(server), Fingerprint(leaf(server).digest, context=ca2.client())):
            (await w.connector.connect(w.target("https"), ssl=option)).close()
        for option in (None, True) if path != "custom" else (True,):
            with pytest.raises(CertificateError):
                await w.connector.connect(w.target("https"), ssl=option)
            w.check_closed()


@pytest.mark.parametrize("ended", ["cancelled", "timeout", "connector closed"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_handshake_that_is_given_up(no_fd_leak: None, way: Any, ca1: Authority, path: str, ended: str) -> None:
    """In the middle of the target's handshake, behind whatever there is on the way."""
    options = {"connect_timeout": 0.2} if ended == "timeout" else {}
    reached = threading.Event()

    def say_nothing(visit: Visit) -> None:
        visit.first = visit.sock.recv(1, socket.MSG_PEEK)
        reached.set()
        while data := visit.sock.recv(65536):
            visit.data += data

    async def connect() -> None:
        with pytest.raises(expected) if expected is not None else contextlib.nullcontext():
            await w.connector.connect(w.target("https"), ssl=ca1.client())

    expected = {"timeout": trioconn.ConnectTimeoutError, "connector closed": trioconn.ConnectorClosedError}.get(ended)
    with trio.fail_after(20):
        async with way(path, ca1.server(), raw=say_nothing, **options) as w:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                assert await trio.to_thread.run_sync(reached.wait, 10)
                if ended == "cancelled":
                    nursery.cancel_scope.cancel()
                elif ended == "connector closed":
                    await w.connector.aclose()
            if ended == "cancelled":  # an attempt belongs to its route: it is the waiter's end that aborts it
                await trio.testing.wait_all_tasks_blocked()
            w.check_closed()
            await w.peer.visits[0].wait_ended()
            assert w.peer.visits[0].first == b"\x16"
            assert b"hidden" not in w.peer.visits[0].data
