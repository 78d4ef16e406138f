"""TLS without I/O: bytes in, bytes out, around `ssl.SSLObject` and two `ssl.MemoryBIO`.

Theory of operation
-------------------
OpenSSL hides three things that a pool has to know, and this class keeps account of them.

*What is buffered.* Received bytes lie in the incoming BIO, decrypted ones in the object, which ``pending()`` counts.
But a record that has arrived in part is in neither: OpenSSL has moved it to a buffer of its own that Python cannot ask
about. So `feed` follows the framing (five bytes of header, the last two of them the length; RFC 8446 section 5.1) and
knows whether the last record is whole. It costs a third of a microsecond per record.

*What has ended.* A close_notify, or an error, that lies behind data is met while the data are being drained. The data
go out first; the end is remembered and comes out at the next read. Hence a read that finds nothing buffered and no end
remembered needs bytes, and OpenSSL need not be asked: its way of saying so is an exception, which costs more than a
small record.

*What is still to be sent.* A write may leave bytes that the transport did not take at once (`put_back`), and a TLS 1.3
server writes session tickets at the end of its handshake, when the client may not be reading. These are held until the
server first has something to say, as BoringSSL does and `trio.SSLStream` does (python-trio/trio#819): sending them at
once deadlocks with a client that only sends, and breaks with one that sends and goes.

`SSLObject.read` returns one record, 16 KiB, whatever it is asked for. `Engine.read` drains all that are there, up to
its limit.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview

_HEADER: Final = 5


def is_eof(error: BaseException | None) -> bool:
    """Whether an error of `ssl` says that the transport ended without a close_notify.

    OpenSSL 3 says it in an error code that some versions of Python do not turn into an `ssl.SSLEOFError`.
    """
    return isinstance(error, ssl.SSLEOFError | ssl.SSLSyscallError) or (
        isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING"
    )


class Engine:
    """One TLS connection, either side. Nothing here waits.

    Attributes:
      object: the `ssl.SSLObject`, for what it can tell about the connection.
      ended: whether the peer's close_notify was read.
      trouble: the error after which nothing can be read, or None.
    """

    __slots__ = (
        "_held",
        "_incoming",
        "_outgoing",
        "_part_of_header",
        "_peeked",
        "_rest",
        "_unsent",
        "ended",
        "object",
        "trouble",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | bytes | None,
        session: ssl.SSLSession | None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        self.ended = False
        self.trouble: ssl.SSLError | None = None
        self._held = b""  # a server's session tickets, which go out before anything else does
        self._unsent = b""  # taken from the outgoing BIO, and not by the transport
        self._peeked = b""  # a byte that `look` had to take to know that it was there
        self._rest = 0  # how many bytes the last record still lacks
        self._part_of_header = b""  # the beginning of a record that is shorter than a header

    # Bytes from the peer

    def feed(self, data: Buffer) -> None:
        """Take bytes that came from the peer; none means that the transport has ended."""
        if not data:
            self._incoming.write_eof()
            return
        self._incoming.write(data)
        if self._part_of_header:
            data = self._part_of_header + data
            self._part_of_header = b""
        at = self._rest
        size = len(data)
        while at + _HEADER <= size:
            at += _HEADER + (data[at + 3] << 8 | data[at + 4])
        if at < size:
            self._part_of_header = bytes(data[at:])
            self._rest = 0
        else:
            self._rest = at - size

    def read(self, limit: int) -> bytes | None:
        """Decrypt all that is there, up to `limit` bytes.

        ``b""``: the peer said close_notify. None: nothing can be read, because of `trouble`, else for want of bytes.
        """
        data = self._peeked
        if data:
            self._peeked = b""
            more = self._read(limit - 1) if limit > 1 else None
            return data + more if more else data
        return self._read(limit)

    def _read(self, limit: int) -> bytes | None:
        incoming = self._incoming
        read = self.object.read
        pending = self.object.pending
        parts: list[bytes] = []
        while limit and self.trouble is None and not self.ended and (incoming.pending or pending() or incoming.eof):
            try:
                part = read(limit)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:  # instead of b"", once we have said close_notify ourselves
                self.ended = True
            except ssl.SSLError as exc:
                self.trouble = exc.with_traceback(None)  # its frames hold this very object
            else:
                if part:
                    if len(part) < limit and not incoming.pending and not parts:
                        return part
                    parts.append(part)
                    limit -= len(part)
                else:
                    self.ended = True
        if parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        return b"" if self.ended else None

    def look(self) -> str:
        """Why this connection is not clean: a key of ``events.REASONS``. Empty: only tickets and the like had come."""
        if self._peeked:
            return "stray bytes"
        data = self.read(1)
        if self.trouble is not None:
            return "server closed" if is_eof(self.trouble) else "error"
        if data is None:
            # What OpenSSL wants to answer an idle peer at once is a renegotiation. (Key updates can wait.)
            return "stray bytes" if self._rest or self._part_of_header or self.has_output else ""
        self._peeked = data
        return "stray bytes" if data else "server closed"

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is buffered in either direction, not even a part of a record."""
        return not (
            self._rest
            or self._incoming.pending
            or self.object.pending()
            or self._outgoing.pending
            or self._part_of_header
            or self._peeked
            or self._unsent
            or self.ended
            or self.trouble
            or self._incoming.eof
        )

    def pending(self) -> int:
        """How many decrypted bytes can be read for certain."""
        return self.object.pending() + len(self._peeked)

    def trailing(self) -> bytes:
        """What came after the peer's close_notify."""
        return self._incoming.read()

    # Bytes for the peer

    def handshake(self) -> None:
        """Go on with the handshake.

        Raises:
          ssl.SSLWantReadError: bytes are needed.
          ssl.SSLError: it failed.
        """
        self.object.do_handshake()
        if self.object.server_side and self.object.version() == "TLSv1.3":
            self._held = self._outgoing.read()

    @property
    def has_output(self) -> bool:
        """Whether bytes should be sent."""
        return bool(self._outgoing.pending or self._unsent)

    def take(self) -> bytes:
        """The bytes to be sent, in their order. Whoever takes them must send them before anyone else takes more."""
        data = self._outgoing.read()
        if self._held or self._unsent:
            data = self._held + self._unsent + data
            self._held = self._unsent = b""
        return data

    def put_back(self, data: bytes) -> None:
        """Give back the end of what was taken: it was not sent."""
        self._unsent = data + self._unsent

    def say_goodbye(self) -> None:
        """Write a close_notify, if one can be written."""
        try:
            self.object.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # SSLWantRead: the peer has not said its own. Others: unread data, or nothing left to be said.
