"""Our plain stream is trio's, and can be probed, read, written and closed without an await."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trioconn._establish import sockets
from trioconn._establish.sockets import SocketStream


def connected_pair(family: str) -> tuple[socket.socket, socket.socket]:
    if family == "unix":
        if not hasattr(socket, "AF_UNIX"):
            pytest.skip("no Unix sockets here")
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


@pytest.fixture(params=["tcp", "unix"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pair(family: str):
    """Our stream and the peer's blocking socket."""
    ours, theirs = connected_pair(family)
    stream = SocketStream(ours)
    with ours, theirs:
        yield stream, theirs


async def test_conformance(family: str) -> None:
    async def maker() -> tuple[SocketStream, SocketStream]:
        left, right = connected_pair(family)
        return SocketStream(left), SocketStream(right)

    async def clogged() -> tuple[SocketStream, SocketStream]:
        left, right = await maker()
        for stream in (left, right):
            while stream.send_nowait(bytes(2**20)):
                pass
        return left, right

    await trio.testing.check_half_closeable_stream(maker, clogged)


def test_refuses_what_is_no_stream_socket() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError, match="stream socket"):
        SocketStream(datagrams)
    assert datagrams.fileno() == -1  # by its own `with`; the constructor did not touch it

    class Disguised(socket.socket):
        pass

    with Disguised() as odd, pytest.raises(TypeError, match="Disguised"):
        SocketStream(odd)


async def test_options(pair) -> None:
    stream, _ = pair
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
    assert struct.unpack("i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 4))[0] != 0
    with pytest.raises(OSError, match="address"):  # a null pointer is handed through; it is the system's to refuse
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 4)
    with pytest.raises(TypeError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None)
    with pytest.raises(TypeError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1, 4)


# The probe


def reset(peer: socket.socket) -> None:
    """Close `peer` so that the other end meets a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def arrived(stream: SocketStream) -> None:
    """Until what the peer did has reached our socket."""
    await trio.lowlevel.wait_readable(stream.fileno())


async def test_probe_of_a_quiet_connection(pair) -> None:
    stream, peer = pair
    assert stream.probe()
    await stream.send_all(b"question")
    assert peer.recv(100) == b"question"
    assert stream.probe()
    peer.sendall(b"answer")
    assert await stream.receive_some() == b"answer"
    assert stream.probe()
    assert stream.probe_reason == ""


@pytest.mark.security(58)
async def test_probe_sees_what_the_event_loop_has_not(pair) -> None:
    stream, peer = pair
    peer.sendall(b"unasked")  # no checkpoint between this and the question
    if peer.family == socket.AF_INET:
        select.select([stream], [], [], 5)  # the kernel's loopback may take a moment; the event loop is not asked
    assert not stream.probe()
    assert stream.probe_reason == "stray bytes"
    assert await stream.receive_some() == b"unasked"  # the look took nothing
    assert stream.probe()


async def test_probe_after_the_peer_ended(pair) -> None:
    stream, peer = pair
    peer.shutdown(socket.SHUT_WR)
    await arrived(stream)
    for _ in range(2):
        assert not stream.probe()
        assert stream.probe_reason == "server closed"
        assert await stream.receive_some() == b""
        assert stream.receive_nowait() == b""


async def test_probe_after_a_reset() -> None:
    ours, peer = connected_pair("tcp")
    stream = SocketStream(ours)
    reset(peer)
    await arrived(stream)
    assert not stream.probe()
    assert stream.probe_reason == "server closed"
    with pytest.raises(trio.BrokenResourceError):
        stream.receive_nowait()
    assert not stream.probe()  # the error is told once by the kernel, and not forgotten
    with pytest.raises(trio.BrokenResourceError):
        stream.send_nowait(b"x")
    await stream.aclose()


async def test_probe_while_a_task_is_inside_a_call(pair, nursery) -> None:
    stream, peer = pair

    async def until_cancelled(scope: trio.CancelScope, call: Callable[[], Awaitable[object]]) -> None:
        with scope:
            await call()

    scope = trio.CancelScope()
    nursery.start_soon(until_cancelled, scope, stream.receive_some)
    await trio.testing.wait_all_tasks_blocked()
    assert not stream.probe()
    assert stream.probe_reason == "in use"
    with pytest.raises(trio.BusyResourceError):
        stream.receive_nowait()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert stream.probe()  # a cancelled receive has taken nothing

    while stream.send_nowait(bytes(2**20)):
        pass
    scope = trio.CancelScope()
    nursery.start_soon(until_cancelled, scope, stream.wait_send_all_might_not_block)
    await trio.testing.wait_all_tasks_blocked()
    assert not stream.probe()
    with pytest.raises(trio.BusyResourceError):
        stream.send_nowait(b"x")
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert stream.probe()
    peer.close()


async def test_a_send_that_was_cut_short_spoils_it(pair, autojump_clock) -> None:
    stream, _ = pair
    with trio.move_on_after(1) as scope:
        await stream.send_all(bytes(2**26))
    assert scope.cancelled_caught
    assert not stream.probe()
    assert stream.probe_reason == "error"


async def test_a_send_cancelled_before_it_began_does_not(pair) -> None:
    stream, _ = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.send_all(b"x")
    assert scope.cancelled_caught
    assert stream.probe()


async def test_half_closed_is_not_clean(pair) -> None:
    stream, _ = pair
    await stream.send_eof()
    await stream.send_eof()
    assert not stream.probe()
    assert stream.probe_reason == "closed"
    with pytest.raises(trio.ClosedResourceError):
        stream.send_nowait(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")


async def test_closed_and_its_number_given_to_another(pair) -> None:
    stream, _ = pair
    number = stream.fileno()
    stream.close_nowait()
    stream.close_nowait()
    assert stream.fileno() == -1
    others = []
    try:
        while not others or others[-1].fileno() < number:
            others.append(socket.socket())
        assert not stream.probe()  # the poll object still knows the number, which is quiet
        assert stream.probe_reason == "closed"
        for call in (stream.receive_nowait, lambda: stream.send_nowait(b"x")):
            with pytest.raises(trio.ClosedResourceError):
                call()
    finally:
        for other in others:
            other.close()


async def test_without_poll(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.delattr(select, "poll")
    ours, peer = connected_pair(family)
    stream = SocketStream(ours)
    with peer:
        assert stream.probe()
        peer.sendall(b"x")
        await arrived(stream)
        assert not stream.probe()
        assert stream.probe_reason == "stray bytes"
        assert stream.receive_nowait() == b"x"
        assert stream.probe()
    await arrived(stream)
    assert not stream.probe()
    stream.close_nowait()
    assert not stream.probe()


def test_descriptors_above_1023(family: str) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("not allowed to open that many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    fillers: list[socket.socket] = []
    try:
        while not fillers or fillers[-1].fileno() < 1024:
            fillers.append(socket.socket())

        async def main() -> None:
            ours, peer = connected_pair(family)
            assert ours.fileno() > 1023
            stream = SocketStream(ours)
            assert stream.probe()
            with peer:
                peer.sendall(b"x")
                await arrived(stream)
                assert not stream.probe()
                assert await stream.receive_some() == b"x"
                assert stream.probe()
            await stream.aclose()

        trio.run(main)
    finally:
        for filler in fillers:
            filler.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Without waiting


async def test_receive_nowait(pair) -> None:
    stream, peer = pair
    with pytest.raises(trio.WouldBlock):
        stream.receive_nowait()
    peer.sendall(b"abc")
    await arrived(stream)
    assert stream.receive_nowait(2) == b"ab"
    assert stream.receive_nowait(2) == b"c"


async def test_send_nowait_says_how_much_was_taken(pair) -> None:
    stream, peer = pair
    total = 0
    while taken := stream.send_nowait(bytes(2**20)):
        total += taken
    peer.settimeout(5)
    while total:
        total -= len(peer.recv(2**20))
    assert total == 0
    await stream.wait_send_all_might_not_block()
    assert stream.send_nowait(memoryview(b"abc")) == 3


async def test_memoryviews_of_other_items(pair) -> None:
    stream, peer = pair
    await stream.send_all(memoryview(struct.pack("3i", 1, 2, 3)).cast("i"))
    assert peer.recv(100) == struct.pack("3i", 1, 2, 3)


def test_repr_shows_the_descriptor(pair) -> None:
    stream, _ = pair
    assert repr(stream) == f"<SocketStream fd={stream.fileno()}>"


@pytest.mark.case("trio#198")
async def test_cancelled_then_closed_leaves_nothing(pair, autojump_clock) -> None:
    stream, peer = pair
    with trio.move_on_after(1):
        await stream.send_all(bytes(2**26))
    await stream.aclose()
    peer.settimeout(5)
    while peer.recv(2**20):
        pass


# Systems that are old, sockets that are odd, wake-ups for nothing


async def test_a_system_that_cannot_bound_what_is_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_NOTSENT_LOWAT", raising=False)
    ours, peer = connected_pair("tcp")
    stream = SocketStream(ours)
    with ours, peer:
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await stream.send_all(b"x")
        assert peer.recv(1) == b"x"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no other stream sockets than those of TCP")
async def test_a_stream_socket_without_the_options_of_tcp() -> None:
    """As those of virtual machines and of some protocols are. A Unix one that calls itself AF_INET serves as well."""
    ours, peer = socket.socketpair()
    disguised = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=ours.detach())
    with pytest.raises(OSError, match="not supported"):
        disguised.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = SocketStream(disguised)
    with disguised, peer:
        await stream.send_all(b"x")
        assert peer.recv(1) == b"x"
        assert stream.probe()


def wake_for_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """The next wait of the kind is over at once, although nothing has happened; returns whom it was for."""
    really_wait = getattr(sockets, name)
    woken: list[object] = []

    async def wait(sock: object) -> None:
        if not woken:
            woken.append(sock)
            await trio.lowlevel.checkpoint()
        else:
            await really_wait(sock)

    monkeypatch.setattr(sockets, name, wait)
    return woken


async def test_woken_for_nothing_to_read(pair, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> None:
    """The system may take back what it has said, for one over a wrong checksum: that is not the end of the stream."""
    stream, peer = pair
    woken = wake_for_nothing(monkeypatch, "wait_readable")

    @nursery.start_soon
    async def answer() -> None:
        while not woken:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        peer.sendall(b"answer")

    assert await stream.receive_some() == b"answer"
    assert woken


async def test_woken_for_no_room_to_write(pair, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> None:
    stream, peer = pair
    data = bytes(range(256)) * 2**15
    sent = 0
    while count := stream.send_nowait(data[sent:]):
        sent += count
    woken = wake_for_nothing(monkeypatch, "wait_writable")
    nursery.start_soon(stream.send_all, data[sent:])
    while not woken:
        await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    received = b""
    while len(received) < len(data):
        received += await trio.to_thread.run_sync(peer.recv, 2**20)
    assert received == data


async def test_closed_behind_its_back() -> None:
    """A descriptor that somebody else has closed by its number is a closed stream, and no error of the system."""
    ours, peer = connected_pair("tcp")
    stream = SocketStream(ours)
    with peer:
        os.close(ours.fileno())
        try:
            for call in (stream.wait_send_all_might_not_block, stream.receive_some, lambda: stream.send_all(b"x")):
                with pytest.raises(trio.ClosedResourceError):
                    await call()
        finally:
            ours.detach()


async def test_half_close_of_what_was_reset() -> None:
    ours, peer = connected_pair("tcp")
    stream = SocketStream(ours)
    reset(peer)
    await arrived(stream)
    with pytest.raises(trio.BrokenResourceError):
        stream.receive_nowait()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_eof()
    await stream.aclose()


async def test_closed_after_a_probe_met_a_reset() -> None:
    """The stream remembers the reset, but whoever closes it is told what he has done."""
    ours, peer = connected_pair("tcp")
    stream = SocketStream(ours)
    reset(peer)
    await arrived(stream)
    assert not stream.probe()
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    stream.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        stream.receive_nowait()
