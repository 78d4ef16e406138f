"""One HTTP/1.1 request and its response over a lease, by h11. What the adapters for HTTP clients have in common.

Theory of operation
-------------------
A client's pool is as good as its judgement of when a connection may be used again. Here the judgement is one line, in
`Exchange._finish`: both sides have said all of their messages, and every byte of ours was taken; neither has asked for
an end, not one byte has come after the response, and there was but one opinion about where that ends. Everything else
(a response that was given up, a cancellation, an error, an answer that came before the request was sent) closes the
lease. Each exchange has an `h11.Connection` of its own, so nothing that was parsed for one request can reach another:
two clients that keep theirs deliver a second, unasked response to the next request.

Costs. A scope with a deadline costs as much as a parsed header, so there is one for each wait and none elsewhere: the
request is written without waiting if the system takes it, which it nearly always does, head and body in one piece; the
one wait of a small exchange is for the answer.

Uploads that do not fit into the system's buffers are sent while listening. A server may answer early and read no more
(413, 401); who only writes would wait for it until the timeout. The listening task reads into h11 and ends the sending
when a refusal, an error or the end has come. A success that comes early refuses nothing (a server may answer while it
reads, and echo), so then the body is sent to its end: curl draws the line there, too. The listening task never sees the
caller's generator: that runs in the caller's task.

This module knows no client library. What goes wrong is a `Failure`, whose ``kind`` is the name that the httpx family
has for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

import h11
import trio

if TYPE_CHECKING:
    from trioconn import Connection

Kind: TypeAlias = Literal[
    "ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError", "LocalProtocolError"
]
HeaderPairs: TypeAlias = "list[tuple[bytes, bytes]]"
Trace: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[object]]

RECEIVE_SIZE: Final = 65536
PIECE_SIZE: Final = 262144
"""How much of a large body is one write, as far as the write timeout is concerned."""

JOINED_MOST: Final = 65536
"""A body up to this size is sent in one piece with the head; joining a larger one would cost more than a call."""

HEAD_MOST: Final = 102400
"""The largest head of a response, or line of a chunk, that is accepted; that of httpcore."""

INFORMATIONAL_MOST: Final = 100
"""How many informational responses may come before the final one."""

CONTINUE_TIMEOUT: Final = 1.0
"""Seconds to wait for ``100 Continue``: RFC 9110, 10.1.1 forbids waiting for ever, and this is curl's figure."""

KEEP_ALIVE_MARGIN: Final = 1.0
"""Seconds by which we let go of an idle connection before the server does: its end and our request must not cross."""

Checked: TypeAlias = "dict[tuple[tuple[bytes, bytes], ...], Any]"
"""Header fields that h11 has checked, as it keeps them."""

_HEADERS_KEPT: Final = 64

CONNECTION_ENDED: Final = (trio.BrokenResourceError, trio.ClosedResourceError)

_KEEP_ALIVE = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


class Failure(Exception):
    """An exchange that did not work.

    Attributes:
      kind: the name of the exception that the caller's library has for it.
      stale: whether the server ended the connection before one byte of an answer.
      sent: whether a byte of the request may have reached it.
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.stale = False
        self.sent = True


class Head:
    """The head of a final response.

    Attributes:
      version: ``b"HTTP/1.1"`` or ``b"HTTP/1.0"``.
      headers: as the server spelt them.
      upgraded: whether what follows is another protocol: status 101, or a CONNECT that was accepted.
      leading: what has come of that protocol already.
    """

    __slots__ = ("headers", "leading", "reason", "status", "upgraded", "version")

    def __init__(self, event: h11.Response | h11.InformationalResponse, *, upgraded: bool, leading: bytes) -> None:
        self.version = b"HTTP/" + event.http_version
        self.status = event.status_code
        self.reason = event.reason
        self.headers: HeaderPairs = event.headers.raw_items()
        self.upgraded = upgraded
        self.leading = leading


class Exchange:
    """One request and its response. Owns the lease: it is released at a clean end, and else closed.

    Args:
      lease: fresh, or taken from the pool.
      read: seconds that each wait for bytes may take, or None.
      write: seconds that each piece of the request may take to be sent, or None.
      trace: called before and after each step with a name and details, as httpcore does; or None.
      request: what the steps of `trace` are told to belong to.
      checked: kept by the client for all its exchanges, and filled by them.

    """

    __slots__ = (
        "_ambiguous", "_answered", "_at_once", "_broken", "_checked", "_complete", "_doing", "_ended", "_failure",
        "_h11", "_head", "_idle_for", "_informational", "_lease", "_over", "_read", "_request", "_sent", "_stream",
        "_trace", "_write",
    )  # fmt: skip

    def __init__(
        self,
        lease: Connection,
        *,
        read: float | None,
        write: float | None,
        trace: Trace | None,
        request: object,
        checked: Checked,
    ) -> None:
        self._lease = lease
        self._stream: Any = lease.stream
        # Where there is no descriptor there is a pipe of Windows, which can only withdraw what does not fit in at once,
        # and is spoilt by that: nothing more can be sent.
        self._at_once = hasattr(self._stream, "send_nowait") and self._stream.fileno() >= 0
        self._read = read
        self._write = write
        self._trace = trace
        self._request = request
        self._checked = checked
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MOST)
        self._head: Head | None = None
        self._failure: Failure | None = None  # what the listening task met; raised where the answer is wanted
        self._broken = False  # no more can be sent
        self._ended = False  # the server ended the connection, or it broke
        self._idle_for: float | None = None
        self._informational = 0  # how many informational responses came
        self._ambiguous = False  # the answer says in two ways where it ends: RFC 9112, 6.3 suspects response splitting
        self._over = False  # the lease is over
        self._complete = False  # and the response was complete
        self._doing = ""  # the step that is traced
        self._sent = False  # a byte of the request may have reached the server
        self._answered = False  # a byte has come back

    # ---- the request, and the head of its answer ---------------------------------------------------------------------

    async def run(self, method: bytes, target: bytes, headers: HeaderPairs, body: bytes | AsyncIterable[bytes]) -> Head:
        """Send the request and receive the head of its answer. If this raises, the lease is closed.

        Raises:
          Failure: with its kind.
        """
        try:
            first, joined = self._begin(method, target, headers, body)
            if self._trace is not None:
                await self._step("send_request_headers.started")
            await self._send_first(first)
            if self._trace is not None:
                await self._step("send_request_headers.complete")
                await self._step("send_request_body.started")
            if not joined and (not self._expects() or await self._may_continue()):
                await self._send_body(body)
            if self._trace is not None:
                await self._step("send_request_body.complete")
                await self._step("receive_response_headers.started")
            answer = await self._receive_head()
            if self._trace is not None:
                value = (answer.version, answer.status, answer.reason, answer.headers)
                await self._step("receive_response_headers.complete", value)
            return answer
        except Failure as failure:
            failure.stale = self._ended and not self._answered
            failure.sent = self._sent
            self.close()
            if self._trace is not None and self._doing:
                await self._trace(f"http11.{self._doing}.failed", {"exception": failure})  # noqa: ASYNC120 - a trace may wait
            raise
        except BaseException:
            self.close()
            raise

    def _begin(
        self, method: bytes, target: bytes, headers: HeaderPairs, body: bytes | AsyncIterable[bytes]
    ) -> tuple[bytes, bool]:
        """The first bytes to send, and whether the body is among them."""
        protocol = self._h11
        try:
            # Checking header fields is what h11 spends most on, and a client sends the same ones again and again.
            pairs = tuple(headers)
            checked = self._checked.get(pairs)
            request = h11.Request(method=method, target=target, headers=headers if checked is None else checked)
            if checked is None:
                if len(self._checked) >= _HEADERS_KEPT:
                    self._checked.clear()
                self._checked[pairs] = request.headers
            first = protocol.send(request) or b""
            if not isinstance(body, bytes) or len(body) > JOINED_MOST or self._expects():
                return first, False
            if body:
                first += protocol.send(h11.Data(data=body)) or b""
            return first + (protocol.send(h11.EndOfMessage()) or b""), True
        except h11.LocalProtocolError as error:
            raise Failure("LocalProtocolError", str(error)) from error

    async def _step(self, name: str, value: object = None) -> None:
        step, _, state = name.partition(".")
        self._doing = step if state == "started" else ""
        details = {"request": self._request} if state == "started" else {"return_value": value}
        assert self._trace is not None
        await self._trace(f"http11.{name}", details)

    def _expects(self) -> bool:
        return self._h11.client_is_waiting_for_100_continue

    async def _send_first(self, data: bytes) -> None:
        """Send the head: at once if the system takes it, which it nearly always does."""
        sent = 0
        try:
            if self._lease.reused and not self._stream.probe():
                # It was clean when it was handed out. What has come since answers nothing that we have asked.
                self._ended = True
                raise Failure(
                    "RemoteProtocolError", "the server sent something, or ended, before it was asked anything"
                )
            if self._at_once:
                sent = self._stream.send_nowait(data)
            self._sent = self._sent or sent > 0
            if sent < len(data):
                self._sent = True
                with _limit(self._write) as scope:
                    await self._stream.send_all(memoryview(data)[sent:])
                if scope.cancelled_caught:
                    raise Failure("WriteTimeout", "the server does not read the request")
        except CONNECTION_ENDED:
            # It may have answered before it ended: what there is to read tells more than this error.
            self._broken = True

    async def _may_continue(self) -> bool:
        """Wait for ``100 Continue``, for a while. False: there was a final answer, and the body is not wanted."""
        with trio.move_on_after(CONTINUE_TIMEOUT if self._read is None else min(CONTINUE_TIMEOUT, self._read)):
            while not self._arrived() and self._expects():
                try:
                    self._feed(await self._stream.receive_some(RECEIVE_SIZE))
                except CONNECTION_ENDED as error:
                    self._failure = self._read_error(error)
        return not self._arrived()

    async def _send_body(self, body: bytes | AsyncIterable[bytes]) -> None:
        """Send all of `body`, unless it is refused before its last part."""
        if isinstance(body, bytes):
            if not await self._send_data(body):
                return
        else:
            chunks = aiter(body)
            try:
                async for chunk in chunks:
                    if chunk and not await self._send_data(chunk):
                        return
            finally:
                # A generator that was left in the middle must not wait for the garbage collector to end it.
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()
        await self._send_event(h11.EndOfMessage())

    async def _send_data(self, data: bytes) -> bool:
        return not self._was_refused() and await self._send_event(h11.Data(data=data))

    async def _send_event(self, event: h11.Data | h11.EndOfMessage) -> bool:
        """Send a part of the body; False if not all of it was sent."""
        if self._broken:
            return False
        try:
            pieces = self._h11.send_with_data_passthrough(event) or []
        except h11.LocalProtocolError as error:
            raise Failure("LocalProtocolError", str(error)) from error
        for piece in pieces:
            for at in range(0, len(piece), PIECE_SIZE):
                if not await self._send_piece(memoryview(piece)[at : at + PIECE_SIZE]):
                    return False
        return True

    def _was_refused(self) -> bool:
        """Whether a refusal has come while nobody was listening."""
        receive_nowait = getattr(self._stream, "receive_nowait", None)
        if receive_nowait is not None and not self._arrived():
            try:
                self._feed(receive_nowait(RECEIVE_SIZE))
            except trio.WouldBlock:
                pass
            except CONNECTION_ENDED as error:
                self._failure = self._read_error(error)
        return self._is_unwanted()

    def _is_unwanted(self) -> bool:
        """Whether the server wants no more of the body: it has answered otherwise than by a success, or ended."""
        return self._arrived() and (self._head is None or not 200 <= self._head.status < 300)

    async def _send_piece(self, piece: memoryview) -> bool:
        try:
            while piece and self._at_once and (sent := self._stream.send_nowait(piece)):
                piece = piece[sent:]
        except CONNECTION_ENDED:
            self._broken = True
            return False
        if not piece:
            await trio.lowlevel.checkpoint()  # or a fast reader and a generator that never waits would keep the run
            return True
        return await self._send_listening(piece)

    async def _send_listening(self, piece: memoryview) -> bool:
        """Send `piece`, and stop when a refusal comes meanwhile."""
        done = slow = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, nursery.cancel_scope)
                with _limit(self._write) as scope:
                    try:
                        await self._stream.send_all(piece)
                        done = True
                    except CONNECTION_ENDED:
                        self._broken = True
                slow = scope.cancelled_caught
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None  # nothing in here raises but cancellations and interrupts
        if slow:
            raise Failure("WriteTimeout", "the server does not read the request")
        return done

    async def _listen(self, sending: trio.CancelScope) -> None:
        try:
            while not self._arrived():
                self._feed(await self._stream.receive_some(RECEIVE_SIZE))
        except CONNECTION_ENDED as error:
            self._failure = self._read_error(error)
        if self._is_unwanted():
            sending.cancel()

    # ---- the answer --------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        """Take what has come before the head of the final answer was complete."""
        if data:
            self._answered = True
            self._h11.receive_data(data)
        else:
            self._ended = True
            # h11 would say that it "can't handle event type ConnectionClosed": true, and of no help.
            self._failure = Failure("RemoteProtocolError", "Server disconnected without sending a response.")

    def _arrived(self) -> bool:
        """Whether the head of a final answer is there, or it is certain that none will come."""
        if self._head is not None or self._failure is not None:
            return True
        while self._failure is None:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._failure = Failure("RemoteProtocolError", str(error))
                self._failure.__cause__ = error
                break
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101
            ):
                upgraded = self._h11.their_state is h11.SWITCHED_PROTOCOL
                self._head = Head(event, upgraded=upgraded, leading=self._h11.trailing_data[0] if upgraded else b"")
                return True
            if not isinstance(event, h11.InformationalResponse):
                return False
            self._informational += 1
            if self._informational > INFORMATIONAL_MOST:
                self._failure = Failure("RemoteProtocolError", "the server sends informational responses without end")
        return True

    async def _receive_head(self) -> Head:
        while not self._arrived():
            self._feed(await self._receive())
        if self._head is None:
            assert self._failure is not None
            raise self._failure
        coded = measured = False
        for name, value in self._head.headers:
            length = len(name)
            if length == 10 and name.lower() == b"keep-alive" and (found := _KEEP_ALIVE.search(value)):
                seconds = int(found[1])
                self._idle_for = seconds - min(KEEP_ALIVE_MARGIN, seconds / 2)
            elif length == 17 and name.lower() == b"transfer-encoding":
                coded = True
            elif length == 14 and name.lower() == b"content-length":
                measured = True
        self._ambiguous = coded and measured
        return self._head

    async def _receive(self) -> bytes:
        """Bytes of the answer, ``b""`` at the end of the stream."""
        data: bytes
        try:
            if self._read is None:
                data = await self._stream.receive_some(RECEIVE_SIZE)
                return data
            with trio.CancelScope(deadline=trio.current_time() + self._read):
                data = await self._stream.receive_some(RECEIVE_SIZE)
                return data
        except CONNECTION_ENDED as error:
            raise self._read_error(error) from error
        raise Failure("ReadTimeout", f"nothing came from the server for {self._read:g} s")

    def _read_error(self, error: BaseException) -> Failure:
        self._ended = True
        failure = Failure("ReadError", str(error))
        failure.__cause__ = error
        return failure

    async def receive_body(self) -> bytes | None:
        """The next part of the body, None after the last one; then the lease is over. If it raises, it is closed.

        Raises:
          Failure: with its kind.
        """
        if self._complete:
            return None
        try:
            while not self._over:
                event = self._h11.next_event()
                if isinstance(event, h11.Data):
                    return bytes(event.data)
                if event is not h11.NEED_DATA:
                    self._finish()
                    return None
                self._h11.receive_data(await self._receive())
            # It was closed: before this call, or by another task in the very moment in which something came.
            raise Failure("ReadError", "the response was closed before its end")
        except h11.RemoteProtocolError as error:
            self.close()
            raise Failure("RemoteProtocolError", str(error)) from error
        except BaseException:
            self.close()
            raise

    def _finish(self) -> None:
        """The response is complete: the lease goes back if, and only if, the connection is at a clean boundary."""
        self._over = self._complete = True
        protocol = self._h11
        clean = protocol.our_state is h11.DONE and protocol.their_state is h11.DONE and not protocol.trailing_data[0]
        if clean and not self._ambiguous and not self._broken:
            self._lease.release(idle_for=self._idle_for)
        else:
            self._lease.close()
        self._stream = None

    def close(self) -> None:
        """No more of this response is wanted. An end that has come already is taken for one; else the lease is closed.

        It never waits, so it needs no shield. May be called again.
        """
        if self._over:
            return
        head = self._head
        if head is not None and not head.upgraded and self._h11.our_state is h11.DONE:
            try:
                if isinstance(self._h11.next_event(), h11.EndOfMessage):
                    self._finish()
                    return
            except h11.RemoteProtocolError:
                pass  # as good a reason to close as any
        self._over = True
        self._stream = None
        self._lease.close()


def _limit(seconds: float | None) -> trio.CancelScope:
    return trio.CancelScope(relative_deadline=math.inf if seconds is None else seconds)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One exception of a group: an interrupt rather than a cancellation."""
    leaves = sorted(_leaves(group), key=lambda error: isinstance(error, trio.Cancelled))
    return leaves[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(part)
    else:
        yield error
