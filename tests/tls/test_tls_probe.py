"""Whether a TLS connection is clean, and how it is closed: against a real server, which sends its tickets at once."""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trioconn._establish.sockets import SocketStream
from trioconn._establish.tls import MOST_IDLE_BYTES, TLSStream

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(params=[V12, V13], ids=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return request.param


class Remote:
    """A server connection that does as it is told, and is finished with it when the teller goes on."""

    def __init__(self) -> None:
        self.sock: ssl.SSLSocket | None = None
        self._ready = threading.Event()
        self._over = threading.Event()

    def script(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._ready.set()
        assert self._over.wait(20)

    def get(self) -> ssl.SSLSocket:
        assert self._ready.wait(10)
        assert self.sock is not None
        return self.sock

    def end(self) -> None:
        self._over.set()


@pytest.fixture
def remote() -> Remote:
    remote = Remote()
    yield remote
    remote.end()


async def connect(authority, serve, remote, version, **options) -> tuple[TLSStream, ssl.SSLSocket]:
    server = serve(authority.server(version=version), remote.script)
    tls = TLSStream(SocketStream(server.connect()), authority.client(), server_hostname="a.test", **options)
    await tls.do_handshake()
    return tls, remote.get()


@pytest.fixture
async def pair(authority, serve, remote, version):
    """A fresh connection: our stream and the server's socket."""
    tls, peer = await connect(authority, serve, remote, version)
    yield tls, peer
    tls.close_nowait()


async def arrived(tls: TLSStream) -> None:
    await trio.lowlevel.wait_readable(tls.fileno())


async def exchange(tls: TLSStream, peer: ssl.SSLSocket) -> None:
    await tls.send_all(b"question")
    assert peer.recv(100) == b"question"
    peer.sendall(b"answer")
    assert await tls.receive_some() == b"answer"


async def past_tickets(tls: TLSStream, peer: ssl.SSLSocket) -> None:
    """Until nothing is under way: what the server says comes after its tickets, however many segments these take."""
    peer.sendall(b"ready")
    assert await tls.receive_some() == b"ready"
    assert tls.probe(), tls.probe_reason


@pytest.mark.case("trio#819")
@pytest.mark.case("lua-nginx-module#2356")
async def test_readable_but_healthy(authority, serve, remote) -> None:
    tls, peer = await connect(authority, serve, remote, V13)
    await arrived(tls)  # readable: nothing but tickets
    assert tls.transport_stream.probe() is False
    assert tls.probe()
    assert tls.session.has_ticket  # they were consumed, and are of use
    assert tls.probe_reason == ""
    await exchange(tls, peer)
    assert tls.probe()
    tls.close_nowait()


async def test_quiet(pair, version) -> None:
    tls, peer = pair
    await past_tickets(tls, peer)
    for _ in range(3):
        await exchange(tls, peer)
        assert tls.probe()


@pytest.mark.security(57)
async def test_response_sent_twice_in_the_same_segment(pair) -> None:
    tls, peer = pair
    await exchange(tls, peer)
    peer.sendall(b"answeranswer")
    await arrived(tls)
    assert await tls.receive_some(6) == b"answer"
    assert tls.transport_stream.probe()  # the socket is quiet; the rest lies decrypted
    assert not tls.probe()
    assert tls.probe_reason == "stray bytes"
    assert await tls.receive_some() == b"answer"  # the look took nothing
    assert tls.probe()


@pytest.mark.security(57)
@pytest.mark.security(58)
async def test_response_sent_twice_in_two_records(pair, version) -> None:
    tls, peer = pair
    await past_tickets(tls, peer)
    await exchange(tls, peer)
    assert tls.probe()
    peer.sendall(b"answer")
    await arrived(tls)
    for _ in range(2):
        assert not tls.probe()
        assert tls.probe_reason == "stray bytes"
    assert await tls.receive_some() == b"answer"


async def test_a_part_of_a_record(authority, version) -> None:
    """The first bytes of a stray response are stray bytes, though nothing can be decrypted yet."""
    tls, peer, right = await both_ends(authority, authority.server(version=version))
    await peer.send_all(b"answer")
    assert await tls.receive_some() == b"answer"
    assert tls.probe()
    peer._engine.object.write(b"stray")
    data = peer._engine.take()
    right.send(data[:7])
    assert not tls.probe()
    assert tls.probe_reason == "stray bytes"
    assert tls.transport_stream.probe()  # below, all is quiet
    assert not tls.probe()
    right.send(data[7:])
    assert await tls.receive_some() == b"stray"
    assert tls.probe()
    tls.close_nowait()
    peer.close_nowait()


@pytest.mark.parametrize("how", ["close_notify", "fin", "rst"])
async def test_the_peer_ended_while_idle(pair, version, how) -> None:
    tls, peer = pair
    await past_tickets(tls, peer)
    await exchange(tls, peer)
    if how == "close_notify":
        peer.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            peer.unwrap()
    elif how == "fin":
        peer.shutdown(socket.SHUT_WR)
    else:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    await arrived(tls)
    for _ in range(2):
        assert not tls.probe()
        assert tls.probe_reason == "server closed"
    if how == "close_notify":
        assert await tls.receive_some() == b""
    else:
        with pytest.raises(trio.BrokenResourceError):
            await tls.receive_some()


async def both_ends(authority, context: ssl.SSLContext) -> tuple[TLSStream, TLSStream, socket.socket]:
    """A connection to a peer that is told what to send and when; the last is the socket it sends through."""
    left, right = socket.socketpair()
    tls = TLSStream(SocketStream(left), authority.client(), server_hostname="a.test")
    peer = TLSStream(SocketStream(right), context, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.do_handshake)
        nursery.start_soon(peer.do_handshake)
    return tls, peer, right


async def test_the_peer_ended_with_its_last_response(authority, version) -> None:
    """The close_notify lies in our buffer, behind the data."""
    tls, peer, sock = await both_ends(authority, authority.server(version=version))
    peer._engine.object.write(b"answer")
    peer._engine.say_goodbye()
    sock.send(peer._engine.take())
    assert await tls.receive_some(6) == b"answer"
    assert tls.transport_stream.probe()
    assert not tls.probe()
    assert tls.probe_reason == "server closed"
    tls.close_nowait()
    peer.close_nowait()


async def test_garbage_while_idle(pair, version) -> None:
    tls, peer = pair
    await past_tickets(tls, peer)
    raw = socket.socket(fileno=peer.detach())
    with raw:
        raw.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await arrived(tls)
        assert not tls.probe()
        assert tls.probe_reason in ("error", "stray bytes")  # it may pass for the header of a very long record
        assert not tls.probe()


async def test_endless_tickets_are_bounded(authority) -> None:
    context = authority.server(version=V13)
    context.num_tickets = 20
    tls, peer, sock = await both_ends(authority, context)
    sock.send(peer._engine._held)
    peer._engine._held = b""
    assert tls.probe()
    assert tls._idle_bytes > 2000
    # Python's servers cannot be made to send more of them, so the account is put where it would stand.
    tls._idle_bytes = MOST_IDLE_BYTES
    assert tls.probe()
    tls._idle_bytes = MOST_IDLE_BYTES + 1
    for _ in range(2):
        assert not tls.probe()
        assert tls.probe_reason == "stray bytes"
    # Real use opens a new account.
    await tls.send_all(b"x")
    assert tls.probe()
    tls.close_nowait()
    peer.close_nowait()


async def test_tickets_of_one_idle_period_are_counted(authority, monkeypatch) -> None:
    context = authority.server(version=V13)
    context.num_tickets = 20
    tls, peer, sock = await both_ends(authority, context)
    tickets, peer._engine._held = peer._engine._held, b""
    monkeypatch.setattr("trioconn._establish.tls.MOST_IDLE_BYTES", len(tickets) // 2)
    size = 5 + int.from_bytes(tickets[3:5], "big")
    for at in (0, size):
        sock.send(tickets[at : at + size])
        assert tls.probe()
    sock.send(tickets[2 * size :])
    assert not tls.probe()
    assert tls.probe_reason == "stray bytes"
    tls.close_nowait()
    peer.close_nowait()


async def test_while_a_task_is_inside_a_call(pair, version, nursery) -> None:
    tls, peer = pair
    await past_tickets(tls, peer)

    async def within(scope: trio.CancelScope, call: Callable[[], Awaitable[object]]) -> None:
        with scope:
            await call()

    scope = trio.CancelScope()
    nursery.start_soon(within, scope, tls.receive_some)
    await trio.testing.wait_all_tasks_blocked()
    assert not tls.probe()
    assert tls.probe_reason == "in use"
    with pytest.raises(trio.BusyResourceError):
        tls.receive_nowait()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert tls.probe()  # a cancelled receive has taken nothing

    scope = trio.CancelScope()
    nursery.start_soon(within, scope, lambda: tls.send_all(bytes(2**26)))
    await trio.testing.wait_all_tasks_blocked()
    assert not tls.probe()
    assert tls.probe_reason == "in use"
    with pytest.raises(trio.BusyResourceError):
        tls.send_nowait(b"x")
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not tls.probe()
    assert tls.probe_reason == "error"


async def test_before_the_handshake_and_after_the_close(authority) -> None:
    left, right = socket.socketpair()
    with right:
        tls = TLSStream(SocketStream(left), authority.client(), server_hostname="a.test")
        assert not tls.probe()
        tls.close_nowait()
        assert not tls.probe()
        assert tls.probe_reason == "closed"
        assert tls.fileno() == -1


async def over_a_foreign_socket(authority) -> tuple[TLSStream, TLSStream]:
    """Both ends of a connection that stands, ours over a stream of trio's own."""
    left, right = socket.socketpair()
    sock = trio.SocketStream(trio.socket.from_stdlib_socket(left))
    tls = TLSStream(sock, authority.client(), server_hostname="a.test")
    peer = TLSStream(SocketStream(right), authority.server(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.do_handshake)
        nursery.start_soon(peer.do_handshake)
    return tls, peer


async def test_over_foreign_transports(authority) -> None:
    tls, peer = await over_a_foreign_socket(authority)
    left = tls.transport_stream.socket
    assert tls.probe()
    assert tls.fileno() == left.fileno()
    await peer.send_all(b"x")
    assert not tls.probe()
    assert await tls.receive_some() == b"x"
    assert tls.probe()
    with pytest.raises(trio.WouldBlock):
        tls.receive_nowait()
    assert tls.send_nowait(b"x") == 0
    tls.close_nowait()
    assert left.fileno() == -1
    assert not tls.probe()
    peer.close_nowait()

    ours, theirs = trio.testing.memory_stream_pair()
    tls = TLSStream(ours, authority.client(), server_hostname="a.test")
    peer = TLSStream(theirs, authority.server(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.do_handshake)
        nursery.start_soon(peer.do_handshake)
    assert tls.probe()
    assert tls.fileno() == -1
    await peer.send_all(b"ab")
    assert await tls.receive_some(1) == b"a"
    assert not tls.probe()  # what has been received is known
    tls.close_nowait()
    tls.close_nowait()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")
    await tls.aclose()


async def test_a_foreign_socket_closed_underneath(authority) -> None:
    tls, peer = await over_a_foreign_socket(authority)
    tls.transport_stream.socket.close()
    assert not tls.probe()
    assert tls.probe_reason == "closed"
    tls.close_nowait()
    peer.close_nowait()


async def test_a_reset_behind_tickets(authority, serve) -> None:
    """What came before the reset can still be read, and is in order; the reset is found behind it."""

    def reset(sock: ssl.SSLSocket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    server = serve(authority.server(version=V13), reset)
    tls = TLSStream(SocketStream(server.connect()), authority.client(), server_hostname="a.test")
    await tls.do_handshake()
    server.result()
    poll = select.poll()
    poll.register(tls.fileno(), 0)
    while not poll.poll(0):  # errors are always reported
        await trio.lowlevel.checkpoint()
    assert not tls.probe()
    assert tls.probe_reason == "server closed"
    tls.close_nowait()


@pytest.fixture
async def refused(authority, serve):
    """A connection that the server turns down after the handshake, for want of a certificate; the alert has come."""
    context = authority.server(version=V13)
    authority.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(context)
    tls = TLSStream(SocketStream(server.connect()), authority.client(), server_hostname="a.test")
    await tls.do_handshake()
    assert isinstance(server.result(), ssl.SSLError)
    await arrived(tls)
    assert not tls.probe()
    assert tls.probe_reason == "error"
    yield tls
    tls.close_nowait()


@pytest.mark.parametrize("waiting", [True, False])
async def test_nothing_is_sent_after_an_alert(refused, waiting) -> None:
    """Also if it was a probe that met the alert, and not a receive, which would have raised."""

    async def send() -> None:
        if waiting:
            await refused.send_all(b"secret")
        else:
            refused.send_nowait(b"secret")

    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await send()
    assert not refused.probe()


async def test_closing_after_an_alert_has_nothing_to_say(refused) -> None:
    """OpenSSL writes no close_notify then; closing is no error either."""
    assert not refused.unsent
    await refused.aclose()
    assert refused.fileno() == -1


async def test_a_foreign_transport_that_fails_to_close(authority, caplog) -> None:
    class Odd(trio.abc.Stream):
        async def send_all(self, data: bytes) -> None:
            raise AssertionError

        wait_send_all_might_not_block = receive_some = send_all

        async def aclose(self) -> None:
            raise OSError("odd")

    TLSStream(Odd(), authority.client(), server_hostname="a.test").close_nowait()
    await trio.testing.wait_all_tasks_blocked()
    assert "failed" in caplog.text


# TLS in TLS


async def two_layers(authority) -> tuple[TLSStream, TLSStream]:
    left, right = socket.socketpair()
    client, server = SocketStream(left), SocketStream(right)
    for _ in range(2):
        client = TLSStream(client, authority.client(), server_hostname="a.test")
        server = TLSStream(server, authority.server(version=V13), server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
    return client, server


async def test_tickets_of_both_layers(authority) -> None:
    client, server = await two_layers(authority)
    # What a stock server does: the tickets go out at once, here those of the inner layer through the outer one.
    inner = server._engine._held
    server._engine._held = b""
    assert server.transport_stream.send_nowait(inner) == len(inner)
    assert not client.transport_stream.probe()  # to the outer layer they are stray bytes …
    assert client.probe()  # … and the inner one knows what they are
    assert client.transport_stream.probe()
    assert client.session.has_ticket
    await server.send_all(b"answer")
    assert not client.probe()
    assert await client.receive_some() == b"answer"
    assert client.probe()
    client.close_nowait()
    server.close_nowait()


@pytest.mark.case("cpython#28073")
async def test_both_layers_say_goodbye(authority) -> None:
    client, server = await two_layers(authority)
    assert client.fileno() == client.transport_stream.transport_stream.fileno() > 0
    client.close_nowait()
    assert client.fileno() == -1
    assert await server.receive_some() == b""
    assert await server.transport_stream.receive_some() == b""
    assert await server.transport_stream.transport_stream.receive_some() == b""
    server.close_nowait()


# Without waiting


async def test_nowait(pair, version) -> None:
    tls, peer = pair
    await past_tickets(tls, peer)
    with pytest.raises(trio.WouldBlock):
        tls.receive_nowait()
    assert tls.send_nowait(b"") == 0
    assert tls.send_nowait(b"question") == 8
    assert peer.recv(100) == b"question"
    peer.sendall(b"answer")
    await arrived(tls)
    assert tls.receive_nowait(3) == b"ans"
    assert tls.receive_nowait() == b"wer"
    peer.shutdown(socket.SHUT_WR)
    await arrived(tls)
    with pytest.raises(trio.BrokenResourceError):
        tls.receive_nowait()


async def test_nowait_at_the_end_in_https(authority, serve, remote, version) -> None:
    tls, peer = await connect(authority, serve, remote, version, https_compatible=True)
    await past_tickets(tls, peer)
    peer.shutdown(socket.SHUT_WR)
    await arrived(tls)
    for _ in range(2):
        assert tls.receive_nowait() == b""
        assert await tls.receive_some() == b""
    assert not tls.probe()
    assert tls.probe_reason == "server closed"
    tls.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await tls.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        tls.receive_nowait()


async def test_what_the_system_did_not_take_follows(pair, nursery) -> None:
    tls, peer = pair
    total = 0
    while taken := tls.send_nowait(bytes(100_000)):
        total += taken
    assert tls.send_nowait(b"x") == 0
    got = []

    def receive() -> None:
        peer.settimeout(10)
        while sum(got) < total + 4:
            got.append(len(peer.recv(2**20)))

    nursery.start_soon(trio.to_thread.run_sync, receive)
    await tls.send_all(b"more")


# Closing


class Ended(Exception):
    pass


def until_end(sock: ssl.SSLSocket) -> str:
    """How a connection ended, as the peer saw it."""
    try:
        while sock.recv(65536):
            pass
    except ssl.SSLEOFError:
        return "ragged"
    except ConnectionError:
        return "reset"
    return "close_notify"


@pytest.fixture
def stream_to(authority, serve, version):
    async def make(script) -> tuple[TLSStream, object]:
        server = serve(authority.server(version=version), script)
        tls = TLSStream(
            SocketStream(server.connect()), authority.client(), server_hostname="a.test", https_compatible=True
        )
        assert await tls.receive_some() == b"ready"  # behind the tickets, which unread would make our close a reset
        return tls, server

    return make


def strict(sock: ssl.SSLSocket) -> str:
    sock.sendall(b"ready")
    sock.suppress_ragged_eofs = False
    return until_end(sock)


async def test_close_nowait_says_close_notify(stream_to) -> None:
    tls, server = await stream_to(strict)
    tls.close_nowait()
    tls.close_nowait()
    assert server.result() == "close_notify"


@pytest.mark.parametrize("how", ["aclose", "aclose in https", "close_nowait"])
async def test_all_that_was_sent_arrives_though_nobody_read_the_tickets(authority, serve, remote, how) -> None:
    """A socket that is closed with something unread is reset, and what the peer has not taken yet is lost."""
    tls, peer = await connect(authority, serve, remote, V13, https_compatible="https" in how)
    await arrived(tls)  # the tickets, which a protocol that only sends never reads
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # so that all of it fits into our system's buffer
        tls.transport_stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2**31 - 1)
    size = 150_000  # more than the peer's system takes before it reads
    with trio.fail_after(20):
        await tls.send_all(bytes(size))
    if how == "close_nowait":
        tls.close_nowait()
    else:
        await tls.aclose()
    peer.settimeout(20)
    received = 0
    while data := peer.recv(65536):  # which raises after a reset
        received += len(data)
    assert received == size


async def test_graceful_close_waits_for_the_peer(stream_to) -> None:
    def answers(sock: ssl.SSLSocket) -> str:
        how = strict(sock)
        sock.sendall(b"late data")
        sock.unwrap()
        return how

    tls, server = await stream_to(answers)
    await tls.aclose_gracefully(30)
    assert tls.fileno() == -1
    assert server.result() == "close_notify"
    await tls.aclose_gracefully(30)
    await tls.aclose()


async def test_graceful_close_throws_away_what_still_comes(authority, serve) -> None:
    """The peer was in the middle of saying something; its close_notify is waited for behind that."""

    def talk(sock: ssl.SSLSocket) -> bytes:
        for _ in range(3):
            sock.sendall(b"x" * 20_000)
        said = sock.recv(100)  # our end
        sock.sendall(b"x" * 5_000_000)  # more than fits into buffers: somebody has to take it
        sock.unwrap()
        return said

    server = serve(authority.server(), talk)
    tls = TLSStream(SocketStream(server.connect()), authority.client(), server_hostname="a.test")
    await tls.do_handshake()
    await tls.aclose_gracefully(10)
    assert server.result() == b""


async def test_graceful_close_where_the_peer_is_gone(authority, serve) -> None:
    def reset(sock: ssl.SSLSocket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    server = serve(authority.server(), reset)
    tls = TLSStream(SocketStream(server.connect()), authority.client(), server_hostname="a.test")
    await tls.do_handshake()
    server.result()
    await tls.aclose_gracefully(10)
    assert tls.fileno() == -1


async def test_a_grace_of_nothing_aborts(stream_to) -> None:
    tls, server = await stream_to(strict)
    await tls.aclose_gracefully(0)
    assert tls.fileno() == -1
    assert server.result() == "ragged"


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
async def test_graceful_close_on_a_mute_peer(authority, how, autojump_clock) -> None:
    gc.disable()
    try:
        left, right = trio.testing.memory_stream_pair()
        tls = TLSStream(left, authority.client(), server_hostname="a.test")
        peer = TLSStream(right, authority.server(), server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.do_handshake)
            nursery.start_soon(peer.do_handshake)
        started = trio.current_time()
        if how == "deadline":
            await tls.aclose_gracefully(3)
        else:
            with trio.move_on_after(3) as scope:
                await tls.aclose_gracefully(1000)
            assert scope.cancelled_caught
        assert trio.current_time() - started == 3
        with pytest.raises(trio.ClosedResourceError):
            await left.send_all(b"x")
        assert await peer.receive_some() == b""
    finally:
        gc.enable()


async def test_graceful_close_on_a_deaf_peer(authority, autojump_clock) -> None:
    """Not even the close_notify gets out."""
    left, right = trio.testing.lockstep_stream_pair()
    tls = TLSStream(left, authority.client(), server_hostname="a.test")
    peer = TLSStream(right, authority.server(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.do_handshake)
        nursery.start_soon(peer.do_handshake)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def blocked() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await tls.send_all(b"x")

        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await tls.aclose_gracefully(2)
        assert trio.current_time() - started == 2


async def test_graceful_close_beside_a_receiver(authority, nursery) -> None:
    left, right = trio.testing.memory_stream_pair()
    tls = TLSStream(left, authority.client(), server_hostname="a.test")
    peer = TLSStream(right, authority.server(), server_side=True)
    async with trio.open_nursery() as shaking:
        shaking.start_soon(tls.do_handshake)
        shaking.start_soon(peer.do_handshake)

    @nursery.start_soon
    async def receive() -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # an end is as good
            assert await tls.receive_some() == b""

    await trio.testing.wait_all_tasks_blocked()

    @nursery.start_soon
    async def answer() -> None:
        assert await peer.receive_some() == b""
        await peer.aclose()

    with trio.fail_after(5):
        await tls.aclose_gracefully(100)


async def test_graceful_close_beside_a_receiver_on_a_mute_peer(authority, nursery, autojump_clock) -> None:
    """Both wait for the same bytes; the closer does not take the receiver's turn, nor give up for it."""
    left, right = trio.testing.memory_stream_pair()
    tls = TLSStream(left, authority.client(), server_hostname="a.test")
    peer = TLSStream(right, authority.server(), server_side=True)
    async with trio.open_nursery() as shaking:
        shaking.start_soon(tls.do_handshake)
        shaking.start_soon(peer.do_handshake)

    @nursery.start_soon
    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await tls.receive_some()

    await trio.testing.wait_all_tasks_blocked()
    started = trio.current_time()
    await tls.aclose_gracefully(2)
    assert trio.current_time() - started == 2


async def test_a_receive_that_was_cancelled_while_it_had_to_send(authority, autojump_clock) -> None:
    """Of what it was sending, nobody knows how much has gone out."""
    left, right = trio.testing.lockstep_stream_pair()
    tls = TLSStream(left, authority.client(), server_hostname="a.test")
    peer = TLSStream(right, authority.server(), server_side=True)
    async with trio.open_nursery() as shaking:
        shaking.start_soon(tls.do_handshake)
        shaking.start_soon(peer.do_handshake)
    tls._engine.object.write(b"as a renegotiation would")
    with trio.move_on_after(1) as scope:
        await tls.receive_some()
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await tls.receive_some()
    await trio.aclose_forcefully(tls)
    await trio.aclose_forcefully(peer)


async def test_graceful_close_where_there_is_nobody(authority) -> None:
    for prepare in (lambda tls: None, lambda tls: tls._break()):
        left, right = socket.socketpair()
        with right:
            tls = TLSStream(SocketStream(left), authority.client(), server_hostname="a.test")
            prepare(tls)
            with trio.testing.assert_checkpoints():
                await tls.aclose_gracefully(100)
            assert left.fileno() == -1
            assert right.recv(100) == b""


async def test_close_nowait_in_the_middle_of_a_send(pair, nursery) -> None:
    """Nothing may follow a part of a record."""
    tls, _ = pair

    @nursery.start_soon
    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await tls.send_all(bytes(2**26))

    await trio.testing.wait_all_tasks_blocked()
    tls.close_nowait()
    assert tls.fileno() == -1


async def test_the_alert_reaches_the_peer(authority, stranger, serve) -> None:
    def never(sock: ssl.SSLSocket) -> None:
        raise AssertionError

    server = serve(stranger.server(version=V12), never)
    tls = TLSStream(SocketStream(server.connect()), authority.client(), server_hostname="a.test")
    with pytest.raises(trio.BrokenResourceError):
        await tls.do_handshake()
    tls.close_nowait()
    error = server.result()
    assert isinstance(error, ssl.SSLError)
    assert error.reason == "TLSV1_ALERT_UNKNOWN_CA"


async def test_two_tasks_learn_of_a_failed_handshake(authority) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    tls = TLSStream(ours, authority.client(), server_hostname="a.test", https_compatible=True)

    async def fails(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, tls.receive_some)
        nursery.start_soon(fails, lambda: tls.send_all(b"x"))
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
