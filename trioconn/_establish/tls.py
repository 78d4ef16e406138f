"""`TLSStream`: what `trio.SSLStream` does, and besides it can be probed, drained and closed without an await.

Theory of operation
-------------------
`Engine` (tls_engine.py) turns bytes into bytes; this class moves them over a transport. Any TLS operation may want to
send and may need to receive (a handshake, a renegotiation, a key update), so a task inside ``send_all`` and one inside
``receive_some`` can both come to want either half of the transport, which takes one sender and one receiver. Two pieces
of plain state settle that, without locks, which would cost a pass of the scheduler each time:

* `_flush`: one task at a time takes what the engine has to send and sends it, until the engine has nothing more. Others
  park; their bytes are in the engine in the right order, so the one who flushes sends those too.
* `_fill`: one task at a time receives and feeds the engine. Others park and then try their operation again: what they
  waited for may have come.

Between a call of the engine and the flush or fill that follows from it there is no ``await``. After one, nothing that
was known before holds: the operation is tried again from the start. Sending goes before receiving, for what the peer
is to answer must be under way before we wait for the answer.

When a flush fails or is cancelled, nobody knows which part of a record is under way: the stream is broken for good. A
cancelled fill has taken nothing. A task that is cancelled while it is parked is safe as a receiver; as a sender it has
given the engine data that the caller does not know to be sent, so that breaks the stream as well.

Differences from `trio.SSLStream`: a receive returns all records that have arrived, not one; a transport that ends
before the handshake is done is an error also with ``https_compatible=True`` (there it looks like an empty answer); two
tasks that both start the handshake both learn of its failure; client contexts that check host names are refused without
a name, where Python would accept any host that some authority vouches for.
"""

from __future__ import annotations

import logging
import operator
import ssl
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, TypeVar, overload

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .sockets import RECEIVE_SIZE, SynchronousStream
from .tls_engine import Engine, is_eof

if TYPE_CHECKING:
    from collections.abc import Callable

    Buffer = bytes | bytearray | memoryview

logger = logging.getLogger("trioconn")

MOST_IDLE_BYTES: Final = 65536
"""How much a peer may send between two uses of a connection without sending data: two tickets take half a KiB."""

SEND_SIZE: Final = 65536
"""How much is encrypted at once: four records, so that the buffer stays below malloc's threshold for fresh pages."""

StreamT = TypeVar("StreamT", bound=trio.abc.Stream)

_OPEN: Final = 0
_BROKEN: Final = 1
_CLOSED: Final = 2


class TLSStream(trio.abc.Stream, Generic[StreamT]):
    """TLS over any `trio.abc.Stream`, another `TLSStream` included.

    A drop-in for `trio.SSLStream`: the handshake is made by `do_handshake` or by the first call that needs it, one task
    may send while another receives, a cancelled `send_all` breaks the stream and a cancelled `receive_some` does not
    (unless it was sending: handshakes, renegotiations). What `ssl.SSLObject` can tell is told here; before the
    handshake that raises `trio.NeedHandshakeError`.

    Args:
      transport_stream: carries the encrypted bytes; owned by this stream from now on.
      ssl_context: never changed by this stream.
      server_hostname: for SNI and for verification: an A-label or an IP address. None only if the context does not
        check host names.
      server_side: whether this is the server.
      https_compatible: whether an end of the transport without close_notify is an end of the stream, and `aclose` says
        none either. If not, such an end is a `trio.BrokenResourceError`, since anyone on the way could have made it.
      session: offered for resumption. It must come from the same context, and skips every verification: see
        ``SessionStore``.

    Attributes:
      transport_stream: the stream below.
      probe_reason: why the last `probe` was false, a key of ``events.REASONS``; empty while none was.

    Raises:
      ValueError: the context checks host names and no `server_hostname` is given; the session is of another context.
    """

    transport_stream: StreamT
    probe_reason: str

    def __init__(
        self,
        transport_stream: StreamT,
        ssl_context: ssl.SSLContext,
        *,
        server_hostname: str | bytes | None = None,
        server_side: bool = False,
        https_compatible: bool = False,
        session: ssl.SSLSession | None = None,
    ) -> None:
        if ssl_context.check_hostname and not server_side and not server_hostname:
            raise ValueError(
                "this context checks host names: pass server_hostname, or any trusted host would be accepted"
            )
        if isinstance(server_hostname, str):
            server_hostname = trio.lowlevel.encode_hostname(server_hostname)  # IDNA 2008; ssl would take that of 2003
        self._engine = Engine(ssl_context, server_side=server_side, server_hostname=server_hostname, session=session)
        self.transport_stream = transport_stream
        self.probe_reason = ""
        lower: object = transport_stream
        self._lower = lower if isinstance(lower, SynchronousStream) else None
        self._https_compatible = https_compatible
        self._state = _OPEN
        self._handshake: trio.Event | None = None  # set when the handshake has ended, well or not
        self._handshaken = False
        self._ragged = False  # the transport ended without close_notify, and that was taken for an end
        self._sending = False  # a task is in send_all, wait_send_all_might_not_block or unwrap
        self._receiving = False  # a task is in receive_some or unwrap
        self._closing = False  # a task is in aclose or aclose_gracefully
        self._flushing = False
        self._flushed = trio.lowlevel.ParkingLot()
        self._filling = False
        self._filled = trio.lowlevel.ParkingLot()
        self._disowned = False  # a foreign transport was left to a system task
        self._idle_bytes = 0  # received by probes since the last use

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.transport_stream!r}>"

    # What OpenSSL can tell

    @property
    def context(self) -> ssl.SSLContext:
        """The context in use. A server's SNI callback may set another one."""
        return self._engine.object.context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        self._engine.object.context = context

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session as it can be resumed now. A TLS 1.3 client gets its ticket with the first data.

        Can be set by a client before the handshake; ValueError afterwards, and for a session of another context. Each
        look leaks some 6 KiB on Python before 3.12.8 and on 3.13.0 (python/cpython#116810).
        """
        return self._engine.object.session

    @session.setter
    def session(self, session: ssl.SSLSession) -> None:
        self._engine.object.session = session

    @property
    def session_reused(self) -> bool:
        """Whether the handshake resumed a session, and so verified nothing."""
        return bool(self._known("session_reused").session_reused)

    @property
    def server_side(self) -> bool:
        """Whether this is the server."""
        return self._engine.object.server_side

    @property
    def server_hostname(self) -> str | None:
        """The name that the peer was asked for and verified by."""
        return self._engine.object.server_hostname

    @overload
    def getpeercert(self, binary_form: Literal[False] = False) -> dict[str, Any] | None: ...
    @overload
    def getpeercert(self, binary_form: Literal[True]) -> bytes | None: ...
    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """The peer's certificate: in DER, or as a dict, which is empty if it was not verified. None: it sent none."""
        return self._known("getpeercert").getpeercert(binary_form)

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that both sides agreed on (RFC 7301)."""
        return self._known("selected_alpn_protocol").selected_alpn_protocol()

    def cipher(self) -> tuple[str, str, int] | None:
        """The cipher's name, the protocol that defines it, its secret bits."""
        return self._known("cipher").cipher()

    def shared_ciphers(self) -> list[tuple[str, str, int]] | None:
        """The ciphers that both sides know, for a server."""
        return self._known("shared_ciphers").shared_ciphers()

    def compression(self) -> str | None:
        """The compression in use: None, as everywhere since CRIME."""
        return self._known("compression").compression()

    def version(self) -> str | None:
        """The protocol, such as ``"TLSv1.3"``."""
        return self._known("version").version()

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """Channel binding data (RFC 5929), None where this connection has none."""
        return self._known("get_channel_binding").get_channel_binding(cb_type)

    def verify_client_post_handshake(self) -> None:
        """Have a TLS 1.3 server ask the client for a certificate; the request goes out with the next data."""
        self._known("verify_client_post_handshake").verify_client_post_handshake()

    def pending(self) -> int:
        """How many decrypted bytes are buffered."""
        return self._engine.pending()

    def _known(self, what: str) -> ssl.SSLObject:
        if not self._handshaken:
            raise trio.NeedHandshakeError(f"call do_handshake() before {what!r}")
        return self._engine.object

    # Moving bytes

    def _check(self) -> None:
        if self._state == _CLOSED:
            raise trio.ClosedResourceError("this TLS stream was closed")
        if self._state == _BROKEN:
            raise trio.BrokenResourceError("this TLS stream broke earlier")

    def _break(self) -> None:
        if self._state == _OPEN:
            self._state = _BROKEN

    def _fail(self, exc: ssl.SSLError | None) -> NoReturn:
        """Break the stream over an error of OpenSSL, and send its alert if that goes without waiting."""
        self._break()
        if self._lower is not None and not self._flushing and self._engine.has_output:
            self._try_to_send(self._lower)
        raise trio.BrokenResourceError(f"TLS failed: {exc}") from exc

    def _try_to_send(self, lower: SynchronousStream) -> None:
        """One attempt at sending what the engine has, without waiting; what is not taken goes back."""
        data = self._engine.take()
        sent = 0
        try:
            sent = lower.send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass
        finally:
            if sent < len(data):
                self._engine.put_back(data[sent:])

    async def _flush(self) -> None:
        """Send all that the engine has to send, or wait until another task has."""
        while self._flushing:
            await self._flushed.park()
            self._check()
        self._flushing = True
        try:
            while self._engine.has_output:
                await self.transport_stream.send_all(self._engine.take())
        except BaseException:
            self._break()
            raise
        finally:
            self._flushing = False
            self._flushed.unpark_all()

    async def _fill(self) -> None:
        """Receive once, or wait until another task has."""
        if self._filling:
            await self._filled.park()
            self._check()
            return
        self._filling = True
        try:
            self._engine.feed(await self.transport_stream.receive_some(RECEIVE_SIZE))
        finally:
            self._filling = False
            self._filled.unpark_all()

    async def _drive(self, operation: Callable[[], object]) -> None:
        """Try `operation` until it succeeds, moving bytes as it needs: handshakes and farewells always need some."""
        await checkpoint_if_cancelled()
        done = False
        while not done:
            try:
                operation()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as exc:
                self._fail(exc)
            if self._engine.has_output:
                await self._flush()
            elif not done:
                await self._fill()

    async def do_handshake(self) -> None:
        """Make the handshake, or wait for the task that makes it. Cancelled or failed, the stream is broken.

        The transport stays open then; closing this stream closes it.

        Raises:
          trio.BrokenResourceError: it failed; the cause is an `ssl.SSLError` unless the transport failed.
          trio.ClosedResourceError: the stream was closed.
        """
        self._check()
        if self._handshaken:
            await checkpoint()
        else:
            await self._ensure_handshake()

    async def _ensure_handshake(self) -> None:
        if self._handshake is not None:
            await self._handshake.wait()
            self._check()
            return
        self._handshake = trio.Event()
        try:
            await self._drive(self._engine.handshake)
            self._handshaken = True
        except BaseException:
            self._break()
            raise
        finally:
            self._handshake.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what was decrypted: at least a byte, at most `max_bytes` (64 KiB); ``b""`` at the end of the stream.

        Cancelled, it has taken nothing.

        Raises:
          ValueError: `max_bytes` is less than 1.
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: TLS or the transport failed, or the transport ended without close_notify (unless
            ``https_compatible``).
          trio.ClosedResourceError: the stream was closed.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving data on this TLSStream")
        self._receiving = True
        try:
            if self._ragged and self._state != _CLOSED:
                await checkpoint()
                return b""
            self._check()
            if not self._handshaken:
                await self._ensure_handshake()
            limit = RECEIVE_SIZE if max_bytes is None else operator.index(max_bytes)
            if limit < 1:
                raise ValueError("max_bytes must be >= 1")
            await checkpoint_if_cancelled()
            engine = self._engine
            waited = False
            while True:
                data = engine.read(limit)
                if data is not None or engine.trouble is not None:
                    if not waited:
                        await cancel_shielded_checkpoint()
                    self._idle_bytes = 0
                    return self._at_end(engine.trouble) if data is None else data
                if engine.has_output:
                    await self._flush()
                else:
                    await self._fill()
                waited = True
        finally:
            self._receiving = False

    def _at_end(self, trouble: ssl.SSLError | None) -> bytes:
        """What a receive makes of the error at the end of the stream."""
        if not (self._https_compatible and is_eof(trouble)):
            self._fail(trouble)
        self._break()
        self._ragged = True
        return b""

    async def send_all(self, data: Buffer) -> None:
        """Encrypt `data` and send it. Cancelled, the stream is broken.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: TLS or the transport failed, now or earlier.
          trio.ClosedResourceError: the stream was closed.
        """
        self._begin_sending()
        try:
            self._check()
            if not self._handshaken:
                await self._ensure_handshake()
            await checkpoint_if_cancelled()
            self._idle_bytes = 0
            if not data:  # OpenSSL would take it for something else
                await cancel_shielded_checkpoint()
            elif type(data) is bytes and len(data) <= SEND_SIZE:
                await self._send(data)
            else:
                with memoryview(data) as view, view.cast("B") as octets:
                    for at in range(0, len(octets), SEND_SIZE):
                        with octets[at : at + SEND_SIZE] as piece:
                            await self._send(piece)
        finally:
            self._sending = False

    async def _send(self, data: bytes | memoryview) -> None:
        engine = self._engine
        write = engine.object.write
        try:
            done = False
            while not done:
                try:
                    write(data)
                    done = True
                except ssl.SSLWantReadError:  # a renegotiation is under way
                    pass
                except ssl.SSLError as exc:
                    self._fail(exc)
                if engine.has_output:
                    await self._flush()
                else:
                    await self._fill()
        except BaseException:
            self._break()
            raise

    def _begin_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending data on this TLSStream")
        self._sending = True

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport would take more bytes. Raises as `send_all`."""
        self._begin_sending()
        try:
            self._check()
            while self._flushing:
                await self._flushed.park()
                self._check()
            # A receiver that has something to send would disturb the wait: it parks until that is over, and could
            # not have sent anything sooner.
            self._flushing = True
            try:
                await self.transport_stream.wait_send_all_might_not_block()
            finally:
                self._flushing = False
                self._flushed.unpark_all()
        finally:
            self._sending = False

    async def unwrap(self) -> tuple[StreamT, bytes]:
        """End TLS on both sides and go on in plain text.

        Returns:
          the transport, and what has been read of the plain text that follows.

        Raises:
          trio.BusyResourceError: another task is sending or receiving.
          trio.BrokenResourceError: TLS or the transport failed, or the peer sent data.
          trio.ClosedResourceError: the stream was closed.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving data on this TLSStream")
        self._begin_sending()
        self._receiving = True
        try:
            self._check()
            if not self._handshaken:
                await self._ensure_handshake()
            await self._drive(self._engine.object.unwrap)
            transport = self.transport_stream
            self._state = _CLOSED
            self._lower = None
            self.transport_stream = None  # type: ignore[assignment]  # nothing may use it from here on
            return transport, self._engine.trailing()
        finally:
            self._sending = self._receiving = False

    # Closing

    async def aclose(self) -> None:
        """Close as `trio.SSLStream` does: say close_notify (not if ``https_compatible``), then close the transport.

        It does not wait for the peer's close_notify, but it makes a handshake that was not made and waits until the
        transport has taken all bytes: a mute peer can hold it up for ever. `aclose_gracefully` sets a bound.
        Cancelled, it closes the transport forcefully. May be repeated.
        """
        if self._state == _CLOSED:
            await self._close_transport()
            return
        if self._state == _BROKEN or self._https_compatible:
            self._state = _CLOSED
            self._take_what_came()
            await self.transport_stream.aclose()
            return
        self._closing = True
        try:
            if not self._handshaken:
                await self._ensure_handshake()
            try:
                await checkpoint_if_cancelled()
                self._engine.say_goodbye()
                await self._flush()
            except (trio.BrokenResourceError, trio.BusyResourceError):
                pass  # the peer is gone, or another task is in the way
        except BaseException:
            self._state = _CLOSED
            await trio.aclose_forcefully(self.transport_stream)
            raise
        finally:
            self._closing = False
            self._state = _CLOSED
        self._take_what_came()
        await self.transport_stream.aclose()

    async def aclose_gracefully(self, grace: float) -> None:
        """Say close_notify, whatever ``https_compatible`` is, wait for the peer's, and close, within `grace` seconds.

        What the peer still sends is thrown away. With a `grace` of 0, and where there is nobody to say it to (no
        handshake, a broken stream), the transport is closed at once. Cancelled, it closes at once too. May be repeated.
        """
        try:
            if self._state == _OPEN and self._handshaken and grace > 0:
                self._closing = True
                with trio.move_on_after(grace):
                    await self._say_goodbye_and_wait()
        finally:
            self._closing = False
            self._state = _CLOSED
            await self._close_transport()  # noqa: ASYNC102 - by force, waits for nobody

    async def _say_goodbye_and_wait(self) -> None:
        engine = self._engine
        try:
            await checkpoint_if_cancelled()
            engine.say_goodbye()
            while True:
                if engine.has_output:
                    await self._flush()
                elif engine.read(RECEIVE_SIZE) is None and engine.trouble is None:
                    await self._fill()
                elif engine.ended or engine.trouble is not None:
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass  # the peer is gone, or another task is in the way

    async def _close_transport(self) -> None:
        """Close the transport forcefully. A checkpoint."""
        if self._lower is not None:
            self._lower.close_nowait()
            await checkpoint()
        elif (transport := self._transport()) is not None:
            await trio.aclose_forcefully(transport)
        else:
            await checkpoint()

    def _transport(self) -> trio.abc.Stream | None:
        """The transport; None after `unwrap`."""
        return self.transport_stream

    # The synchronous half

    def probe(self) -> bool:
        """Whether the connection is clean: nothing to read, not ended, not broken, no task inside a call.

        TLS 1.3 session tickets that have arrived are consumed, and are no reason for False, up to 64 KiB of them
        between two uses. A transport that is a `trio.SocketStream` is asked whether it is readable; of other foreign
        transports only what has been received is known. Never blocks; without anything to read it costs about a
        microsecond.
        """
        reason = self._what_is_wrong()
        if reason:
            self.probe_reason = reason
            return False
        return True

    def _what_is_wrong(self) -> str:
        if self._sending or self._receiving or self._closing or self._flushing or self._filling:
            return "in use"
        if self._state != _OPEN:
            if self._ragged:
                return "server closed"
            return "error" if self._state == _BROKEN else "closed"
        if not self._handshaken:
            return "in use"
        if self._idle_bytes > MOST_IDLE_BYTES:
            return "stray bytes"
        lower = self._lower
        if not self._engine.is_quiet:
            reason = self._engine.look()
            if reason:
                return reason
        if lower is None:
            return self._what_a_foreign_transport_shows()
        if lower.probe():
            return ""
        if lower.probe_reason != "stray bytes":
            return lower.probe_reason
        return self._drain(lower)

    def _drain(self, lower: SynchronousStream) -> str:
        """Read what has come, to see whether it is only tickets."""
        engine = self._engine
        while True:
            try:
                data = lower.receive_nowait(RECEIVE_SIZE)
            except trio.WouldBlock:
                return ""
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return "server closed"
            engine.feed(data)
            self._idle_bytes += len(data)
            reason = engine.look()
            if reason:
                return reason
            if self._idle_bytes > MOST_IDLE_BYTES:
                return "stray bytes"

    def _what_a_foreign_transport_shows(self) -> str:
        transport = self._transport()
        if isinstance(transport, trio.SocketStream):
            if transport.socket.fileno() == -1:
                return "closed"
            if transport.socket.is_readable():
                return "stray bytes"
        return ""

    def receive_nowait(self, max_bytes: int = RECEIVE_SIZE) -> bytes:
        """Receive what has come, at most `max_bytes`; ``b""`` at the end of the stream.

        Raises:
          trio.WouldBlock: nothing is there, or the transport cannot be read without waiting.
          trio.BusyResourceError: a task is receiving.
          trio.BrokenResourceError, trio.ClosedResourceError, trio.NeedHandshakeError: as `receive_some`, which makes
            the handshake where this does not.
        """
        if self._receiving or self._filling:
            raise trio.BusyResourceError("another task is currently receiving data on this TLSStream")
        if self._ragged and self._state != _CLOSED:
            return b""
        self._check()
        self._known("receive_nowait")
        engine = self._engine
        while True:
            data = engine.read(max_bytes)
            if data is not None:
                return data
            if engine.trouble is not None:
                return self._at_end(engine.trouble)
            if self._lower is None:
                raise trio.WouldBlock
            engine.feed(self._lower.receive_nowait(RECEIVE_SIZE))

    @property
    def unsent(self) -> bool:
        """Whether data that `send_nowait` took wait for the transport: ``send_nowait(b"")`` moves them, when it can."""
        return self._engine.has_output or bool(getattr(self._lower, "unsent", False))

    def send_nowait(self, data: Buffer) -> int:
        """Encrypt as much of `data` as can be sent without waiting (64 KiB), and return how many bytes were taken.

        What the transport does not take of these goes out with the next call that sends or receives.

        Raises:
          trio.BusyResourceError: a task is sending.
          trio.BrokenResourceError, trio.ClosedResourceError, trio.NeedHandshakeError: as `send_all`, which makes the
            handshake where this does not.
        """
        if self._sending or self._flushing:
            raise trio.BusyResourceError("another task is currently sending data on this TLSStream")
        self._check()
        self._known("send_nowait")
        if self._lower is None:
            return 0
        if self._engine.has_output:
            self._try_to_send(self._lower)
        if not data or self._engine.has_output:
            return 0
        with memoryview(data) as view, view.cast("B") as octets, octets[:SEND_SIZE] as piece:
            try:
                self._engine.object.write(piece)
            except ssl.SSLWantReadError:
                return 0
            except ssl.SSLError as exc:
                self._fail(exc)
            taken = len(piece)
        self._try_to_send(self._lower)
        return taken

    def close_nowait(self) -> None:
        """Close at once, after one attempt at saying close_notify without waiting. May be repeated.

        Nothing is said if a task is in the middle of sending, or over a foreign transport, which has no way of sending
        without waiting. Of these only a `trio.SocketStream` can be closed without waiting, too: others are closed,
        forcefully, by a system task, when the scheduler comes round to it.

        Must be called inside the trio run.
        """
        state, self._state = self._state, _CLOSED
        try:
            if state == _OPEN and self._handshaken and not self._flushing and self._lower is not None:
                self._engine.say_goodbye()
                self._try_to_send(self._lower)
                self._take_what_came()
        finally:
            transport = self._transport()
            if self._lower is not None:
                self._lower.close_nowait()
            elif isinstance(transport, trio.SocketStream):
                transport.socket.close()
            elif transport is not None and not self._disowned:
                self._disowned = True
                trio.lowlevel.spawn_system_task(_close_foreign, transport)

    def _take_what_came(self) -> None:
        """Leave nothing unread below: a socket that is closed so is reset, and what we sent last may never arrive.

        Tickets of TLS 1.3 come unasked, and stay unread where a protocol only sends.
        """
        if self._lower is None:
            return
        try:
            self._lower.receive_nowait(RECEIVE_SIZE)
        except (trio.WouldBlock, trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # nothing came, or somebody else takes it

    def fileno(self) -> int:
        """The number of the socket at the bottom; -1 when closed, or where none is known."""
        if self._lower is not None:
            return self._lower.fileno()
        transport = self._transport()
        return transport.socket.fileno() if isinstance(transport, trio.SocketStream) else -1


async def _close_foreign(transport: trio.abc.Stream) -> None:
    """Close a transport in a task that nobody waits for, and whose error would end the trio run."""
    try:
        await trio.aclose_forcefully(transport)
    except Exception:
        logger.exception("closing %r failed", transport)
