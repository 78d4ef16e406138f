"""One HTTP/1.1 exchange on a lease, by h11: enough of a client to be right about when a connection may be used again.

A connection is clean when both sides are done with the message and want to go on (no ``Connection: close``, no
HTTP/1.0), and nothing was received behind the response's end. Everything else ends with the lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import h11
import trio

from .. import Connection
from .._names import URL, split_url

_RECEIVE: Final = 65536
_MOST_INFORMATIONAL: Final = 20  # 1xx responses before the real one
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 section 9.2.2
_IN_TARGET: Final = "/%?:@!$&'()*+,;=-._~[]|"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class StaleConnectionError(Exception):
    """A connection that had been used before ended before it gave a single byte of a response.

    Servers close idle connections when they like, and a request can cross that. The request was not answered, so one
    that may be repeated is (RFC 9112 section 9.3.1).
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, how many bytes of body, and whether the connection is clean."""

    status: int
    received: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A request without a body, to be sent any number of times.

    Attributes:
      method: in capitals.
      url: the whole target, for forwarding proxies.
      path: path and query, for everybody else.
      headers: as pairs of bytes, with Host.
    """

    method: str
    url: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def make(cls, method: str, url: str, headers: tuple[tuple[str, str], ...] = ()) -> Request:
        """A request for `url`.

        Raises:
          InvalidTargetError: the URL is malformed.
          ValueError: it is not one of HTTP, or a header cannot be sent.
        """
        parts = split_url(url)
        if parts.scheme not in _DEFAULT_PORTS or parts.host is None:
            raise ValueError(f"{parts.scheme}: the scheme must be http or https")
        path = _path(parts)
        host = parts.host.authority(None if parts.port == _DEFAULT_PORTS[parts.scheme] else parts.port)
        fields: list[tuple[bytes, bytes]] = []
        given = {name.lower() for name, _ in headers}
        ours: tuple[tuple[str, str], ...] = (("Host", host), ("User-Agent", "trioconn"), ("Accept", "*/*"))
        if method not in _SAFE:
            ours = (*ours, ("Content-Length", "0"))
        for name, value in (*(pair for pair in ours if pair[0].lower() not in given), *headers):
            fields.append((name.encode("ascii"), value.encode("latin-1")))
        request = cls(method, f"{parts.scheme}://{host}{path}", path, tuple(fields))
        h11.Connection(h11.CLIENT).send(request.event(forwarded=False, extra=()))  # refuses what cannot be sent, now
        return request

    def event(self, *, forwarded: bool, extra: tuple[tuple[bytes, bytes], ...]) -> h11.Request:
        """The request as h11 sends it.

        Raises:
          ValueError: a part of it cannot be sent.
        """
        try:
            return h11.Request(
                method=self.method, target=self.url if forwarded else self.path, headers=[*self.headers, *extra]
            )
        except h11.LocalProtocolError as error:
            raise ValueError(str(error)) from error

    @property
    def is_safe_to_repeat(self) -> bool:
        """Whether sending it twice does what sending it once does."""
        return self.method in _SAFE


def _path(parts: URL) -> str:
    path = parts.path or "/"
    if parts.query is not None:
        path += f"?{parts.query}"
    return quote(path, safe=_IN_TARGET)


async def exchange(lease: Connection, request: Request) -> Answer:
    """Send `request` and read the response to its end. Releases the lease if it is clean, and does not close it else.

    Raises:
      StaleConnectionError: the connection, used before, gave nothing.
      h11.RemoteProtocolError: the server does not speak HTTP/1.1, goes on with something else, or ended in the middle
        of the response.
      trio.BrokenResourceError: the connection broke.
    """
    stream = lease.stream
    http = h11.Connection(h11.CLIENT)
    data = http.send(request.event(forwarded=lease.forwarded, extra=lease.proxy_headers)) or b""
    data += http.send(h11.EndOfMessage()) or b""
    heard = informational = received = status = 0
    sent = True
    try:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            sent = False  # it may have answered before it hung up (408, 413): then that answer is the result
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                chunk = await stream.receive_some(_RECEIVE)
                heard += len(chunk)
                if not chunk and not heard:
                    raise trio.BrokenResourceError("the server closed the connection without an answer")
                http.receive_data(bytes(chunk))
            elif isinstance(event, h11.InformationalResponse):
                informational += 1
                if informational > _MOST_INFORMATIONAL:
                    raise h11.RemoteProtocolError(f"more than {_MOST_INFORMATIONAL} informational responses")
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                received += len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:  # h11.PAUSED; where the answer ends too early, `next_event` raises
                raise h11.RemoteProtocolError("the server goes on with another protocol, as the request asked")
    except trio.BrokenResourceError as error:
        if lease.reused and not heard:
            raise StaleConnectionError(str(error)) from error
        raise
    clean = sent and http.our_state is http.their_state is h11.DONE and http.trailing_data == (b"", False)
    if clean:
        lease.release()
    return Answer(status, received, clean)
