"""TLS sessions at the connector: what is resumed, as the server sees it, and above all what is not."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn
from trioconn import CertificateError, Fingerprint, FingerprintMismatchError
from trioconn._establish.sockets import SocketStream
from trioconn._establish.tls_sessions import SessionStore
from trioconn._establish.tls_step import handshake
from trioconn._route import ContextTrust, TLSStep

from .peers import Loopback

if TYPE_CHECKING:
    from trioconn import Connection

    from .conftest import Authority

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
both = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])


async def use(conn: Connection) -> None:
    """An exchange, after which TLS 1.3 has its tickets; then back with it."""
    await conn.stream.send_all(b"x")
    assert await conn.stream.receive_some() == b"x"
    conn.release()


async def visit(w: Any, target: str | None = None, **options: Any) -> bool:
    """A connection of its own that is used and closed: whether it resumed, as both sides agree."""
    conn = await w.connector.connect(w.target("https") if target is None else target, **options)
    await use(conn)
    mine: bool = conn.session_reused
    layers = [layer for layer in conn.info.tls if layer.hop == -1]
    assert [layer.session_reused for layer in layers] == [mine]
    await w.peer.visits[-1].wait_shaken()
    assert bool(w.peer.visits[-1].resumed) is mine
    return mine


@both
@pytest.mark.parametrize("path", ["direct", "unix", "http", "https", "socks5h"])
async def test_the_server_sees_resumption(way: Any, ca1: Authority, path: str, version: ssl.TLSVersion) -> None:
    with trio.fail_after(20):
        async with way(path, ca1.server(version=version), force_close=True) as w:
            assert [await visit(w) for _ in range(3)] == [False, True, True]
            counts = w.connector.statistics()
            assert (counts.created, counts.resumed) == (3, 2)


async def test_it_can_be_switched_off(way: Any, ca1: Authority) -> None:
    async with way("direct", ca1.server(), force_close=True, tls_sessions=False) as w:
        assert [await visit(w) for _ in range(2)] == [False, False]
        assert w.connector.statistics().resumed == 0


@both
async def test_prewarmed_connections_are_handed_out(way: Any, ca1: Authority, version: ssl.TLSVersion) -> None:
    """Readable but healthy: the tickets lie unread in the socket."""
    with trio.fail_after(20):
        async with way("direct", ca1.server(version=version)) as w:
            await w.connector.prewarm(w.target("https"), 3)
            if version is V13:
                for stream in w.sockets:
                    await trio.lowlevel.wait_readable(stream.fileno())
            leases = [w.connector.connect_nowait(w.target("https")) for _ in range(3)]
            assert sorted(conn.info.number for conn in leases) == [1, 2, 3]
            for conn in leases:
                await use(conn)
            assert len(w.peer.visits) == 3
            assert w.connector.statistics().closed == {}


@pytest.mark.parametrize("tickets", [0, 1, 10])
async def test_any_number_of_tickets(way: Any, ca1: Authority, tickets: int) -> None:
    context = ca1.server(version=V13)
    context.num_tickets = tickets
    with trio.fail_after(20):
        async with way("direct", context) as w:
            await w.connector.prewarm(w.target("https"), 1)
            if tickets:
                await trio.lowlevel.wait_readable(w.sockets[0].fileno())
            for _ in range(3):
                await use(w.connector.connect_nowait(w.target("https")))
            assert len(w.peer.visits) == 1


# What is never resumed


@both
@pytest.mark.parametrize("with_context", [False, True])
async def test_pinned_routes_never_resume(
    way: Any, ca1: Authority, version: ssl.TLSVersion, with_context: bool
) -> None:
    context = ca1.client()
    async with way("direct", ca1.server(version=version), force_close=True) as w:
        # A session of the same context exists already.
        assert [await visit(w, ssl=context) for _ in range(2)] == [False, True]
        conn = await w.connector.connect(w.target("https"), ssl=context)
        certificate = conn.info.tls[-1].certificate
        conn.close()
        pin = Fingerprint(sha256(certificate).digest(), context=context if with_context else None)
        assert [await visit(w, ssl=pin) for _ in range(3)] == [False, False, False]


@both
@pytest.mark.security(63)
@pytest.mark.security(64)
async def test_only_under_the_full_key(way: Any, ca1: Authority, version: ssl.TLSVersion) -> None:
    async with way("http", ca1.server("a.test", "b.test", version=version), force_close=True) as w:
        context = ca1.client()
        first: dict[str, Any] = {"ssl": context}
        sayings: list[dict[str, Any]] = [
            {"ssl": context, "isolation": "x"},
            {"ssl": context, "isolation": ""},
            {"ssl": context, "server_hostname": "b.test"},
            {"ssl": context, "proxy": ()},
            {"ssl": context, "proxy": w.proxies.url("http")},
            {"ssl": context, "proxy": w.proxies.url("socks5h")},
            {"ssl": context, "proxy_headers": {"X": "y"}},
            {"ssl": ca1.client()},
            {"ssl": False},
        ]
        assert [await visit(w, **first) for _ in range(2)] == [False, True]
        for saying in sayings:
            assert [await visit(w, **saying) for _ in range(2)] == [False, True], saying
        # Another host, another scheme, an absolute name.
        for scheme, host in (("https", "b.test"), ("wss", "a.test"), ("https", "a.test.")):
            target = w.target(scheme, host)
            assert [await visit(w, target, **first) for _ in range(2)] == [False, True], target
        assert await visit(w, **first)


@both
@pytest.mark.security(1)
@pytest.mark.security(63)
async def test_another_identity_means_a_full_handshake(way: Any, ca1: Authority, version: ssl.TLSVersion) -> None:
    """What a context's certificate is cannot be read from it: another identity needs another context."""
    server = ca1.server(version=version)
    server.verify_mode = ssl.CERT_OPTIONAL
    ca1.ca.configure_trust(server)
    who = {name: ca1.client(name) for name in ("alice", "bob")} | {None: ca1.client()}
    async with way("direct", server) as w:
        leases = []
        for identity, context in who.items():
            conn = await w.connector.connect(w.target("https"), ssl=context)
            await conn.stream.send_all(b"x")
            assert await conn.stream.receive_some() == b"x"
            assert not conn.session_reused
            await w.peer.visits[-1].wait_shaken()
            assert w.peer.visits[-1].client == identity
            leases.append(conn)
        for conn in leases:
            conn.release()
        # Each gets its own one back.
        for (_, context), lease in zip(who.items(), leases, strict=True):
            conn = w.connector.connect_nowait(w.target("https"), ssl=context)
            assert conn.info.number == lease.info.number
            conn.close()
        # And resumes its own session, in which the server remembers who it was.
        for identity, context in who.items():
            assert await visit(w, ssl=context)
            assert w.peer.visits[-1].client == identity


@both
@pytest.mark.security(64)
async def test_a_session_is_not_offered_under_another_name(way: Any, ca1: Authority, version: ssl.TLSVersion) -> None:
    async with way("direct", ca1.server("a.test", version=version), force_close=True) as w:
        assert [await visit(w) for _ in range(2)] == [False, True]
        for options in ({"server_hostname": "b.test"}, {}):
            with pytest.raises(CertificateError, match=r"b\.test"):
                await w.connector.connect(w.target("https", "b.test" if not options else "a.test"), **options)
            w.check_closed()
            assert w.peer.visits[-1].sni == "b.test"
        assert await visit(w)


@both
@pytest.mark.security(65)
async def test_an_unverified_session_does_not_outlive_the_policy(
    way: Any, ca1: Authority, ca2: Authority, version: ssl.TLSVersion
) -> None:
    context = ca1.client()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with way("direct", ca2.server(version=version), force_close=True, ssl=context) as w:
        assert [await visit(w) for _ in range(2)] == [False, True]
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        for _ in range(2):
            with pytest.raises(CertificateError) as caught:
                await w.connector.connect(w.target("https"))
            assert caught.value.verify_code == 20
            w.check_closed()


@both
async def test_a_policy_change_means_a_full_handshake(way: Any, ca1: Authority, version: ssl.TLSVersion) -> None:
    context = ca1.client()
    async with way("direct", ca1.server(version=version), force_close=True, ssl=context) as w:
        assert [await visit(w) for _ in range(2)] == [False, True]
        for change in (
            lambda: setattr(context, "options", context.options | ssl.OP_NO_RENEGOTIATION),
            lambda: setattr(context, "verify_flags", context.verify_flags | ssl.VerifyFlags.VERIFY_X509_STRICT),
            # Not the number of authorities: Python can only add some, and OpenSSL adds them as it meets them.
        ):
            change()
            assert [await visit(w) for _ in range(2)] == [False, True]


@both
@pytest.mark.security(66)
async def test_a_failure_empties_the_store(way: Any, ca1: Authority, ca2: Authority, version: ssl.TLSVersion) -> None:
    good, bad = ca1.server(version=version), ca2.server(version=version)
    async with way("direct", lambda number: bad if number == 2 else good, force_close=True) as w:
        assert [await visit(w) for _ in range(2)] == [False, True]
        with pytest.raises(CertificateError):
            await w.connector.connect(w.target("https"))
        w.check_closed()
        assert [await visit(w) for _ in range(2)] == [False, True]


@pytest.mark.security(66)
@both
async def test_a_wrong_pin_stays_wrong(way: Any, ca1: Authority, version: ssl.TLSVersion) -> None:
    context = ca1.client()
    async with way("direct", ca1.server(version=version), force_close=True) as w:
        pin = Fingerprint(bytes(32), context=context)
        for _ in range(2):
            with pytest.raises(FingerprintMismatchError):
                await w.connector.connect(w.target("https"), ssl=pin)
            await w.peer.visits[-1].wait_ended()
            assert not w.peer.visits[-1].resumed
            assert [await visit(w, ssl=context)]
            w.check_closed()


@both
async def test_a_proxy_and_its_target_have_sessions_of_their_own(
    way: Any, ca1: Authority, version: ssl.TLSVersion
) -> None:
    """The same context for both, and the target resumes only its own."""
    context = ca1.client()
    async with way("direct", ca1.server(version=version), force_close=True) as w:
        w.proxies.context.maximum_version = version
        proxy = trioconn.Proxy(w.proxies.url("https"), ssl=context)
        layers = []
        for _ in range(2):
            conn = await w.connector.connect(w.target("https"), proxy=proxy, ssl=context)
            await use(conn)
            layers.append([(layer.hop, layer.session_reused) for layer in conn.info.tls])
        assert layers == [[(0, False), (-1, False)], [(0, True), (-1, True)]]


# nginx


@pytest.fixture
def nginx(ca1: Authority) -> Iterator[Callable[[ssl.TLSVersion], int]]:
    """``nginx(version)``: the port on which an nginx speaks that version; it answers whether it has resumed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    with tempfile.TemporaryDirectory(prefix="tc-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        ca1.ca.issue_cert("a.test").private_key_and_cert_chain_pem.write_to_path(str(folder / "pem"))
        ports: dict[ssl.TLSVersion, int] = {}
        servers = ""
        for version, text in ((V12, "TLSv1.2"), (V13, "TLSv1.3")):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports[version] = free.getsockname()[1]
            servers += (
                f"server {{ listen 127.0.0.1:{ports[version]} ssl; ssl_protocols {text}; ssl_certificate {folder}/pem; "
                f'ssl_certificate_key {folder}/pem; return 200 "[$ssl_session_reused]"; }}\n'
            )
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
            f"events {{ worker_connections 64; }}\nhttp {{ access_log off; {temporary}\n{servers} }}\n"
        )
        process = subprocess.Popen(
            [program, "-p", name, "-c", "nginx.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            end = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", ports[V13]), 1).close()
                    break
                assert process.poll() is None and time.monotonic() < end, (folder / "error.log").read_text()
                time.sleep(0.02)
            yield lambda version: ports[version]
        finally:
            process.terminate()
            process.wait(10)


async def get(conn: Connection) -> bytes:
    """The answer's body, which is ``[r]`` or ``[.]``."""
    await conn.stream.send_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    answer = b""
    while not answer.endswith(b"]"):
        more = await conn.stream.receive_some()
        assert more
        answer += more
    assert answer.startswith(b"HTTP/1.1 200")
    return answer[-3:]


@pytest.mark.real
@both
async def test_nginx(nginx: Callable[[ssl.TLSVersion], int], ca1: Authority, version: ssl.TLSVersion) -> None:
    target = f"https://a.test:{nginx(version)}"
    with trio.fail_after(20):
        async with trioconn.TCPConnector(resolver=Loopback(), ssl=ca1.client()) as connector:
            # Prewarmed ones are handed out with their tickets unread.
            await connector.prewarm(target, 2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            leases = [connector.connect_nowait(target) for _ in range(2)]
            assert {conn.info.number for conn in leases} == {1, 2}
            assert {conn.info.tls[0].version for conn in leases} == {"TLSv1.2" if version is V12 else "TLSv1.3"}
            for conn in leases:
                assert await get(conn) == b"[.]"
                conn.release()
            # The next ones resume: the server says so.
            leases = [await connector.connect(target) for _ in range(4)]
            for number, conn in enumerate(leases):
                assert (conn.reused, conn.session_reused) == (number < 2, number >= 2)
                assert await get(conn) == (b"[r]" if number >= 2 else b"[.]")
                conn.release()
            counts = connector.statistics()
            assert (counts.created, counts.resumed, counts.idle) == (4, 2, 4)


# Measured

SERVER = """
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.minimum_version = context.maximum_version = ssl.TLSVersion[sys.argv[2]]
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def serve(sock):
    try:
        with context.wrap_socket(sock, server_side=True) as tls:
            while tls.recv(1000):
                tls.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n[.]")
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""


@pytest.fixture
def stdlib(ca1: Authority, tmp_path: Path) -> Iterator[Callable[[ssl.TLSVersion], int]]:
    """``stdlib(version)``: the port of a threaded server on `ssl`, in a process of its own, with a GIL of its own."""
    pem = tmp_path / "pem"
    ca1.ca.issue_cert("a.test").private_key_and_cert_chain_pem.write_to_path(str(pem))
    with contextlib.ExitStack() as stack:

        def start(version: ssl.TLSVersion) -> int:
            command = [sys.executable, "-c", SERVER, str(pem), version.name]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            return int(process.stdout.readline())

        yield start


@pytest.mark.bench
@pytest.mark.real
@pytest.mark.parametrize("server", ["stdlib", "nginx"])
@pytest.mark.parametrize(("version", "most"), [(V12, 0.75), (V13, 0.92)], ids=["1.2", "1.3"])
async def test_what_resumption_saves(
    request: pytest.FixtureRequest, ca1: Authority, server: str, version: ssl.TLSVersion, most: float
) -> None:
    """The CPU that a handshake costs the client's thread, with an ECDSA P-256 certificate, full and resumed."""
    port = request.getfixturevalue(server)(version)
    context = ca1.client()
    step = TLSStep(ContextTrust.of(context), "a.test")
    store = SessionStore()

    async def shake(sessions: SessionStore, *, resumed: bool) -> float:
        stream = SocketStream(socket.create_connection(("127.0.0.1", port)))
        before = time.thread_time()
        tls = await handshake(stream, step, sessions=sessions, key="key", report=None, host_shown="a.test")
        spent = time.thread_time() - before
        assert tls.session_reused is resumed
        await tls.send_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        answer = b""
        while not answer.endswith(b"]"):
            answer += await tls.receive_some()
        sessions.harvest("key", tls)
        tls.close_nowait()
        return spent

    await shake(store, resumed=False)
    full, again = [], []
    for _ in range(200):
        full.append(await shake(SessionStore(), resumed=False))
        again.append(await shake(store, resumed=True))
    whole, part = statistics.mean(full), statistics.mean(again)
    print(f"\n{server}, {version.name}: full {whole * 1e6:.0f} µs, resumed {part * 1e6:.0f} µs: {part / whole:.2f}")
    assert part / whole <= most
