"""The CONNECT exchange with an HTTP proxy: bytes out, bytes in, and one of three outcomes.

Theory of operation
-------------------
h11 decides what is well-formed. Around it stand the rules for tunnels that h11 leaves to its users:

* The request carries the authority, Host, and the headers that were marked for the proxy. There is no way to put the
  target's headers here (CVE-2015-3153, CVE-2026-5119).
* Only 2xx opens. Content-Length and Transfer-Encoding in a 2xx mean nothing (RFC 9110 section 9.3.6), and the header
  ends exactly at its blank line: what follows is the tunnel's first byte and is handed back as `Opened.leftover`.
* Everything else is a refusal, 101 and 3xx too, with the first bytes of its body as material for a person. A refused
  connection is of no further use: who serves another request on it may read the rest of this answer
  (CVE-2026-56866), so there is no way to go on.
* HTTP 1.0 and 1.1 only. h11 would read ``HTTP/2.0`` as well.
* Everything is counted: bytes and fields of the head, interim answers, bytes of the body, also framing that carries no
  body. The head is counted whether or not its end has come: a limit that is tested only while the end is missing lets
  an oversized head pass that arrives with it.

Bytes may come in pieces of any size, and the outcome is always the same: all limits are on offsets in the stream, none
on pieces.

The login goes with the first request, since a proxy that we were given a login for wants it. Therefore a 407 is never
answered with a second request: without a login there is nothing to add, and with one it was refused; sending it again
would only lock accounts. 401 is the target's word and has no meaning here; its password is unknown to this code
(CVE-2026-86414).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import h11

from .._errors import shown

if TYPE_CHECKING:
    from .._route import HeaderPairs

MOST_HEAD: Final = 16384
"""Bytes of status line and fields, interim answers included."""
MOST_FIELDS: Final = 100
MOST_INTERIM: Final = 10
MOST_BODY: Final = 8192
"""Bytes of a refusal's body that are kept."""
MOST_ANSWER: Final = MOST_HEAD + 4 * MOST_BODY
"""Bytes that are read of a refusal in all: chunked bodies may consist of framing."""

_VERSIONS: Final = {b"1.0", b"1.1"}
_SWITCHING: Final = re.compile(rb"HTTP/1\.[01] 101[ \r\n]")


@dataclass(frozen=True, slots=True)
class Opened:
    """The tunnel stands. `leftover` came behind the answer and is the tunnel's first data."""

    status: int
    leftover: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """The proxy said no, in these words. `headers` are in order, names in lower case."""

    status: int
    reason: str
    headers: HeaderPairs = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Malformed:
    """The proxy does not speak HTTP as it should, or too much of it. `why` is fit for a message."""

    why: str


Outcome: TypeAlias = "Opened | Refused | Malformed"


class ConnectExchange:
    """One CONNECT request and its answer.

    Args:
      authority: ``host:port`` of the target, from a canonical host.
      headers: what the proxy gets besides Host, checked before (`Proxy.request_headers`).

    Attributes:
      outcome: None until all is known.
      refusing: whether the head of a refusal has come, and only its body is missing.
    """

    outcome: Outcome | None

    def __init__(self, authority: str, headers: HeaderPairs = ()) -> None:
        self.outcome = None
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD)
        self._request = h11.Request(
            method="CONNECT", target=authority, headers=[(b"Host", authority.encode("ascii")), *headers]
        )
        self._taken = 0  # bytes of the answer that h11 was given
        self._head = bytearray()  # those since the last interim answer, while there is no final one
        self._interim = 0
        self._refusal: h11.Response | None = None
        self._body = bytearray()

    @property
    def refusing(self) -> bool:
        return self._refusal is not None

    def request(self) -> bytes:
        """What to send; to be asked for once, before `feed`."""
        head = self._connection.send(self._request)
        end = self._connection.send(h11.EndOfMessage())
        return (head or b"") + (end or b"")

    def feed(self, data: bytes) -> Outcome | None:
        """Take what the proxy sent, ``b""`` for its end of stream. Returns the outcome, or None while more is needed.

        After an outcome nothing more may be fed. At most `MOST_ANSWER` bytes are looked at.
        """
        if self.outcome is not None:
            raise RuntimeError("the exchange is over")
        if not data:
            self.outcome = self._at_end()
            return self.outcome
        piece = data[: MOST_ANSWER - self._taken]
        self._taken += len(piece)
        self._connection.receive_data(piece)
        if self._refusal is None:
            self._head += piece
            self.outcome = self._read_head()
            if isinstance(self.outcome, Opened) and len(piece) < len(data):
                self.outcome = Opened(self.outcome.status, self.outcome.leftover + data[len(piece) :])
        if self._refusal is not None:
            self.outcome = self._read_body()
        return self.outcome

    def _at_end(self) -> Outcome:
        if self._refusal is not None:
            return self._refused(self._refusal)  # its body ends here, or is cut: enough for a person either way
        return Malformed("closed the connection " + ("in the middle of its answer" if self._head else "unanswered"))

    def _read_head(self) -> Outcome | None:
        while True:
            try:
                event = self._connection.next_event()
            except (h11.RemoteProtocolError, ValueError) as exc:  # ValueError: a length of thousands of digits
                if _SWITCHING.match(self._head):
                    return Refused(101, "Switching Protocols")
                return Malformed(f"sent no proper HTTP answer ({shown(str(exc))})")
            if event is h11.NEED_DATA:
                return Malformed(f"sent a head of more than {MOST_HEAD} bytes") if self._taken > MOST_HEAD else None
            # h11 gives nothing else in this state, and that is also what its types cannot say.
            assert isinstance(event, h11.InformationalResponse | h11.Response), event
            rest = self._connection.trailing_data[0]
            outcome = self._check_head(event, self._taken - len(rest))
            if outcome is not None:
                return outcome
            if isinstance(event, h11.Response):
                if 200 <= event.status_code < 300:
                    return Opened(event.status_code, rest)
                self._refusal = event
                return None
            self._head[:] = rest

    def _check_head(self, event: h11.InformationalResponse | h11.Response, length: int) -> Outcome | None:
        if length > MOST_HEAD:
            return Malformed(f"sent a head of more than {MOST_HEAD} bytes")
        if event.http_version not in _VERSIONS:
            return Malformed(f"answered in HTTP/{shown(event.http_version)}; CONNECT is spoken in 1.0 or 1.1")
        if len(event.headers) > MOST_FIELDS:
            return Malformed(f"sent more than {MOST_FIELDS} header fields")
        if isinstance(event, h11.InformationalResponse):
            if event.status_code == 101:  # h11 lets it pass where the caller's headers have an Upgrade
                return self._refused(event)
            self._interim += 1
            if self._interim > MOST_INTERIM:
                return Malformed(f"sent more than {MOST_INTERIM} interim answers")
        return None

    def _read_body(self) -> Outcome | None:
        assert self._refusal is not None
        while len(self._body) < MOST_BODY:
            try:
                event = self._connection.next_event()
            except (h11.RemoteProtocolError, ValueError):
                break  # garbage in a body that nobody needs; that it was refused is certain
            if event is h11.NEED_DATA:
                if self._taken < MOST_ANSWER:
                    return None
                break
            if not isinstance(event, h11.Data):
                break
            self._body += event.data
        return self._refused(self._refusal)

    def _refused(self, event: h11.InformationalResponse | h11.Response) -> Refused:
        headers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
        return Refused(event.status_code, shown(bytes(event.reason)), headers, bytes(self._body[:MOST_BODY]))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.outcome or ('refusing' if self.refusing else 'open')}>"
