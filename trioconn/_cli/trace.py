"""``trioconn trace URL``: one connection seen from the inside.

The connector's own events are recorded, made into a document (`recording`), and that into a screen (`render`). Nothing
is sent to the target but what it takes to connect.

The exit code tells the stage that failed: 20 resolve, 30 connect, 40 proxy, 50 tls, 51 pin, 60 protocol, 70 anything
else; 0 if a connection was made each time, 2 if the command line is wrong.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import trio

from .. import (
    BaseConnector,
    CertificateError,
    ConnectError,
    FingerprintMismatchError,
    Proxy,
    ProxyChoice,
    Resolver,
    ResolveResult,
    Route,
    SystemResolver,
)
from .certificates import decode
from .options import add_connection_options, count, make_connector, proxies, run, seconds, trust
from .recording import Document, Recording, Use, document
from .render import Line, as_json, plain, screen
from .terminal import Look

if TYPE_CHECKING:
    from .._establish.plan import SSLOption

_LOOK_TIMEOUT = 5.0  # seconds for the second look at a refused certificate


def add_trace(make: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the parser of this command with `make`, the ``add_parser`` of a parser of commands."""
    parser = make(
        "trace",
        help="one connection seen from the inside: lookup, race, proxies, TLS",
        description="Connects, and shows what happened: lookup, race of addresses, each proxy, each layer of TLS.",
        epilog="Exit codes: 20 resolve, 30 connect, 40 proxy, 50 tls, 51 pin, 60 protocol, 70 other; 0 connected.",
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", help="http, https, ws, wss; tcp:// and tls:// need a port")
    parser.add_argument("-n", "--times", type=count, default=1, help="connect so many times over one connector")
    parser.add_argument("--pause", metavar="S", type=seconds, help="seconds between these")
    addresses = parser.add_argument_group("addresses")
    family = addresses.add_mutually_exclusive_group()
    family.add_argument("-4", dest="family", action="store_const", const=socket.AF_INET, help="only IPv4")
    family.add_argument("-6", dest="family", action="store_const", const=socket.AF_INET6, help="only IPv6")
    addresses.add_argument(
        "--resolve",
        metavar="HOST:PORT:ADDR[,ADDR]",
        action="append",
        default=[],
        help="take these addresses for HOST (IPv6 ones may have brackets)",
    )
    addresses.add_argument(
        "--delay", metavar="S", type=seconds, default=0.25, help="head start of an address (default: 0.25)"
    )
    add_connection_options(parser)
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=10.0, help="seconds for one connection (default: 10)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="a document for machines; docs/trace.schema.json")
    output.add_argument(
        "--svg", metavar="FILE", help='write the screen as a picture, too (pip install "trioconn[cli]")'
    )


def trace(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
      ValueError: the command line cannot be honoured.
    """
    if arguments.svg and find_spec("rich") is None:  # before the work, not after
        raise ValueError('--svg draws with rich: pip install "trioconn[cli]"')
    made: Document = run(record, arguments)
    if arguments.json:
        print(as_json(made))
    else:
        show(screen(made))
    if arguments.svg:
        try:
            save_svg(screen(made), arguments.svg, f"trioconn trace {arguments.url}")
        except OSError as error:
            raise ValueError(f"--svg {arguments.svg}: {error.strerror or error}") from error
    return int(made["exit_code"])


async def record(arguments: argparse.Namespace) -> Document:
    """Connect as `arguments` say; gives the document.

    Raises:
      ValueError: they cannot be honoured.
    """
    way, trusted = proxies(arguments), trust(arguments)
    if arguments.unix is not None and (arguments.family or arguments.resolve):
        raise ValueError("a Unix socket has no address to choose: leave out --unix, or -4, -6 and --resolve")
    fixed = FixedResolver(arguments.resolve) if arguments.resolve else None
    tcp_options: dict[str, Any] = {
        "family": arguments.family or 0,
        "happy_eyeballs_delay": arguments.delay,
        "resolver": fixed,
    }
    try:
        return await _record(arguments, way, trusted, tcp_options, fixed)
    finally:
        if fixed is not None:
            await fixed.aclose()


async def _record(
    arguments: argparse.Namespace,
    way: tuple[Proxy, ...] | ProxyChoice,
    trusted: SSLOption,
    tcp_options: dict[str, Any],
    fixed: FixedResolver | None,
) -> Document:
    recording = Recording(
        url=arguments.url,
        route="",
        proxy_reason=way.reason if isinstance(way, ProxyChoice) else None,
        verified=not arguments.insecure,
        authorities=arguments.cacert or ("none" if arguments.pin or arguments.insecure else "system"),
        pin=arguments.pin,
        made_at=datetime.now(UTC),
    )
    connector = make_connector(
        arguments,
        way,
        trusted,
        tcp_options,
        connect_timeout=arguments.timeout,
        timeout_ceil_threshold=arguments.timeout,
        observers=[recording.heard.append],
    )
    async with connector:
        route = connector.route(arguments.url)
        if fixed is not None:
            fixed.check(route)
        recording.route = str(route)
        recording.proxies = [str(proxy) for proxy in route.proxies]
        for number in range(arguments.times):
            if number and arguments.pause:
                await trio.sleep(arguments.pause)
            recording.uses.append(await _use(connector, arguments.url))
        recording.presented = await _presented(arguments, way, tcp_options, recording.uses)
    return document(recording, decode)


async def _use(connector: BaseConnector, url: str) -> Use:
    began = trio.current_time()
    try:
        async with await connector.connect(url) as lease:
            lease.release()  # nothing was sent: it is as clean as it was
            return Use(began, trio.current_time(), lease.info.number)
    except ConnectError as error:
        return Use(began, trio.current_time(), None, error)


async def _presented(
    arguments: argparse.Namespace,
    way: tuple[Proxy, ...] | ProxyChoice,
    tcp_options: dict[str, Any],
    uses: Sequence[Use],
) -> dict[int, bytes]:
    """The certificate that the first failed connect refused, by its hop, if that is why it failed and it can be had."""
    refused = next((use.error for use in uses if use.error is not None), None)
    if not isinstance(refused, ConnectError) or not _is_about_certificate(refused):
        return {}
    der = await look(arguments, way, tcp_options, refused.hop)
    return {} if der is None else {refused.hop: der}


def _is_about_certificate(error: ConnectError) -> bool:
    return isinstance(error, CertificateError | FingerprintMismatchError) or isinstance(
        error.__cause__, CertificateError | FingerprintMismatchError
    )


async def look(
    arguments: argparse.Namespace, way: tuple[Proxy, ...] | ProxyChoice, tcp_options: dict[str, Any], hop: int
) -> bytes | None:
    """The certificate (DER) that `hop` presents, by a connection without verification on which nothing is sent.

    For a proxy only the way up to it is gone, so that it gets to see neither its login nor the target.
    """
    chain = way if isinstance(way, tuple) else (() if way.proxy is None else (way.proxy,))
    url = arguments.url
    if hop >= 0:
        url, chain = f"tls://{chain[hop].host.authority(chain[hop].port)}", chain[:hop]
    with trio.move_on_after(_LOOK_TIMEOUT), suppress(ConnectError):
        async with (
            make_connector(arguments, chain, False, tcp_options, connect_timeout=_LOOK_TIMEOUT) as connector,
            await connector.connect(url) as lease,
        ):
            return lease.info.tls[-1].certificate
    return None


class FixedResolver(Resolver):
    """Knows some names by heart, as ``--resolve`` says, and asks the system for the others.

    Raises:
      ValueError: an entry is not ``HOST:PORT:ADDR[,ADDR]``.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._known: dict[str, list[ResolveResult]] = {}
        self._entries: list[tuple[str, str, int]] = []
        for entry in entries:
            host, _, rest = entry.partition(":")
            port, colon, addresses = rest.partition(":")
            if not host or not port.isdigit() or not colon:
                raise ValueError(f"--resolve takes HOST:PORT:ADDR[,ADDR], not {entry!r}")
            self._entries.append((entry, host.lower().removesuffix("."), int(port)))
            for text in addresses.split(","):
                try:
                    address = ip_address(text.strip().strip("[]"))
                except ValueError as error:
                    raise ValueError(f"--resolve {entry}: {error}") from None
                family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                self._known.setdefault(host.lower().removesuffix("."), []).append(ResolveResult(str(address), family))
        self._system = SystemResolver()

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of `host` of that family: as given, in the order given, or from the system."""
        known = self._known_of(host)
        if known is None:
            return await self._system.resolve(host, port, family)
        await trio.lowlevel.checkpoint()
        return [one for one in known if family in (socket.AF_UNSPEC, one.family)]

    async def aclose(self) -> None:
        """Release the system's resolver."""
        await self._system.aclose()

    def splits(self, host: str) -> bool:
        """Only what the system is asked for; ours keep the order in which they were given."""
        return self._known_of(host) is None and self._system.splits(host)

    def check(self, route: Route) -> None:
        """See that each entry is for a host and port to which `route` leads.

        Raises:
          ValueError: one is not, so it cannot be honoured.
        """
        hops = {(route.host, route.port), *((proxy.host, proxy.port) for proxy in route.proxies)}
        for entry, host, port in self._entries:
            if (host, port) not in hops:
                ways = ", ".join(f"{name}:{number}" for name, number in sorted(hops, key=str))
                raise ValueError(f"--resolve {entry}: nothing on the way is {host}:{port}; it leads to {ways}")

    def _known_of(self, host: str) -> list[ResolveResult] | None:
        return self._known.get(host.removesuffix(".").lower())


def show(lines: Sequence[Line]) -> None:
    """Write `lines` to the standard output: in colour with rich on a terminal, plain otherwise."""
    look = Look.of(sys.stdout)
    if look.colour:
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            console = Console(highlight=False, soft_wrap=True)
            for line in lines:
                console.print(_rich(line))
            return
    print(look(plain(lines)), end="", flush=True)


def save_svg(lines: Sequence[Line], path: str, title: str) -> None:
    """Write `lines` as a picture."""
    import io

    from rich.console import Console

    console = Console(record=True, width=_SVG_WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    for line in lines:
        console.print(_rich(line))
    console.save_svg(path, title=title)


_SVG_WIDTH = 110
_RICH: dict[str | None, str] = {
    None: "",
    "good": "green",
    "bad": "bold red",
    "warn": "yellow",
    "dim": "bright_black",
    "bold": "bold",
    "blue": "cyan",
}


def _rich(line: Line) -> Any:
    from rich.text import Text

    return Text.assemble(*((text, _RICH[style]) for text, style in line))
