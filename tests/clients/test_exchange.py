"""One request and its response, broken off or misused at chosen moments: by peers in memory, that meet each of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import Hang, MemoryStream, ScriptedConnector, Succeed, memory_stream_pair

httpx2 = pytest.importorskip("httpx2")
transports = pytest.importorskip("trioconn.httpx2")

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Servers = Callable[..., Any]

URL = "http://a.test/"
SMALL = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def client(connector: trioconn.BaseConnector, **timeouts: float | None) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(None, **timeouts)
    return httpx2.AsyncClient(transport=transports.Transport(connector), timeout=timeout, trust_env=False)


def answering(answer: bytes) -> Callable[[MemoryStream], Awaitable[None]]:
    """A peer that says `answer` to whatever comes, until either end closes."""

    async def handler(peer: MemoryStream) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while await peer.receive_some():
                await peer.send_all(answer)

    return handler


def closed(connector: trioconn.BaseConnector) -> dict[str, int]:
    """Why connections were closed; none may be open."""
    statistics = connector.statistics()
    assert statistics.open == 0
    return dict(statistics.closed)


# ---- the request -----------------------------------------------------------------------------------------------------


async def test_header_that_cannot_be_sent_sends_nothing() -> None:
    async with ScriptedConnector() as connector:
        with pytest.raises(httpx2.LocalProtocolError):
            await client(connector).get(URL, headers={"X": "two\nlines"})
        assert closed(connector) == {"not released": 1}
        assert await connector.peers[0].receive_some() == b""


async def test_any_number_of_different_headers(nursery: trio.Nursery) -> None:
    """Checked header fields are kept, but not all for ever, and nobody gets another one's."""

    async def echo(peer: MemoryStream) -> None:
        while head := await peer.receive_some():
            number = head.partition(b"number: ")[2].partition(b"\r\n")[0]
            await peer.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(number), number))

    async with ScriptedConnector(handler=echo, nursery=nursery) as connector:
        http = client(connector)
        for number in [*range(150), *range(150)]:
            assert (await http.get(URL, headers={"number": str(number)})).text == str(number)
        assert len(http._transport._checked) < 100
        assert connector.dials == 1


@pytest.mark.parametrize("connect", [True, False], ids=["fresh", "reused"])
async def test_connector_is_closed_before_the_head_is_sent(connect: bool, nursery: trio.Nursery) -> None:
    async def trace(name: str, info: dict[str, Any]) -> None:
        if name == "http11.send_request_headers.started":
            await connector.aclose()

    async with ScriptedConnector(handler=answering(SMALL), nursery=nursery) as connector:
        http = client(connector)
        if not connect:
            await http.get(URL)
        # A request that can be repeated is, and finds out that there is no connector any more.
        with pytest.raises(httpx2.ReadError if connect else httpx2.ConnectError):
            await http.get(URL, extensions={"trace": trace})
        assert closed(connector) == {"closed": 1}


@pytest.mark.parametrize("large", [False, True])
async def test_connector_is_closed_between_two_parts_of_a_body(http_server: Servers, large: bool) -> None:
    async def mute(peer: Any) -> None:
        await peer.read_all()

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await connector.aclose()
        yield bytes(1_000_000 if large else 3)
        raise AssertionError("nobody wants more")

    async with http_server(mute) as server, trioconn.TCPConnector() as connector:
        with pytest.raises(httpx2.ReadError):
            await client(connector).post(server.url, content=parts())
        assert closed(connector) == {"closed": 1}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("what", ["end", "stray"])
async def test_peer_speaks_or_ends_before_the_head_is_sent(method: str, what: str, nursery: trio.Nursery) -> None:
    """The connection was clean when it was handed out. Nothing was sent, so any request may be sent again."""

    async def trace(name: str, info: dict[str, Any]) -> None:
        if name == "http11.send_request_headers.started" and connector.dials == 1:
            if what == "end":
                connector.peers[0].close_nowait()
            else:
                connector.peers[0].send_nowait(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")

    async with ScriptedConnector(handler=answering(SMALL), nursery=nursery) as connector:
        http = client(connector)
        await http.get(URL)
        response = await http.request(method, URL, content=b"body", extensions={"trace": trace})
        assert response.text == "hello"
        assert connector.dials == 2 and connector.statistics().open == 1


async def test_write_timeout_of_a_head(autojump_clock: trio.testing.MockClock) -> None:
    async with ScriptedConnector(capacity=10) as connector:
        began = trio.current_time()
        with pytest.raises(httpx2.WriteTimeout):
            await client(connector, write=3).get(URL)
        assert trio.current_time() - began == pytest.approx(3)
        assert closed(connector) == {"not released": 1}


async def test_reset_instead_of_100_continue(nursery: trio.Nursery) -> None:
    async def reset(peer: MemoryStream) -> None:
        await peer.receive_some()
        peer.reset()

    async with ScriptedConnector(handler=reset, nursery=nursery) as connector:
        with trio.fail_after(0.9), pytest.raises(httpx2.ReadError, match="reset"):  # does not wait its second
            await client(connector).post(URL, content=b"body", headers={"Expect": "100-continue"})
        assert closed(connector) == {"not released": 1}


@pytest.mark.parametrize("kind", ["small", "large", "stream"])
@pytest.mark.parametrize("foreign", [False, True], ids=["our stream", "trio's stream"])
async def test_answer_that_came_before_the_request_is_read_although_nothing_can_be_sent(
    kind: str, foreign: bool
) -> None:
    """A server that is full says so at once and hangs up. What it said tells more than that it hung up."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            asked.append(kind)
            yield b"part"

    asked: list[str] = []
    ours: Any
    full = b"HTTP/1.1 503 Full\r\nContent-Length: 5\r\n\r\nlater"
    sends: list[None] = []
    if foreign:  # cannot be asked without waiting whether something has come

        async def fail() -> None:
            sends.append(None)
            raise trio.BrokenResourceError

        ours, peer = trio.testing.memory_stream_pair()
        ours.send_stream.send_all_hook = fail
        await peer.send_all(full)
    else:
        ours, theirs = memory_stream_pair()
        theirs.send_nowait(full)
        theirs.close_nowait()
    async with ScriptedConnector(Succeed(stream=ours)) as connector:
        content = {"small": b"x", "large": bytes(100_000), "stream": parts()}[kind]
        response = await client(connector).post(URL, content=content)
        assert (response.status_code, response.text) == (503, "later")
        assert len(asked) == (kind == "stream") and len(sends) == foreign
        assert len(closed(connector)) == 1


async def test_reset_while_the_upload_is_stuck(nursery: trio.Nursery) -> None:
    async def reset(peer: MemoryStream) -> None:
        await trio.testing.wait_all_tasks_blocked()
        peer.reset()

    async with ScriptedConnector(handler=reset, nursery=nursery, capacity=1000) as connector:
        with pytest.raises(httpx2.ReadError, match="reset"):
            await client(connector).post(URL, content=bytes(100_000))
        assert closed(connector) == {"not released": 1}


async def test_cancelled_while_the_upload_is_stuck(autojump_clock: Any) -> None:
    """Two tasks are at work then, and what comes out is a bare `trio.Cancelled` all the same."""
    bare = False
    async with ScriptedConnector(capacity=1000) as connector:
        with trio.move_on_after(3) as scope:
            try:
                await client(connector).post(URL, content=bytes(100_000))
            except trio.Cancelled:
                bare = True
                raise
        assert bare and scope.cancelled_caught
        assert closed(connector) == {"not released": 1}


class Interrupted(trio.abc.Stream):
    """Ends every call in an interrupt, as a user may who has lost patience."""

    def __init__(self) -> None:
        self.sent = 0

    async def send_all(self, data: Any) -> None:
        self.sent += 1
        if self.sent > 1:  # the head is
            try:
                await trio.sleep_forever()
            finally:
                raise KeyboardInterrupt

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        return b""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_interrupt_during_an_upload_is_bare_and_goes_before_a_cancellation(autojump_clock: Any) -> None:
    async with ScriptedConnector(Succeed(stream=Interrupted())) as connector:
        with pytest.raises(KeyboardInterrupt), trio.move_on_after(3):
            await client(connector).post(URL, content=bytes(100_000))
        assert closed(connector) == {"not released": 1}


async def test_cancelled_upload_of_which_all_is_taken_at_once(http_server: Servers) -> None:
    """Nothing has to be waited for, and a cancellation gets through nevertheless."""
    asked = 0
    ended = False

    async def parts() -> AsyncIterator[bytes]:
        nonlocal asked, ended
        try:
            while asked < 100:
                asked += 1
                if asked == 3:
                    scope.cancel()
                yield b"part"
        finally:
            ended = True

    async def mute(peer: Any) -> None:
        await peer.read_all()

    async with http_server(mute) as server, trioconn.TCPConnector() as connector:
        with trio.CancelScope() as scope:
            await client(connector).post(server.url, content=parts())
        assert scope.cancelled_caught and (asked, ended) == (3, True)
        assert closed(connector) == {"not released": 1}


@pytest.mark.parametrize("connect", [None, 9])
async def test_cancelled_while_it_waits_for_a_connection(connect: float | None, autojump_clock: Any) -> None:
    names: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        names.append(name)

    async with ScriptedConnector(Hang()) as connector:
        with trio.move_on_after(3) as scope:
            await client(connector, connect=connect).get(URL, extensions={"trace": trace})
        assert scope.cancelled_caught and names == ["connection.connect_tcp.started"]
        await trio.testing.wait_all_tasks_blocked()
        assert closed(connector) == {} and connector.dials == 1 and not connector.dialling


async def test_reset_between_two_parts_of_a_body() -> None:
    ended = False

    async def parts() -> AsyncIterator[bytes]:
        nonlocal ended
        try:
            yield b"one"
            connector.peers[0].reset()
            yield b"two"
            raise AssertionError("nobody wants more")
        finally:
            ended = True

    async with ScriptedConnector() as connector:
        with pytest.raises(httpx2.ReadError, match="reset"):
            await client(connector).post(URL, content=parts())
        assert ended and closed(connector) == {"not released": 1}


async def test_body_that_is_its_own_iterator(http_server: Servers) -> None:
    """Not every body is a generator; others cannot be closed."""

    class Countdown(httpx2.AsyncByteStream):
        left = 3

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return str(self.left).encode()

    got: list[bytes] = []

    async def answer(peer: Any) -> None:
        got.append((await peer.request())[1])
        await peer.send(SMALL)

    async with http_server(answer) as server, trioconn.TCPConnector() as connector:
        http = client(connector)
        request = http.build_request("POST", server.url, headers={"Transfer-Encoding": "chunked"})
        request.stream = Countdown()
        assert (await http.send(request)).text == "hello"
    assert got == [b"210"]


# ---- the response ----------------------------------------------------------------------------------------------------


async def test_body_has_one_end_however_often_it_is_asked_for(nursery: trio.Nursery) -> None:
    """The second question must not reach the connection: it may be somebody else's by then."""
    async with ScriptedConnector(handler=answering(SMALL), nursery=nursery) as connector:
        http = client(connector)
        async with http.stream("GET", URL) as response:
            assert [part async for part in response.stream] == [b"hello"]
            other = connector.connect_nowait(URL)
            assert [part async for part in response.stream] == []
            assert not other.closed and other.reused
            other.release()
        assert connector.statistics().idle == 1


async def test_rubbish_in_what_nobody_reads_is_no_error(nursery: trio.Nursery) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nrubbish\r\n"
    async with ScriptedConnector(handler=answering(answer), nursery=nursery) as connector:
        async with (
            client(connector).stream("GET", URL) as response,
            contextlib.aclosing(response.aiter_raw()) as parts,
        ):
            assert await anext(parts) == b"hello"
        assert closed(connector) == {"not released": 1}


class Late(trio.abc.Stream):
    """Gives out what it has got although it was closed meanwhile, as a stream may that was just about to return."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.received = [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"hello"]

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = self.received.pop(0)
        if not self.received:
            with trio.CancelScope(shield=True):
                await self.go.wait()
        return data

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_response_that_is_closed_in_the_moment_in_which_something_comes() -> None:
    stream = Late()
    async with ScriptedConnector(Succeed(stream=stream)) as connector:
        async with client(connector).stream("GET", URL) as response, trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(httpx2.ReadError, match="closed"):
                    await anext(aiter(response.stream))

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            stream.go.set()
            await response.stream.aclose()
        assert closed(connector) == {"not released": 1}
