"""`TLSStream` and `trio.SSLStream` side by side: what a user of the one relies on, the other does as well."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trioconn._establish.tls import TLSStream

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Slow(trio.abc.Stream):
    """A transport with a delay before and after each call, by script: every order of events can be had."""

    def __init__(self, stream: trio.abc.Stream, delays: list[float]) -> None:
        self.stream = stream
        self.delays = delays
        self.calls = 0

    async def pause(self) -> None:
        self.calls += 1
        await trio.sleep(self.delays[self.calls % len(self.delays)])

    async def send_all(self, data: bytes) -> None:
        await self.pause()
        await self.stream.send_all(data)
        await self.pause()

    async def wait_send_all_might_not_block(self) -> None:
        await self.pause()
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self.pause()
        try:
            return await self.stream.receive_some(max_bytes)
        finally:
            with trio.CancelScope(shield=True):  # what was received must not be lost
                await self.pause()

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.fixture(params=[trio.SSLStream, TLSStream], ids=["trio", "ours"])
def cls(request: pytest.FixtureRequest) -> type[trio.abc.Stream]:
    return request.param


@pytest.fixture(params=[V12, V13], ids=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return request.param


@pytest.fixture
def wrap(cls, authority, version):
    """Both ends, over the given transports or over memory."""
    server_context, client_context = authority.server(version=version), authority.client()

    def make(pair=None, **options):
        left, right = pair or trio.testing.memory_stream_pair()
        return (
            cls(left, client_context, server_hostname="a.test", **options),
            cls(right, server_context, server_side=True, **options),
        )

    return make


async def both(*calls: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(call)


async def shaken(pair):
    await both(pair[0].do_handshake, pair[1].do_handshake)
    return pair


async def test_attributes(wrap, cls, version) -> None:
    left, right = trio.testing.memory_stream_pair()
    client, server = wrap((left, right))
    assert client.transport_stream is left
    assert isinstance(client.context, ssl.SSLContext)
    assert client.server_hostname == "a.test"
    assert client.server_side is False
    assert server.server_side is True
    assert client.pending() == 0
    for name in ("getpeercert", "selected_alpn_protocol", "cipher", "shared_ciphers", "compression", "version"):
        with pytest.raises(trio.NeedHandshakeError):
            getattr(client, name)()
    with pytest.raises(trio.NeedHandshakeError):
        client.get_channel_binding("tls-unique")
    with pytest.raises(trio.NeedHandshakeError):
        _ = client.session_reused

    await shaken((client, server))
    assert client.version() == server.version() == ("TLSv1.2" if version == V12 else "TLSv1.3")
    assert client.cipher() == server.cipher()
    assert client.compression() is None
    assert client.session_reused is False
    assert client.selected_alpn_protocol() is None
    assert ("DNS", "a.test") in client.getpeercert()["subjectAltName"]
    assert client.getpeercert(binary_form=True) == client.getpeercert(True)
    assert server.getpeercert() is None
    assert client.session is not None
    if version == V12:
        assert client.get_channel_binding("tls-unique") == server.get_channel_binding("tls-unique") is not None
    with pytest.raises(ValueError, match="after handshake"):
        client.session = client.session


async def test_the_transport_is_shown(authority) -> None:
    left, _ = trio.testing.memory_stream_pair()
    assert repr(TLSStream(left, authority.client(), server_hostname="a.test")) == f"<TLSStream over {left!r}>"


async def test_another_context_before_the_handshake(cls, authority, stranger) -> None:
    """A server may choose its certificate late; the one of the last context is shown."""
    left, right = trio.testing.memory_stream_pair()
    client = cls(left, authority.client(), server_hostname="a.test")
    server = cls(right, stranger.server(), server_side=True)
    context = authority.server()
    server.context = context
    assert server.context is context
    await shaken((client, server))
    assert ("DNS", "a.test") in client.getpeercert()["subjectAltName"]


async def test_certificates_after_the_handshake(authority) -> None:
    """RFC 8446 section 4.6.2: the server asks with its next data, the client answers with its own."""
    server_context, client_context = authority.server(version=V13), authority.client()
    authority.ca.configure_trust(server_context)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.post_handshake_auth = client_context.post_handshake_auth = True
    authority.ca.issue_cert("client.test").configure_cert(client_context)
    left, right = trio.testing.memory_stream_pair()
    client = TLSStream(left, client_context, server_hostname="a.test")
    server = TLSStream(right, server_context, server_side=True)
    with pytest.raises(trio.NeedHandshakeError):
        server.verify_client_post_handshake()
    await shaken((client, server))
    assert server.getpeercert() is None
    server.verify_client_post_handshake()
    await server.send_all(b"who are you?")
    assert await client.receive_some() == b"who are you?"
    await client.send_all(b"guess")
    assert await server.receive_some() == b"guess"
    assert ("DNS", "client.test") in server.getpeercert()["subjectAltName"]


async def test_unicode_names_are_those_of_idna_2008(cls, authority) -> None:
    left, _ = trio.testing.memory_stream_pair()
    assert cls(left, authority.client(), server_hostname="faß.test").server_hostname == "xn--fa-hia.test"
    assert cls(left, authority.client(), server_hostname=b"a.test").server_hostname == "a.test"


async def test_handshake_is_implicit_and_happens_once(wrap) -> None:
    client, server = wrap()

    async def serve() -> None:
        assert await server.receive_some(10) == b"hi"
        await server.send_all(b"ho")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.send_all(b"hi")
        assert await client.receive_some(10) == b"ho"
    with trio.testing.assert_checkpoints():
        await client.do_handshake()


async def test_two_tasks_start_the_handshake(wrap) -> None:
    client, server = wrap()
    got = []

    async def receive() -> None:
        got.append(await client.receive_some(10))

    async def serve() -> None:
        assert await server.receive_some(10) == b"hi"
        await server.send_all(b"ho")

    await both(receive, lambda: client.send_all(b"hi"), serve)
    assert got == [b"ho"]


async def test_failed_handshake(cls, authority, stranger) -> None:
    left, right = trio.testing.memory_stream_pair()
    client = cls(left, authority.client(), server_hostname="a.test")
    server = cls(right, stranger.server(), server_side=True)

    async def fails(stream, cause) -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        if cause is not None:
            assert isinstance(caught.value.__cause__, cause)
        await stream.aclose()

    await both(lambda: fails(client, ssl.SSLCertVerificationError), lambda: fails(server, None))
    for call in (lambda: client.send_all(b"x"), client.receive_some, client.do_handshake):
        with pytest.raises(trio.ClosedResourceError):
            await call()


async def test_cancelled_handshake_breaks(wrap, autojump_clock) -> None:
    client, _ = wrap()
    with trio.move_on_after(1) as scope:
        await client.do_handshake()
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()


async def test_cancelled_receive_takes_nothing(wrap, autojump_clock) -> None:
    client, server = await shaken(wrap())
    for _ in range(3):
        with trio.move_on_after(1) as scope:
            await client.receive_some()
        assert scope.cancelled_caught
    await server.send_all(b"still here")
    assert await client.receive_some() == b"still here"


@pytest.mark.case("trio#198")
async def test_cancelled_send_breaks(wrap, authority, version, autojump_clock) -> None:
    client, server = await shaken(wrap(trio.testing.lockstep_stream_pair()))
    with trio.move_on_after(1) as scope:
        await client.send_all(b"x" * 1000)
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")
    await trio.aclose_forcefully(server)


async def test_send_cancelled_before_it_began_breaks_nothing(wrap) -> None:
    client, server = await shaken(wrap())
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.send_all(b"lost")
    assert scope.cancelled_caught
    await client.send_all(b"kept")
    assert await server.receive_some() == b"kept"


async def test_one_sender_and_one_receiver(wrap, nursery) -> None:
    client, server = await shaken(wrap(trio.testing.lockstep_stream_pair()))
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def within(scope: trio.CancelScope, call: Callable[[], Awaitable[object]]) -> None:
        with scope:
            await call()

    nursery.start_soon(within, scopes[0], lambda: client.send_all(b"x"))
    nursery.start_soon(within, scopes[1], client.receive_some)
    await trio.testing.wait_all_tasks_blocked()
    for call in (lambda: client.send_all(b"y"), client.wait_send_all_might_not_block, client.unwrap):
        with pytest.raises(trio.BusyResourceError):
            await call()
    with pytest.raises(trio.BusyResourceError):
        await client.receive_some()
    for scope in scopes:
        scope.cancel()
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


async def test_max_bytes(wrap) -> None:
    client, server = await shaken(wrap())
    for bad, error in (0, ValueError), (-1, ValueError), (1.5, TypeError):
        with pytest.raises(error):
            await client.receive_some(bad)
    await server.send_all(b"abcdef")
    assert await client.receive_some(2) == b"ab"
    assert client.pending() == 4
    with trio.testing.assert_checkpoints():
        assert await client.receive_some(2) == b"cd"
    assert await client.receive_some(100) == b"ef"


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 65536, 65537, 1_000_000])
async def test_sizes(wrap, size) -> None:
    client, server = await shaken(wrap())
    data = (b"0123456789" * (size // 10 + 1))[:size]
    got = bytearray()

    async def receive() -> None:
        while part := await server.receive_some():
            got.extend(part)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with trio.testing.assert_checkpoints():
            await client.send_all(memoryview(data))
        await client.aclose()
    assert got == data


async def test_close_notify_is_an_end(wrap) -> None:
    client, server = await shaken(wrap())
    await server.send_all(b"last words")
    await server.aclose()
    assert await client.receive_some() == b"last words"
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            assert await client.receive_some() == b""
    await client.aclose()


async def test_an_end_without_close_notify_is_an_error(wrap) -> None:
    client, server = await shaken(wrap())
    await server.transport_stream.aclose()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.receive_some()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()


async def test_an_end_without_close_notify_in_https(wrap) -> None:
    client, server = await shaken(wrap(https_compatible=True))
    await server.send_all(b"last words")
    await server.aclose()  # says nothing
    assert await client.receive_some() == b"last words"
    with trio.testing.assert_checkpoints():
        assert await client.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    await client.aclose()


async def test_broken_records(wrap) -> None:
    client, server = await shaken(wrap())
    await server.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.receive_some()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    for call in (lambda: client.send_all(b"x"), client.receive_some):
        with pytest.raises(trio.BrokenResourceError):
            await call()


class Faulty(trio.abc.Stream):
    """A transport whose next call fails as told."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.error: Exception | None = None

    async def send_all(self, data: bytes) -> None:
        if self.error:
            raise self.error
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.error:
            raise self.error
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize("error", [trio.BrokenResourceError("gone"), OSError("odd"), ValueError("odder")], ids=repr)
async def test_errors_of_the_transport_come_out_as_they_are(wrap, error) -> None:
    left, right = trio.testing.memory_stream_pair()
    faulty = Faulty(left)
    client, _ = await shaken(wrap((faulty, right)))
    faulty.error = error
    for call in (client.receive_some, lambda: client.send_all(b"x")):
        with pytest.raises(type(error)) as caught:
            await call()
        assert caught.value is error
    with pytest.raises(trio.BrokenResourceError):  # a send that failed is a send of which nobody knows how much
        await client.send_all(b"x")


async def test_unwrap(wrap) -> None:
    client, server = await shaken(wrap())
    raw = server.transport_stream
    results = []

    async def one(stream) -> None:
        results.append(await stream.unwrap())

    async def other() -> None:
        assert await server.receive_some() == b""
        results.append(await server.unwrap())
        await raw.send_all(b"plain")

    await both(lambda: one(client), other)
    transports = [transport for transport, trailing in results]
    assert raw in transports
    assert client.transport_stream is None
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")
    await client.aclose()
    transport, trailing = next(r for r in results if r[0] is not raw)
    assert trailing + (b"" if trailing else await transport.receive_some()) == b"plain"
    for transport in transports:
        await transport.aclose()


async def test_unwrap_gives_what_followed(wrap) -> None:
    client, server = await shaken(wrap())

    async def end() -> None:
        assert await server.receive_some() == b""
        transport = server.transport_stream
        held = trio.testing.MemorySendStream()
        real, transport.send_stream = transport.send_stream, held  # so that both come in one piece
        await server.unwrap()
        await real.send_all(held.get_data_nowait() + b"plain")

    async def unwrap() -> None:
        transport, trailing = await client.unwrap()
        assert trailing == b"plain"
        await transport.aclose()

    await both(end, unwrap)


async def test_close_makes_the_handshake(wrap) -> None:
    """So that the other side gets an end that is signed, as trio has it."""
    client, server = wrap()

    async def receive() -> None:
        assert await server.receive_some() == b""

    await both(receive, client.aclose)


async def test_close_whose_handshake_fails_closes_all_the_same(cls, authority) -> None:
    left, right = trio.testing.memory_stream_pair()
    client = cls(left, authority.client(), server_hostname="a.test")
    await right.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError):
        await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await left.send_all(b"x")
    await client.aclose()


async def test_unwrap_makes_the_handshake(wrap) -> None:
    client, server = wrap()

    async def unwrap() -> None:
        await client.unwrap()

    async def answer() -> None:
        assert await server.receive_some() == b""
        await server.unwrap()

    await both(unwrap, answer)
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")


async def test_cancelled_close_closes(wrap, autojump_clock) -> None:
    for handshake_first in (False, True):
        pair = wrap(trio.testing.lockstep_stream_pair())
        client, _ = await shaken(pair) if handshake_first else pair
        with trio.move_on_after(1) as scope:
            await client.aclose()
        assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await client.transport_stream.send_all(b"x")
        with trio.testing.assert_checkpoints():
            await client.aclose()


@pytest.mark.parametrize("cut_off", [False, True])
async def test_close_behind_data_that_are_under_way(authority, cut_off) -> None:
    """Its close_notify comes after them; if they never get through, nothing can be said, and it closes."""
    left, right = trio.testing.lockstep_stream_pair()
    client = TLSStream(left, authority.client(), server_hostname="a.test")
    server = TLSStream(right, authority.server(version=V12), server_side=True)
    await shaken((client, server))
    closed = trio.Event()

    async def close() -> None:
        await client.aclose()
        closed.set()

    async with trio.open_nursery() as nursery:
        sending = await nursery.start(send_in_a_scope, client)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert not closed.is_set()
        if cut_off:
            sending.cancel()
            await closed.wait()
        else:
            received = b""
            while part := await server.receive_some():
                received += part
            assert received == b"under way"
    with pytest.raises(trio.ClosedResourceError):
        await left.send_all(b"x")


async def send_in_a_scope(stream: TLSStream, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await stream.send_all(b"under way")


async def test_close_in_https_says_nothing_and_never_waits(wrap) -> None:
    left, right = trio.testing.lockstep_stream_pair()
    client, _ = wrap((left, right), https_compatible=True)
    await client.aclose()
    assert await right.receive_some() == b""


async def test_close_while_the_peer_is_gone(wrap) -> None:
    client, server = await shaken(wrap())
    await trio.aclose_forcefully(server)
    await client.aclose()


async def test_close_wakes_others(wrap) -> None:
    client, server = await shaken(wrap(trio.testing.lockstep_stream_pair()))

    async def closed(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed, client.receive_some)
        nursery.start_soon(closed, lambda: client.send_all(b"x"))
        await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


@pytest.mark.parametrize("delays", [[0, 1], [1, 0, 0], [0.5, 0.1, 2, 0], [0, 0, 3, 1, 0.1]])
async def test_both_directions_at_every_pace(wrap, delays, autojump_clock) -> None:
    left, right = trio.testing.memory_stream_pair()
    client, server = wrap((Slow(left, delays), Slow(right, delays[::-1])))
    data = bytes(range(256)) * 400

    async def send(stream) -> None:
        for at in range(0, len(data), 30_000):
            await stream.send_all(data[at : at + 30_000])
            await stream.wait_send_all_might_not_block()

    async def receive(stream) -> None:
        got = b""
        while len(got) < len(data):
            got += await stream.receive_some(7000)
        assert got == data

    await both(lambda: send(client), lambda: send(server), lambda: receive(client), lambda: receive(server))
    await both(client.aclose, server.aclose)


async def test_wait_send_all_might_not_block(wrap) -> None:
    client, server = await shaken(wrap())
    with trio.testing.assert_checkpoints():
        await client.wait_send_all_might_not_block()
    await trio.aclose_forcefully(client)
    with pytest.raises(trio.ClosedResourceError):
        await client.wait_send_all_might_not_block()
    await trio.aclose_forcefully(server)


async def test_waiting_to_send_beside_a_receiver_that_has_to_send(authority) -> None:
    """The transport takes one at a time: who only waits comes after who has something to say."""

    class Single(Slow):
        sending = False

        async def send_all(self, data: bytes) -> None:
            self.sending = True
            await super().send_all(data)
            self.sending = False

        async def wait_send_all_might_not_block(self) -> None:
            assert not self.sending
            waited.append(self)

    waited: list[Single] = []
    left, right = trio.testing.lockstep_stream_pair()
    client = TLSStream(Single(left, [0]), authority.client(), server_hostname="a.test")
    server = TLSStream(right, authority.server(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)  # makes the handshake, of which nobody takes the first bytes yet
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(client.wait_send_all_might_not_block)
        await trio.testing.wait_all_tasks_blocked()
        assert not waited
        nursery.start_soon(server.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert len(waited) == 1
        nursery.cancel_scope.cancel()


async def test_servers_hold_their_tickets(wrap) -> None:
    """A server that only receives sends nothing of its own accord: the client may not be reading (trio#819)."""
    client, server = await shaken(wrap(trio.testing.lockstep_stream_pair()))

    async def receive() -> None:
        assert await server.receive_some() == b"x"

    await both(lambda: client.send_all(b"x"), receive)
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)
