"""A pipe as a stream: what trio promises of every stream, and what pipes have of their own.

Where both ends are of the library, the server's end is a `PipeStream` too; what matters to peers is tested against
servers that share no code with it.
"""

from __future__ import annotations

import random
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trioconn._establish.named_pipe import open_pipe

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="named pipes exist on Windows alone (or under Wine)")
if sys.platform == "win32":
    import _winapi

    from trioconn._establish import windows_calls as calls
    from trioconn._establish.windows_pipe_stream import PipeStream

Serve = Any  # the fixtures; see conftest.py
MakePair = Any
LARGE = 8 * 2**20


async def send_and_receive(stream: trio.abc.Stream, data: bytes) -> bytes:
    """Send `data`, meanwhile receive as much."""
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        while len(received) < len(data):
            part = await stream.receive_some()
            assert part
            received += part
    return bytes(received)


async def fill(stream: PipeStream) -> None:
    """Send until the pipe is full; what is under way then is taken back."""
    with trio.move_on_after(0.2) as scope:
        while True:
            await stream.send_all(b"x" * 1024)
    assert scope.cancelled_caught


# What trio promises


async def test_conformance(make_pair: MakePair) -> None:
    await trio.testing.check_two_way_stream(make_pair, None)


async def test_conformance_on_messages(make_pair: MakePair) -> None:
    """A pipe that was made for messages is read as bytes all the same."""

    async def make() -> tuple[PipeStream, PipeStream]:
        return await make_pair(messages=True)

    await trio.testing.check_two_way_stream(make, None)


async def test_echo(echo_path: str) -> None:
    async with await open_pipe(echo_path) as stream:
        for size in (1, 2, 1000, 4096, 4097, 65536, 65537, 200_000):
            data = random.Random(size).randbytes(size)
            assert await send_and_receive(stream, data) == data


async def test_large_both_ways(echo_path: str) -> None:
    """8 MB out and back, through servers that read no more before they have written what they had."""
    data = random.Random(0).randbytes(LARGE)
    async with await open_pipe(echo_path) as stream:
        assert await send_and_receive(stream, data) == data


async def test_large_both_ways_at_once(make_pair: MakePair) -> None:
    """Both ends send 8 MB before they expect anything."""
    client, server = await make_pair()
    there, back = random.Random(1).randbytes(LARGE), random.Random(2).randbytes(LARGE)
    received: dict[str, bytes] = {}

    async def receive(stream: PipeStream, name: str) -> None:
        parts = bytearray()
        while len(parts) < LARGE:
            parts += await stream.receive_some()
        received[name] = bytes(parts)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, there)
        nursery.start_soon(server.send_all, back)
        nursery.start_soon(receive, client, "back")
        nursery.start_soon(receive, server, "there")
    assert received == {"there": there, "back": back}


async def test_fifty_clients_at_once(path: str, serve: Serve) -> None:
    server = serve(instances=10)

    async def client(number: int) -> None:
        async with await open_pipe(path) as stream:
            for round_trip in range(5):
                data = b"%d %d " % (number, round_trip) * 100
                assert await send_and_receive(stream, data) == data

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(client, number)
    assert server.accepted == 50


async def test_max_bytes(make_pair: MakePair) -> None:
    client, server = await make_pair()
    await server.send_all(b"abcdef")
    assert await client.receive_some(1) == b"a"
    assert await client.receive_some(3) == b"bcd"
    assert client.receive_nowait(1) == b"e"
    assert await client.receive_some(100) == b"f"
    for size, expected in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(expected):
            await client.receive_some(size)
        with pytest.raises(expected):
            client.receive_nowait(size)


@pytest.mark.parametrize("wrap", [bytearray, memoryview, lambda data: memoryview(data).cast("H")])
async def test_buffers(make_pair: MakePair, wrap: Callable[[bytes], Any]) -> None:
    """What is sent may be of any buffer, and is counted in bytes."""
    client, server = await make_pair()
    await client.send_all(wrap(b"abcdef"))
    assert await server.receive_some() == b"abcdef"
    assert client.send_nowait(wrap(b"ghijkl")) == 6
    assert await server.receive_some() == b"ghijkl"


# Backpressure and cancellation


async def test_backpressure(make_pair: MakePair) -> None:
    """A sender waits for a peer that does not read, and goes on when it does."""
    client, server = await make_pair()
    sent = trio.Event()

    async def send() -> None:
        await client.send_all(b"x" * 500_000)
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not sent.is_set()
        received = 0
        while received < 500_000:
            received += len(await server.receive_some())
    assert sent.is_set()


async def test_cancelled_receive_takes_nothing(make_pair: MakePair) -> None:
    client, server = await make_pair()
    for number in range(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        data = b"%d" % number
        await server.send_all(data)
        assert await client.receive_some() == data


async def test_data_and_cancellation_in_one_tick(make_pair: MakePair) -> None:
    """What arrives while a receive is being cancelled comes out of it or of the next one."""
    client, server = await make_pair()
    received = b""
    for number in range(200):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    nonlocal received
                    received += await client.receive_some()

                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                assert server.send_nowait(b"%d," % number)
                scope.cancel()
        assert client._reading is None
    with trio.move_on_after(0.2):
        while True:
            received += await client.receive_some()
    assert received == b"".join(b"%d," % number for number in range(200))


async def test_cancelled_send_and_going_on(make_pair: MakePair) -> None:
    """After a cancelled send the peer has a beginning of the data, and the next send arrives whole."""
    client, server = await make_pair()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"a" * 300_000)
            received = len(await server.receive_some())
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()
    assert scope.cancelled_caught
    end = b"z" * 100_000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, end)
        tail = b""
        while tail.count(b"z") < len(end):
            tail += await server.receive_some()
    assert tail.strip(b"a") == end
    assert received + len(tail) < 300_000 + len(end)
    assert not client.probe()
    assert client.probe_reason == "error"


async def test_one_sender_and_one_receiver(make_pair: MakePair) -> None:
    client, server = await make_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        nursery.start_soon(client.send_all, b"x" * 500_000)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(trio.BusyResourceError):
            await client.send_all(b"x")
        with pytest.raises(trio.BusyResourceError):
            client.send_nowait(b"x")
        with pytest.raises(trio.BusyResourceError):
            await client.wait_send_all_might_not_block()
        with pytest.raises(trio.BusyResourceError):
            await client.receive_some()
        with pytest.raises(trio.BusyResourceError):
            client.receive_nowait()
        assert not client.probe()
        assert client.probe_reason == "in use"
        nursery.cancel_scope.cancel()
    server.close_nowait()


# The end, from either side


async def test_end_after_what_was_sent(make_pair: MakePair) -> None:
    client, server = await make_pair()
    await server.send_all(b"last words")
    server.close_nowait()
    assert await client.receive_some(4) == b"last"
    assert await client.receive_some() == b" words"
    for _ in range(3):
        with trio.testing.assert_checkpoints():
            assert await client.receive_some() == b""
    assert client.receive_nowait() == b""
    assert not client.probe()
    assert client.probe_reason == "server closed"


async def test_end_while_waiting(make_pair: MakePair) -> None:
    client, server = await make_pair()
    received = []

    async def receive() -> None:
        received.append(await client.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        server.close_nowait()
    assert received == [b""]


async def test_disconnected(path: str, serve: Serve, throw_out: Callable[[int], None]) -> None:
    """The server throws the client out without closing its own end."""
    go_on = threading.Event()

    def handler(handle: int) -> None:
        throw_out(handle)
        go_on.wait(10)

    serve(handler)
    stream = await open_pipe(path)
    assert await stream.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        stream.send_nowait(b"x")
    stream.close_nowait()
    go_on.set()


async def test_sending_to_a_closed_server(make_pair: MakePair) -> None:
    client, server = await make_pair()
    server.close_nowait()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.send_all(b"x")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.winerror in {109, 232, 233}
    with pytest.raises(trio.BrokenResourceError):
        client.send_nowait(b"x")
    assert not client.probe()


async def test_disconnected_before_anything_is_asked(path: str, serve: Serve, throw_out: Callable[[int], None]) -> None:
    """A pipe that opens is open, also if the server has thrown the client out by the time it is first looked at."""
    serve(throw_out)
    for _ in range(10):
        async with await open_pipe(path) as stream:
            assert await stream.receive_some() == b""


async def test_server_closes_while_sending(make_pair: MakePair) -> None:
    client, server = await make_pair()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await client.send_all(b"x" * 500_000)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        server.close_nowait()


async def test_server_process_killed(path: str, echo_process: Any) -> None:
    async with await open_pipe(path) as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        assert stream.probe()
        echo_process.kill()
        assert await stream.receive_some() == b""
        assert not stream.probe()


async def test_empty_write_is_not_the_end(path: str, serve: Serve) -> None:
    """On a pipe of bytes a server that writes nothing has said nothing."""

    def handler(handle: int) -> None:
        _winapi.WriteFile(handle, b"")
        _winapi.WriteFile(handle, b"data")
        _winapi.ReadFile(handle, 1)

    serve(handler)
    async with await open_pipe(path) as stream:
        assert await stream.receive_some() == b"data"


async def test_read_of_nothing_is_not_the_end(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the system does pass the nothing on, which Wine does not."""
    client, server = await make_pair()
    really_read = trio.lowlevel.readinto_overlapped
    reads = []

    async def read(handle: int, buffer: bytearray) -> int:
        reads.append(handle)
        return 0 if len(reads) == 1 else await really_read(handle, buffer)

    monkeypatch.setattr(trio.lowlevel, "readinto_overlapped", read)
    await server.send_all(b"data")
    assert await client.receive_some() == b"data"
    assert len(reads) == 2


async def test_read_of_nothing_and_close_in_one_tick(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no handle left to ask what kind of pipe it is."""
    client, _ = await make_pair()

    async def read(handle: int, buffer: bytearray) -> int:
        client.close_nowait()
        return 0

    monkeypatch.setattr(trio.lowlevel, "readinto_overlapped", read)
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_some()


async def test_empty_message_is_the_end(path: str, serve: Serve) -> None:
    """On a pipe of messages it is how servers such as Docker's say that no more will come."""

    def handler(handle: int) -> None:
        _winapi.WriteFile(handle, b"data")
        _winapi.WriteFile(handle, b"")
        _winapi.ReadFile(handle, 1)

    serve(handler, messages=True)
    async with await open_pipe(path) as stream:
        assert await stream.receive_some() == b"data"
        for _ in range(2):
            with trio.fail_after(10):
                assert await stream.receive_some() == b""
        assert not stream.probe()
        await stream.send_all(b"x")  # the other direction is still open


# Closing


@pytest.mark.parametrize("how", ["close_nowait", "aclose"])
async def test_closed_while_a_task_waits(make_pair: MakePair, how: str) -> None:
    client, _ = await make_pair()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(b"x" * 500_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        if how == "aclose":
            await client.aclose()
        else:
            client.close_nowait()


@pytest.mark.parametrize("first", ["close", "cancel"])
@pytest.mark.parametrize("again", [False, True], ids=["", "handle comes back"])
async def test_closed_and_cancelled_in_one_tick(make_pair: MakePair, path: str, first: str, again: bool) -> None:
    """No operation may be cancelled on a handle that is closed, or that is another pipe's by now."""
    for _ in range(20):
        client, server = await make_pair()
        others = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.receive_some)
            nursery.start_soon(client.send_all, b"x" * 500_000)
            await trio.testing.wait_all_tasks_blocked()
            if first == "cancel":
                nursery.cancel_scope.cancel()
            client.close_nowait()
            if again:
                others.append(_winapi.CreateNamedPipe(path + "2", 3 | 0x40000000, 0, 255, 4096, 4096, 0, 0))
            nursery.cancel_scope.cancel()
        server.close_nowait()
        for handle in others:
            _winapi.CloseHandle(handle)


async def test_data_and_close_in_one_tick(make_pair: MakePair) -> None:
    """The read was quicker than the close: the stream is closed all the same."""
    client, server = await make_pair()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert server.send_nowait(b"x") == 1
        client.close_nowait()


async def test_after_closing(make_pair: MakePair) -> None:
    client, server = await make_pair()
    assert "handle=0x" in repr(client)
    client.close_nowait()
    client.close_nowait()
    with trio.testing.assert_checkpoints():
        await client.aclose()
    for call in (client.receive_some, client.wait_send_all_might_not_block):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    for data in (b"", b"x"):
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(data)
        with pytest.raises(trio.ClosedResourceError):
            client.send_nowait(data)
    with pytest.raises(trio.ClosedResourceError):
        client.receive_nowait()
    assert not client.probe()
    assert client.probe_reason == "closed"
    assert client.fileno() == -1
    assert "closed" in repr(client)
    assert await server.receive_some() == b""


async def test_last_words_arrive_after_closing(make_pair: MakePair) -> None:
    """Closing does not take back what was sent and not yet read."""
    client, server = await make_pair()
    await client.send_all(b"one ")
    assert client.send_nowait(b"two") == 3
    client.close_nowait()
    received = b""
    while part := await server.receive_some():
        received += part
    assert received == b"one two"


# The synchronous half


async def test_probe(make_pair: MakePair) -> None:
    client, server = await make_pair()
    assert client.probe()
    assert client.fileno() == -1
    await server.send_all(b"x")
    assert not client.probe()
    assert client.probe_reason == "stray bytes"
    assert not client.probe()  # it has taken nothing
    assert await client.receive_some() == b"x"
    assert client.probe()
    server.close_nowait()
    assert not client.probe()
    assert client.probe_reason == "server closed"


async def test_probe_while_in_use(make_pair: MakePair) -> None:
    client, _ = await make_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert not client.probe()
        assert client.probe_reason == "in use"
        nursery.cancel_scope.cancel()
    assert client.probe()  # a cancelled receive has changed nothing


async def test_cancelled_before_sending_spoils_nothing(make_pair: MakePair) -> None:
    client, _ = await make_pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.send_all(b"x")
    assert scope.cancelled_caught
    assert client.probe()


async def test_receive_nowait(make_pair: MakePair) -> None:
    client, server = await make_pair()
    with pytest.raises(trio.WouldBlock):
        client.receive_nowait()
    await server.send_all(b"abc")
    assert client.receive_nowait(2) == b"ab"
    assert client.receive_nowait() == b"c"
    with pytest.raises(trio.WouldBlock):
        client.receive_nowait()
    server.close_nowait()
    assert client.receive_nowait() == b""
    assert await client.receive_some() == b""


async def test_nowait_calls_stay_out_of_the_event_loop(make_pair: MakePair) -> None:
    """Their completions are not posted to trio, which would take one that it did not ask for as a bug."""
    client, server = await make_pair()
    for _ in range(100):
        assert client.send_nowait(b"there") == 5
        assert server.receive_nowait() == b"there"
        await trio.lowlevel.checkpoint()
    async with trio.open_nursery() as nursery:  # also while another operation is under way
        nursery.start_soon(client.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            assert client.send_nowait(b"there") == 5
            assert server.receive_nowait() == b"there"
            await trio.lowlevel.checkpoint()
        await server.send_all(b"end")


async def test_send_nowait_to_a_full_pipe(make_pair: MakePair) -> None:
    """Nothing is left queued in the system, and what follows cannot join on to a part."""
    client, server = await make_pair()
    await fill(client)
    assert client.send_nowait(b"y" * 1024) == 0
    with pytest.raises(trio.BrokenResourceError, match="full pipe"):
        await client.send_all(b"y")
    with pytest.raises(trio.BrokenResourceError, match="full pipe"):
        client.send_nowait(b"y")
    client.close_nowait()
    received = b""
    while part := await server.receive_some():
        received += part
    assert set(received) == set(b"x")


async def test_closed_while_what_was_queued_is_withdrawn(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer of a full pipe goes in the very moment: that is an end of the pipe, and not a pipe that is full."""
    client, server = await make_pair()
    await fill(client)
    really_cancel = calls._cancel

    def cancel(*arguments: Any) -> Any:
        server.close_nowait()
        return really_cancel(*arguments)

    monkeypatch.setattr(calls, "_cancel", cancel)
    with pytest.raises(trio.BrokenResourceError, match="the pipe is broken"):
        client.send_nowait(b"y" * 1024)
    assert not client.probe()


async def test_network_of_another_machine_lost(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no end of the stream, after which everything would have been received."""

    def lose(*_: object) -> int:
        raise OSError(None, "the network name is no longer available", None, 64)

    async def lose_later(*_: object) -> int:
        await trio.lowlevel.checkpoint()
        return lose()

    client, _ = await make_pair()
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "readinto_overlapped", lose_later)
        with pytest.raises(trio.BrokenResourceError, match="network name"):
            await client.receive_some()
    assert not client.probe()
    assert client.probe_reason == "error"

    client, _ = await make_pair()
    with monkeypatch.context() as patch:
        patch.setattr(calls, "count_readable", lose)
        with pytest.raises(trio.BrokenResourceError, match="network name"):
            client.receive_nowait()
    assert not client.probe()
    assert client.probe_reason == "error"


# TLS inside


async def test_tls_inside(make_pair: MakePair, server_ssl: Any, client_ssl: ssl.SSLContext) -> None:
    client, server = await make_pair()
    inside = trio.SSLStream(client, client_ssl, server_hostname="example.test")
    outside = trio.SSLStream(server, server_ssl(), server_side=True)
    data = random.Random(3).randbytes(300_000)

    async def echo() -> None:
        async for part in outside:
            await outside.send_all(part)
        await outside.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        assert await send_and_receive(inside, data) == data
        await inside.aclose()
