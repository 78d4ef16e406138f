"""TLS sessions, so that the second connection to a host costs less than the first.

Theory of operation
-------------------
A resumed session verifies nothing. Python resumes a session of one host for another, and one that was made without
verification on a context that has since been told to verify, and shows the remembered certificate afterwards. What
makes resumption sound is only *which* session is offered. So:

* A session lives under the full key of the hop: everything that decides whom we talk to and how far trusted.
* It is taken only from a stream that this store was told about (`admit`) after its certificate was accepted, and only
  once: the first session that can be resumed. TLS 1.3 brings it with the first data, TLS 1.2 with the handshake.
* Pinned hops are never admitted: a pin must see a certificate, not the memory of one.
* Any failure under a key forgets its session (CVE-2024-0853: one was kept although a check had failed), and the
  connections that stand under that key bring no new one. They share a token, which the failure makes void: no need to
  look for them.
* A session is offered for a day after the certificate was last seen. Each resumption may bring another ticket, which
  would otherwise carry a verdict on for ever.

Some Pythons lose a copy of the session, 6 KiB, each time one is looked at (python/cpython#116810). On these a session
that was accepted is offered again, and the next one is looked at when a server wanted a full handshake. On all others
each connection brings its own, since a ticket that is used twice lets an onlooker link two connections (RFC 8446, C.4).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import trio

from .tls import TLSStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Hashable

MOST_SESSIONS: Final = 512
"""Sessions kept; each holds the peer's certificates, a few KiB. The least recently used one goes."""

LONGEST: Final = 86400.0
"""Seconds for which a verdict on a certificate is relied upon. RFC 8446 allows tickets seven days."""

_MOST_TRIES: Final = 4  # looking costs a copy of the session, and some servers never send a ticket

_LOOKING_LEAKS: Final = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)


@dataclass(slots=True)
class _Session:
    session: ssl.SSLSession
    context: ssl.SSLContext
    verified_at: float


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Token:
    key: Hashable
    void: bool = False


@dataclass(slots=True)
class _Admission:
    token: _Token
    verified_at: float
    tries: int = 0


class SessionStore:
    """Sessions by key. One per connector; used from one trio run."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._sessions: OrderedDict[Hashable, _Session] = OrderedDict()
        self._admitted: WeakKeyDictionary[trio.abc.Stream, _Admission] = WeakKeyDictionary()
        self._tokens: WeakValueDictionary[Hashable, _Token] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._sessions)

    def offer(self, key: Hashable, context: ssl.SSLContext) -> ssl.SSLSession | None:
        """The session to offer for `key` on `context`, or None. Sessions work only with the context they came from."""
        kept = self._sessions.get(key)
        if kept is None:
            return None
        if kept.context is not context or trio.current_time() > kept.verified_at + LONGEST:
            self.drop(key)
            return None
        self._sessions.move_to_end(key)
        return kept.session

    def admit(self, key: Hashable, stream: TLSStream[trio.abc.Stream]) -> None:
        """`stream` finished its handshake for `key` and everything about its certificate was accepted."""
        verified_at = trio.current_time()
        if stream.session_reused:
            kept = self._sessions.get(key)
            if kept is None or _LOOKING_LEAKS:  # it was dropped meanwhile, or will do again
                return
            verified_at = kept.verified_at
        token = self._tokens.get(key)
        if token is None:
            token = self._tokens[key] = _Token(key)
        self._admitted[stream] = _Admission(token, verified_at)

    def harvest(self, key: Hashable, stream: trio.abc.Stream) -> bool:
        """Keep the session of `stream` if it was admitted under `key` and has one. Call it after data has come.

        Returns:
          whether there is no point in calling again.
        """
        admission = self._admitted.get(stream)
        if admission is None or admission.token.void or admission.token.key != key or not isinstance(stream, TLSStream):
            return True
        session = stream.session
        # Before its ticket came, a TLS 1.3 session would be "resumed" by a full handshake.
        if session is not None and (session.has_ticket or (session.id and stream.version() != "TLSv1.3")):
            self._sessions[key] = _Session(session, stream.context, admission.verified_at)
            self._sessions.move_to_end(key)
            if len(self._sessions) > self._most:
                self._sessions.popitem(last=False)
        else:
            admission.tries += 1
            if admission.tries < _MOST_TRIES:
                return False
        del self._admitted[stream]
        return True

    def drop(self, key: Hashable) -> None:
        """Forget what `key` has, and take nothing from the streams that it has open."""
        self._sessions.pop(key, None)
        token = self._tokens.pop(key, None)
        if token is not None:
            token.void = True

    def clear(self) -> None:
        """Forget everything."""
        self._sessions.clear()
        self._admitted.clear()
        self._tokens.clear()
