"""The CONNECT step on streams: what it makes, what it raises, and that nothing is left over."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trioconn._errors import ConnectError, ProxyConnectError, ProxyRefusedError
from trioconn._establish.http_tunnel import BODY_PATIENCE, HalfCloseableLeftoverStream, LeftoverStream, open_tunnel
from trioconn._establish.sockets import SocketStream
from trioconn._names import parse_host
from trioconn._proxy import Proxy
from trioconn._route import ConnectStep

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

Meet = Callable[..., Awaitable[Any]]
LOGIN_B64 = b"aGlkZGVuLXVzZXI6aGlkZGVuLXBhc3N3b3Jk"


def make_step(proxy: Proxy | None = None, *, hop: int = 0) -> ConnectStep:
    step = (proxy or Proxy("http://p.test")).step(parse_host("a.test"), 443, hop)
    assert isinstance(step, ConnectStep)
    return step


def tunnel(step: ConnectStep | None = None, *, tls_follows: bool = False, report: Any = None) -> Any:
    return partial(open_tunnel, step=step or make_step(), tls_follows=tls_follows, report=report)


def answering(*pieces: bytes, then: str = "wait", asked: list[bytes] | None = None) -> Any:
    """A proxy that reads the request, says `pieces` one after the other, and then waits or closes."""

    async def script(stream: trio.abc.Stream) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += await stream.receive_some(1000)
        if asked is not None:
            asked.append(request)
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        if then == "close":
            await stream.aclose()
            return
        while more := await stream.receive_some(1000):
            if asked is not None:
                asked.append(more)
            if then == "echo":
                await stream.send_all(more)

    return script


async def test_opens_and_is_the_same_stream(meet: Meet, reports: Any) -> None:
    meeting = await meet(tunnel(tls_follows=True, report=reports), answering(b"HTTP/1.1 200 OK\r\n\r\n"))
    assert meeting.stream is meeting.lower
    assert reports.seen == [
        ("TunnelStarted", {"hop": 0, "target": "a.test:443"}),
        ("TunnelFinished", {"hop": 0, "status": 200, "error": None}),
    ]


@pytest.mark.security(47)
async def test_answer_in_pieces(meet: Meet) -> None:
    answer = b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    meeting = await meet(tunnel(), answering(*(bytes([byte]) for byte in answer)))
    assert meeting.stream is meeting.lower


async def test_leftover_is_the_first_data_of_a_plain_tunnel(meet: Meet) -> None:
    async def step(below: trio.abc.Stream) -> trio.abc.Stream:
        stream = await open_tunnel(below, make_step(), tls_follows=False)
        assert isinstance(stream, LeftoverStream)
        assert await stream.receive_some(2) == b"he"
        assert await stream.receive_some() == b"llo"
        assert await stream.receive_some() == b" world"
        assert await stream.receive_some() == b""
        return stream

    script = answering(b"HTTP/1.1 200 OK\r\n\r\nhello", b" world", then="close")
    assert (await meet(step, script)).stream is not None


@pytest.mark.security(52)
async def test_leftover_before_tls_is_an_error(meet: Meet, reports: Any) -> None:
    junk = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhidden"
    script = answering(b"HTTP/1.1 200 OK\r\n\r\n" + junk)
    meeting = await meet(tunnel(make_step(hop=1), tls_follows=True, report=reports), script)
    assert type(meeting.error) is ProxyConnectError
    assert (meeting.error.stage, meeting.error.hop) == ("proxy", 1)
    assert "hidden" not in str(meeting.error)
    assert await meeting.is_closed()
    assert reports.seen[-1] == ("TunnelFinished", {"hop": 1, "status": None, "error": meeting.error})


@pytest.mark.security(53)
async def test_junk_in_a_second_segment_breaks_the_handshake(meet: Meet) -> None:
    context = ssl.create_default_context()

    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        below = await open_tunnel(stream, make_step(), tls_follows=True)
        await trio.testing.wait_all_tasks_blocked()
        tls = trio.SSLStream(below, context, server_hostname="a.test")
        with pytest.raises(trio.BrokenResourceError):
            await tls.do_handshake()
        await trio.aclose_forcefully(below)
        return below

    meeting = await meet(step, answering(b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nfake"))
    assert meeting.stream is not None


@pytest.mark.security(34)
async def test_refusal_carries_what_the_proxy_said(meet: Meet, reports: Any) -> None:
    answer = b"HTTP/1.1 502 Bad Gateway\r\nX-Why: because\r\nContent-Length: 4\r\n\r\n<h1>HTTP"
    meeting = await meet(tunnel(make_step(hop=2), report=reports), answering(answer))
    error = meeting.error
    assert type(error) is ProxyRefusedError
    assert (error.status, error.reason, error.body) == (502, "Bad Gateway", b"<h1>")
    assert error.headers == ((b"x-why", b"because"), (b"content-length", b"4"))
    assert (error.stage, error.hop, error.errno) == ("proxy", 2, None)
    assert "a.test:443" in str(error)
    assert "502 Bad Gateway" in str(error)
    assert "<h1>" not in str(error)
    assert await meeting.is_closed()
    assert reports.seen[-1] == ("TunnelFinished", {"hop": 2, "status": 502, "error": error})


@pytest.mark.security(29)
@pytest.mark.security(46)
@pytest.mark.parametrize("login", [None, ("hidden-user", "hidden-password")])
@pytest.mark.parametrize(
    "status", [b"401 Unauthorized\r\nWWW-Authenticate: Basic", b"407 Authenticate\r\nProxy-Authenticate: NTLM", b"407"]
)
async def test_login_is_sent_once_and_never_after_a_refusal(
    meet: Meet, status: bytes, login: tuple[str, str] | None
) -> None:
    asked: list[bytes] = []
    # The connection stays open and in step: nothing but the rule keeps us from asking again.
    script = answering(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n", asked=asked)
    meeting = await meet(tunnel(make_step(Proxy("http://p.test", auth=login))), script)
    assert isinstance(meeting.error, ProxyRefusedError)
    assert meeting.error.status in {401, 407}
    authorization = b"" if login is None else b"Proxy-Authorization: Basic " + LOGIN_B64 + b"\r\n"
    assert asked == [b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n" + authorization + b"\r\n"]
    assert await meeting.is_closed()
    for text in (str(meeting.error), repr(meeting.error)):
        assert "hidden" not in text
        assert LOGIN_B64.decode() not in text


async def test_407_says_what_to_do(meet: Meet) -> None:
    script = answering(b"HTTP/1.1 407 x\r\nContent-Length: 0\r\n\r\n")
    assert "give auth=" in str((await meet(tunnel(), script)).error)
    refused = await meet(tunnel(make_step(Proxy("http://u:p@p.test"))), script)
    assert "login was not accepted" in str(refused.error)


@pytest.mark.security(35)
async def test_redirects_are_not_followed(meet: Meet) -> None:
    asked: list[bytes] = []
    script = answering(b"HTTP/1.1 302 Found\r\nLocation: http://b.test/\r\nContent-Length: 0\r\n\r\n", asked=asked)
    meeting = await meet(tunnel(), script)
    assert isinstance(meeting.error, ProxyRefusedError)
    assert meeting.error.status == 302
    assert len(asked) == 1


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n"])
async def test_end_of_stream_before_the_answer_is_complete(meet: Meet, answer: bytes) -> None:
    meeting = await meet(tunnel(), answering(*([answer] if answer else []), then="close"))
    assert type(meeting.error) is ProxyConnectError
    assert "closed the connection" in str(meeting.error)
    assert await meeting.is_closed()


async def test_malformed_answer(meet: Meet) -> None:
    meeting = await meet(tunnel(), answering(b"SSH-2.0-OpenSSH_9.2\x1b[31m\r\n\r\n"))
    assert type(meeting.error) is ProxyConnectError
    assert str(meeting.error).isprintable()
    assert await meeting.is_closed()


async def test_connection_that_is_broken(meet: Meet) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await trio.aclose_forcefully(stream)

    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        await trio.testing.wait_all_tasks_blocked()
        return await open_tunnel(stream, make_step(), tls_follows=True)

    meeting = await meet(step, script)
    assert type(meeting.error) is ProxyConnectError
    assert isinstance(meeting.error.__cause__, trio.BrokenResourceError)
    assert await meeting.is_closed()


async def test_body_that_never_comes(meet: Meet, autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    meeting = await meet(tunnel(), answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 10\r\n\r\nhello"))
    assert trio.current_time() - start == BODY_PATIENCE
    assert isinstance(meeting.error, ProxyRefusedError)
    assert meeting.error.body == b"hello"


async def test_body_that_drips(meet: Meet, autojump_clock: trio.testing.MockClock) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 503 Busy\r\n\r\n")
        while True:
            await trio.sleep(0.3)
            await stream.send_all(b"x")

    start = trio.current_time()
    meeting = await meet(tunnel(), script)
    assert trio.current_time() - start == BODY_PATIENCE
    assert meeting.error.body == b"xxx"


@pytest.mark.security(48)
@pytest.mark.case("urllib3#548")
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nX:", b"HTTP/1.1 100 x\r\n\r\n"])
async def test_silence_is_ended_by_the_callers_deadline(
    meet: Meet, answer: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        with trio.fail_after(30):
            return await open_tunnel(stream, make_step(), tls_follows=True)

    with pytest.RaisesGroup(trio.TooSlowError):
        await meet(step, answering(*([answer] if answer else [])))
    assert trio.current_time() > 0


async def test_cancelled_at_every_checkpoint(meet: Meet) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        for piece in (b"HTTP/1.1 100 x\r\n\r\n", b"HTTP/1.1 502 x\r\n", b"Content-Length: 4\r\n\r\nab", b"cd"):
            await stream.send_all(piece)
            for _ in range(4):
                await trio.lowlevel.checkpoint()

    ways_out: list[bool] = []
    while True:
        meeting = await meet(tunnel(), script, cancel_after=len(ways_out))
        assert await meeting.is_closed()
        ways_out.append(meeting.cancelled)
        if not meeting.cancelled:
            break
    assert len(ways_out) > 5


async def test_reports_do_not_hold_the_login(meet: Meet, reports: Any) -> None:
    proxy = Proxy("http://hidden-user:hidden-password@p.test", headers={"X": "hidden"})
    await meet(tunnel(make_step(proxy), report=reports), answering(b"HTTP/1.1 200 OK\r\n\r\n"))
    await meet(tunnel(make_step(proxy), report=reports), answering(b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n"))
    assert len(reports.seen) == 4
    assert "hidden" not in repr(reports.seen)
    assert LOGIN_B64.decode() not in repr(reports.seen)


# On sockets: the synchronous half of a stream with a leftover


async def socket_pair() -> tuple[SocketStream, SocketStream]:
    left, right = socket.socketpair()
    return SocketStream(left), SocketStream(right)


async def leftover_pair(leftover: bytes) -> tuple[HalfCloseableLeftoverStream, SocketStream]:
    client, server = await socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, b"HTTP/1.1 200 OK\r\n\r\n" + leftover)
        stream = await open_tunnel(client, make_step(), tls_follows=False)
    request = await server.receive_some()
    assert request.startswith(b"CONNECT")
    assert isinstance(stream, HalfCloseableLeftoverStream)
    return stream, server


async def test_synchronous_half_of_a_leftover_stream() -> None:
    stream, server = await leftover_pair(b"hello")
    assert not stream.probe()
    assert stream.probe_reason == "stray bytes"
    assert stream.receive_nowait(2) == b"he"
    assert not stream.probe()
    assert stream.receive_nowait() == b"llo"
    assert stream.probe()
    assert stream.probe_reason == ""
    with pytest.raises(trio.WouldBlock):
        stream.receive_nowait()
    assert stream.send_nowait(b"abc") == 3
    assert await server.receive_some() == b"abc"
    assert stream.fileno() >= 0
    stream.close_nowait()
    stream.close_nowait()
    assert stream.fileno() == -1
    assert not stream.probe()
    assert stream.probe_reason == "closed"
    await server.aclose()


async def test_closed_leftover_stream_gives_nothing() -> None:
    stream, server = await leftover_pair(b"hello")
    stream.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        stream.receive_nowait()
    await server.aclose()


async def test_leftover_closed_while_somebody_is_about_to_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, server = await leftover_pair(b"hello")
    really = trio.lowlevel.checkpoint

    async def checkpoint() -> None:
        await really()
        stream.close_nowait()

    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "checkpoint", checkpoint)
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
    await server.aclose()


async def test_leftover_survives_a_cancelled_receive_and_refuses_a_second_reader() -> None:
    stream, server = await leftover_pair(b"hello")
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert scope.cancelled_caught
    first = stream.receive_some()
    first.send(None)  # type: ignore[attr-defined]  # up to its checkpoint, where no schedule has to be hoped for
    assert not stream.probe()
    with pytest.raises(trio.BusyResourceError):
        stream.receive_nowait()
    with pytest.raises(trio.BusyResourceError):
        await stream.receive_some()
    first.close()  # type: ignore[attr-defined]
    assert await stream.receive_some() == b"hello"
    with pytest.raises(ValueError, match="max_bytes"):
        await stream.receive_some(0)
    await stream.aclose()
    await server.aclose()


async def test_leftover_stream_is_a_stream_as_trio_wants_it() -> None:
    async def make() -> tuple[Any, Any]:
        client, server = await socket_pair()
        stream = HalfCloseableLeftoverStream(client, b"x")
        assert await stream.receive_some() == b"x"
        return stream, server

    async def make_clogged() -> tuple[Any, Any]:
        stream, server = await make()
        for end in (stream, server):
            with trio.move_on_after(0.2):
                while True:
                    await end.send_all(bytes(100_000))
        return stream, server

    await trio.testing.check_half_closeable_stream(make, None)


async def test_nothing_leaks_on_sockets(
    tcp_server: Callable[..., AbstractAsyncContextManager[int]], no_fd_leak: None
) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 403 no\r\nContent-Length: 0\r\n\r\n")
        assert await stream.receive_some() == b""  # closed by the step, not by the garbage collector

    async with tcp_server(refuse) as port:
        for _ in range(3):
            sock = socket.create_connection(("127.0.0.1", port))
            client = SocketStream(sock)
            with pytest.raises(ConnectError):
                await open_tunnel(client, make_step(), tls_follows=True)
            assert client.fileno() == -1
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_reset_in_the_middle_of_a_refusals_body() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = SocketStream(socket.create_connection(listener.getsockname()))
        peer, _ = listener.accept()
    peer.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nhello")

    async def reset() -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reset)
        with pytest.raises(ProxyRefusedError) as caught:
            await open_tunnel(client, make_step(), tls_follows=True)
    assert (caught.value.status, caught.value.body) == (503, b"hello")
    assert client.fileno() == -1


class OneWayToClose(trio.abc.Stream):
    """A stream without send_eof, as TLS streams are."""

    def __init__(self, below: trio.abc.Stream) -> None:
        self.below = below

    async def send_all(self, data: Any) -> None:
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        return await self.below.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.below.aclose()


async def test_leftover_stream_can_no_more_than_the_stream_below(meet: Meet) -> None:
    async def step(stream: trio.abc.Stream) -> trio.abc.Stream:
        return await open_tunnel(OneWayToClose(stream), make_step(), tls_follows=False)

    meeting = await meet(step, answering(b"HTTP/1.1 200 OK\r\n\r\nhello"))
    assert type(meeting.stream) is LeftoverStream
    assert not isinstance(meeting.stream, trio.abc.HalfCloseableStream)
    assert meeting.stream.probe_reason == "stray bytes"
    assert await meeting.stream.receive_some() == b"hello"
    assert meeting.stream.probe_reason == ""  # a stream below without a word for it
