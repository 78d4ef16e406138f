"""The TLS contexts that this library makes: once per process, in a thread, never handed out.

Loading the system's authorities takes about 30 ms, which would stall every task of the run, and each context a megabyte
or so. So the first attempt that needs a context has it made in a thread, everybody else who comes meanwhile waits for
that one, and it is kept for the process. Nobody outside gets hold of it, so nothing about it can change: that is why a
route can name it by value (`DefaultTrust`) where it has to hold a caller's context by identity.

The thread does not count against trio's default limiter, which a connector must leave alone. The first caller, when
cancelled, waits for those 30 ms: a thread cannot be stopped, and the others still want what it makes.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from typing import Final, TypeAlias

import trio

from .._route import DefaultTrust, TLSStep

_Key: TypeAlias = "tuple[bool, tuple[str, ...]]"

MOST_CONTEXTS: Final = 16
"""One per trust and ALPN offer; programs have two or three. The least recently used one goes."""

_contexts: Final[OrderedDict[_Key, ssl.SSLContext]] = OrderedDict()
_in_the_making: Final[trio.lowlevel.RunVar[dict[_Key, trio.Event]]] = trio.lowlevel.RunVar("trioconn TLS contexts")


async def context_for(step: TLSStep) -> ssl.SSLContext:
    """The context that `step` is to be made with: the caller's own, or one of ours. Not always a checkpoint.

    Raises:
      OSError: the system's authorities could not be loaded (an unreadable ``SSL_CERT_FILE``, ``SSLKEYLOGFILE``).
    """
    trust = step.trust
    if not isinstance(trust, DefaultTrust):
        return trust.context
    key = (trust.verified, step.alpn)
    while (context := _contexts.get(key)) is None:
        making = _making()
        other = making.get(key)
        if other is not None:
            await other.wait()  # if its maker failed, the next in line tries
            continue
        done = making[key] = trio.Event()
        try:
            context = await trio.to_thread.run_sync(_make, *key, limiter=trio.CapacityLimiter(1))
            # Another trio run in another thread may have been faster: sessions want one context for all.
            return _contexts.setdefault(key, context)
        finally:
            del making[key]
            done.set()
            _forget_the_oldest()
    _contexts.move_to_end(key)
    return context


def prepare(step: TLSStep) -> None:
    """See to it that `context_for` need not wait, at the cost of blocking: virtual time would run on meanwhile."""
    if isinstance(step.trust, DefaultTrust):
        key = (step.trust.verified, step.alpn)
        if key not in _contexts:
            _contexts[key] = _make(*key)
            _forget_the_oldest()


def _forget_the_oldest() -> None:
    while len(_contexts) > MOST_CONTEXTS:
        _contexts.popitem(last=False)


def _making() -> dict[_Key, trio.Event]:
    try:
        return _in_the_making.get()
    except LookupError:
        making: dict[_Key, trio.Event] = {}
        _in_the_making.set(making)
        return making


def _make(verified: bool, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Make a context. `ssl.create_default_context` also honours SSLKEYLOGFILE, SSL_CERT_FILE and SSL_CERT_DIR."""
    context = ssl.create_default_context()
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
