"""Connect to the first of several addresses that answers: aiohappyeyeballs for trio.

The names, parameters and results are those of aiohappyeyeballs 2.7, with a `trio.socket.SocketType` in place of a
stdlib socket, and without ``loop``. What was kept is what can be relied on: the order of attempts, when each one
starts, and the class and errno of what is raised.

What is different, on purpose:

* What is no `OSError` or `RuntimeError` comes out as it was raised, race or not, where the original swallows it and may
  raise an `IndexError` instead (aiohappyeyeballs#93).
* An error of ``close()`` while a failed or cancelled attempt is cleaned up replaces neither the error nor the
  cancellation.
* An address that could not be bound counts only if none could be: that another local address was tried first does not
  hide that the peer refused.
* The errors that were put together into one are its ``__cause__``, an `ExceptionGroup`.
* A delay below 10 ms is 10 ms, which RFC 8305 section 5 demands. Zero still means what it does there: one after the
  other, each as long as it takes.

There is no limit here to attempts in flight: the list is the caller's. `trioconn.TCPConnector` does much more: it looks
names up during the race, races TLS too, and remembers. This module is for those who have addresses and want a socket.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, TypeAlias, cast

import trio

from ._establish.addresses import interleave as interleaved
from ._establish.race import MIN_DELAY, Attempt, Candidates, Outcome, race

__all__ = [
    "AddrInfoType",
    "SocketFactoryType",
    "addr_to_addr_infos",
    "pop_addr_infos_interleave",
    "remove_addr_infos",
    "start_connection",
]

AddrInfoType: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
"""What `socket.getaddrinfo` returns a list of: family, type, protocol, canonical name, socket address."""

SocketFactoryType: TypeAlias = Callable[[AddrInfoType], socket.socket | trio.socket.SocketType]
"""Makes a socket for an address; it is made non-blocking afterwards."""

_FAILURES = (OSError, RuntimeError)


@trio.lowlevel.enable_ki_protection
async def start_connection(
    addr_infos: Sequence[AddrInfoType],
    *,
    local_addr_infos: Sequence[AddrInfoType] | None = None,
    happy_eyeballs_delay: float | None = None,
    interleave: int | None = None,
    socket_factory: SocketFactoryType | None = None,
) -> trio.socket.SocketType:
    """Connect to the first of `addr_infos` that answers (RFC 8305 section 5).

    Args:
      addr_infos: where to, best first; as from `trio.socket.getaddrinfo`. Left as it is.
      local_addr_infos: what to bind to: for each attempt the first of its family that can be bound. None: nothing.
      happy_eyeballs_delay: seconds after which the next address is tried beside those under way; 0.25 is the RFC's. The
        next one starts at once when the latest started has failed. None or 0: one after the other, each as long as it
        takes.
      interleave: how many addresses of the first family come before the families take turns, with or without a delay.
        0: the order is kept. None: 1 with a delay, else 0.
      socket_factory: called with the whole address info once per attempt. None: `trio.socket.socket`.

    Returns:
      A connected socket, the caller's from now on. All others are closed. When cancelled, all are.

    Raises:
      ValueError: `addr_infos` is empty.
      OSError: none could be connected. With one error, or several that read the same, it is the first one itself. Else
        it is a new one, with the common errno (and so the fitting subclass) if there is one, and all as the cause.
      RuntimeError: likewise, if all attempts raised one.
    """
    if not addr_infos:
        raise ValueError("addr_infos must not be empty: give at least one address")
    if interleave is None:
        interleave = 0 if happy_eyeballs_delay is None else 1
    infos = interleaved(addr_infos, interleave, lambda info: info[0])
    # Of an attempt that could bind none of several addresses, all errors are kept: those before the last are here.
    earlier: dict[int, list[OSError]] = {}

    @trio.lowlevel.enable_ki_protection
    async def attempt(info: AddrInfoType, me: Attempt) -> trio.socket.SocketType:
        sock = _make_socket(info, socket_factory)
        try:
            if local_addr_infos is not None:
                await _bind(sock, info[0], local_addr_infos, earlier.setdefault(me.index, []))
            await sock.connect(info[4])
        except BaseException:
            with contextlib.suppress(OSError):
                sock.close()
            raise
        return sock

    outcome: Outcome[AddrInfoType, trio.socket.SocketType] | None = None
    try:
        outcome = await race(
            Candidates(infos),
            attempt,
            delay=max(happy_eyeballs_delay, MIN_DELAY) if happy_eyeballs_delay else None,
            discard=_close,
            failures=_FAILURES,
            max_in_flight=len(infos),
            max_total=len(infos),
        )
        if outcome.won is None:
            raise _combined(
                [
                    error
                    for failure in outcome.failures
                    for error in [*earlier.get(failure.index, ()), cast("OSError | RuntimeError", failure.error)]
                ]
            )
        return outcome.won.result
    finally:
        for errors in earlier.values():
            errors.clear()
        del outcome  # else these frames and the exceptions hold each other


def _make_socket(info: AddrInfoType, factory: SocketFactoryType | None) -> trio.socket.SocketType:
    if factory is None:
        return trio.socket.socket(*info[:3])
    made = factory(info)
    if isinstance(made, trio.socket.SocketType):
        return made
    try:
        return trio.socket.from_stdlib_socket(made)  # makes it non-blocking
    except BaseException:
        with contextlib.suppress(OSError):
            made.close()
        raise


async def _bind(
    sock: trio.socket.SocketType, family: int, local_addr_infos: Sequence[AddrInfoType], earlier: list[OSError]
) -> None:
    """Bind to the first address of `family` that can be; raise the last error if none can, the others in `earlier`."""
    failed: OSError | None = None
    try:
        for local in local_addr_infos:
            if local[0] != family:
                continue
            try:
                await sock.bind(local[4])
            except OSError as error:
                if failed is not None:
                    earlier.append(failed)
                reason = (error.strerror or str(error)).lower()
                failed = OSError(error.errno, f"error while attempting to bind on address {local[4]!r}: {reason}")
                failed.__cause__ = error
            else:
                earlier.clear()
                return
        raise failed or OSError(f"no matching local address with {family=!r} found")
    finally:
        del failed


def _close(sock: trio.socket.SocketType) -> None:
    with contextlib.suppress(OSError):
        sock.close()


def _combined(errors: list[OSError | RuntimeError]) -> OSError | RuntimeError:
    """One error for all of them, which are in order of start."""
    first = errors[0]
    if len({str(error) for error in errors}) == 1:
        return first
    message = "Multiple exceptions: " + ", ".join(str(error) for error in errors)
    combined: OSError | RuntimeError
    if isinstance(first, OSError) and all(isinstance(each, OSError) and each.errno == first.errno for each in errors):
        combined = OSError(message) if first.errno is None else OSError(first.errno, message)
    elif all(isinstance(error, RuntimeError) for error in errors):
        combined = RuntimeError(message)
    else:
        combined = OSError(message)
    combined.__cause__ = ExceptionGroup(message, errors)
    return combined


def addr_to_addr_infos(addr: tuple[Any, ...] | None) -> list[AddrInfoType] | None:
    """A socket address as a list of one address info, for TCP; None as None.

    Args:
      addr: ``(host, port)``, or with flow info and scope for IPv6, which are 0 otherwise. The host is not checked: with
        a colon it is IPv6.
    """
    if addr is None:
        return None
    host, port = addr[0], addr[1]
    if ":" in host:
        flow_info, scope = (*addr[2:4], 0, 0)[:2]
        return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, flow_info, scope))]
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]


def pop_addr_infos_interleave(addr_infos: list[AddrInfoType], interleave: int | None = None) -> None:
    """Remove the first `interleave` entries (None: 1) of each family from `addr_infos`, in place.

    Those are the ones that one round of taking turns has tried. Positions count: a duplicate is an entry of its own.
    """
    most = 1 if interleave is None else interleave
    seen: dict[int, int] = {}
    kept: list[AddrInfoType] = []
    for info in addr_infos:
        count = seen[info[0]] = seen.get(info[0], 0) + 1
        if count > most:
            kept.append(info)
    addr_infos[:] = kept


def remove_addr_infos(addr_infos: list[AddrInfoType], addr: tuple[Any, ...]) -> None:
    """Remove all entries with the socket address `addr` from `addr_infos`, in place.

    If none is equal, the hosts are compared as addresses, so that ``::1`` finds ``0:0::1``.

    Args:
      addr_infos: what to remove from.
      addr: a whole socket address, such as ``getpeername()`` returns: for IPv6 with flow info and scope.

    Raises:
      ValueError: there is none, or a host is no IP address; nothing was removed.
    """
    kept = [info for info in addr_infos if info[4] != addr]
    if len(kept) == len(addr_infos):
        wanted = _canonical(addr)
        kept = [info for info in addr_infos if _canonical(info[4]) != wanted]
    if len(kept) == len(addr_infos):
        raise ValueError(f"Address {addr!r} not found in addr_infos: give a whole socket address of one of them")
    addr_infos[:] = kept


def _canonical(addr: tuple[Any, ...]) -> tuple[Any, ...]:
    return (ip_address(addr[0]), *addr[1:])
