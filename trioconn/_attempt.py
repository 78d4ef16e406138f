"""Making one connection: from a dial to what the pool holds, or to the error that the waiting caller gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import trio

from ._connection import Held, TLSInfo
from ._errors import ConnectError, ConnectTimeoutError
from ._establish.dial import Dialling, below, tls_layers
from ._establish.foreign import ForeignStream, HalfCloseableForeignStream, poolable
from ._route import TARGET, Route

if TYPE_CHECKING:
    from ._establish.tls import TLSStream

ProtocolFactory: TypeAlias = Callable[[trio.abc.Stream, Route], Awaitable[Any]]
"""``async (stream, route) -> T``: the last step of making a connection."""

Dialler: TypeAlias = Callable[[Route, Dialling], Awaitable[trio.abc.Stream]]


async def make(
    dialling: Dialling,
    dial: Dialler,
    protocol_factory: ProtocolFactory | None,
    close_later: Callable[[trio.abc.Stream], None],
    numbers: Iterator[int],
) -> Held:
    """Dial, and run the protocol factory. If this raises, or is cancelled, everything is closed.

    Args:
      close_later: has a task close a foreign stream for which there is no other way.
      numbers: the next is the connection's.
    """
    route = dialling.route
    made = await dial(route, dialling)
    if not (hasattr(made, "receive_some") and hasattr(made, "aclose")):  # a forgotten `return` makes it None
        raise TypeError(f"create_stream() must return a trio.abc.Stream, and returned {made!r:.50}")
    stream: Any
    if poolable(made) is not None:
        stream = made
    elif isinstance(made, trio.abc.HalfCloseableStream):
        stream = HalfCloseableForeignStream(made, close_later)
    else:
        stream = ForeignStream(made, close_later)
    try:
        protocol: Any = None
        if protocol_factory is not None:
            dialling.reached("protocol")
            protocol = await protocol_factory(made, route)
        now = trio.current_time()
        layers = [_layer(hop, layer) for hop, layer in tls_layers(stream, route)]
        return Held(
            stream,
            made,
            route,
            fd=stream.fileno(),
            protocol=protocol,
            number=next(numbers),
            local_address=_address(stream, "getsockname"),
            remote_address=_address(stream, "getpeername"),
            tls=tuple(layers),
            timings={**dialling.timings, "total": now - dialling.started},
            session_reused=bool(layers) and layers[-1].hop == TARGET and layers[-1].session_reused,
            now=now,
        )
    except BaseException:
        stream.close_nowait()
        raise


def timed_out(dialling: Dialling, seconds: float) -> ConnectTimeoutError:
    """The error of an attempt that did not end within ``connect_timeout``."""
    whose = "" if dialling.hop == TARGET else f" of the proxy {dialling.route.proxies[dialling.hop]}"
    return ConnectTimeoutError(
        f"{dialling.route}: no connection within connect_timeout={seconds:g} s; it had come to the stage "
        f"{dialling.stage!r}{whose}",
        stage=dialling.stage,
        hop=dialling.hop,
        route=dialling.route,
    )


def explained(error: BaseException, dialling: Dialling) -> BaseException:
    """What the waiting caller gets for `error`: an OSError becomes a `ConnectError`, others stay as they are."""
    if isinstance(error, ConnectError):
        _set_route(error, dialling.route)
        return error
    if not isinstance(error, OSError):
        return error
    kind = ConnectTimeoutError if isinstance(error, TimeoutError) else ConnectError
    better = kind(
        f"{dialling.route}: {error.strerror or str(error) or type(error).__name__}",
        errno=error.errno,
        stage=dialling.stage,
        hop=dialling.hop,
        route=dialling.route,
    )
    better.__cause__ = error
    return better


def _set_route(error: BaseException, route: Route) -> None:
    """Say which route it was, in `error` and in what it was made of."""
    if isinstance(error, ConnectError) and error.route is None:
        error.route = route
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            _set_route(part, route)
    elif error.__cause__ is not None:
        _set_route(error.__cause__, route)


def _layer(hop: int, stream: TLSStream[Any] | trio.SSLStream[Any]) -> TLSInfo:
    cipher = stream.cipher()
    return TLSInfo(
        hop=hop,
        version=stream.version(),
        cipher=None if cipher is None else cipher[0],
        alpn=stream.selected_alpn_protocol(),
        server_name=stream.server_hostname,
        certificate=stream.getpeercert(binary_form=True),
        session_reused=bool(stream.session_reused),
    )


def _address(stream: object, ask: str) -> Any:
    """What the socket at the bottom of `stream` says of itself, or None where there is none."""
    while (under := below(stream)) is not None:
        stream = under
    sock: Any = getattr(stream, "socket", None)
    try:
        return None if sock is None else getattr(sock, ask)()
    except OSError:  # the peer is gone already
        return None
