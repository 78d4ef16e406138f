"""The options that `get`, `trace` and `doctor` have in common, with curl's names where curl has them."""

from __future__ import annotations

import argparse
import ssl
from typing import Any

import trio

from .. import BaseConnector, Fingerprint, Proxy, ProxyChoice, TCPConnector, UnixConnector, proxy_for
from .._names import split_url

_WITH_TLS = ("https", "wss", "tls")


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """How to get there, and whom to trust."""
    way = parser.add_argument_group("the way")
    way.add_argument(
        "--proxy",
        metavar="URL",
        action="append",
        help="go through this proxy; several make a chain, the first one dialled. Default: what the environment says",
    )
    way.add_argument("--direct", action="store_true", help="use no proxy, whatever the environment says")
    way.add_argument("--unix", metavar="PATH", help="connect to this Unix socket; the URL says host and TLS")
    trust = parser.add_argument_group("whom to trust")
    trust.add_argument("--cacert", metavar="FILE", help="trust these authorities (PEM) instead of the system's")
    trust.add_argument(
        "--proxy-cacert", metavar="FILE", help="trust these authorities with https proxies instead of the system's"
    )
    trust.add_argument(
        "--pin", metavar="HEX", help="the SHA-256 of the certificate; it decides alone, unless --cacert is given too"
    )
    trust.add_argument(
        "--insecure", "--no-verify", action="store_true", help="TLS without verification: for looking, not for use"
    )


def trust(arguments: argparse.Namespace) -> bool | ssl.SSLContext | Fingerprint:
    """The ``ssl=`` that the options ask for.

    Raises:
      ValueError: they contradict each other, or a file or digest cannot be read.
    """
    if arguments.insecure and (arguments.cacert or arguments.pin):
        raise ValueError("--insecure trusts everybody: leave out --cacert and --pin, or --insecure")
    scheme = split_url(arguments.url).scheme
    if arguments.pin and scheme not in _WITH_TLS:  # the others say how TLS is trusted where there is some
        raise ValueError(f"--pin cannot be honoured: {scheme}:// has no TLS")
    if arguments.insecure:
        return False
    context = context_of("--cacert", arguments.cacert)
    if arguments.pin:
        return Fingerprint(arguments.pin, context=context)
    return True if context is None else context


def context_of(option: str, path: str | None) -> ssl.SSLContext | None:
    """A verifying context that trusts the authorities in the file at `path`, None without one.

    Raises:
      ValueError: the file cannot be read, or holds no certificate.
    """
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{option} {path}: {error.strerror or error}") from error


def proxies(arguments: argparse.Namespace) -> tuple[Proxy, ...] | ProxyChoice:
    """The proxies on the way: those of the options, or what the environment chooses, and why.

    Raises:
      ValueError: the options contradict each other, or a proxy is malformed.
    """
    on_socket = arguments.unix is not None
    if on_socket and arguments.proxy:
        raise ValueError("a Unix socket is not reached through a proxy: leave out --unix or --proxy")
    if arguments.direct and arguments.proxy:
        raise ValueError("--direct means no proxy: leave out one of --direct and --proxy")
    if on_socket or arguments.direct:
        return ()
    context = context_of("--proxy-cacert", arguments.proxy_cacert)
    if arguments.proxy is None:
        choice = proxy_for(arguments.url)
        if choice.proxy is not None and choice.proxy.scheme == "https" and context is not None:
            own = choice.proxy
            hop = own.hop
            proxy = Proxy(str(hop), auth=own.auth, headers=own.headers, ssl=context)
            return ProxyChoice(proxy, choice.reason)
        return choice
    chain: list[Proxy] = []
    for url in arguments.proxy:
        proxy = Proxy(url if "://" in url else f"http://{url}")
        if proxy.scheme == "https" and context is not None:
            proxy = Proxy(str(proxy.hop), auth=proxy.auth, ssl=context)
        chain.append(proxy)
    return tuple(chain)


def make_connector(
    arguments: argparse.Namespace,
    way: tuple[Proxy, ...] | ProxyChoice,
    trusted: bool | ssl.SSLContext | Fingerprint,
    tcp_options: dict[str, Any],
    **options: Any,
) -> BaseConnector:
    """The connector that the options ask for, not entered yet.

    Args:
      arguments: with ``unix``.
      way: from `proxies`.
      trusted: from `trust`.
      tcp_options: options that only a `TCPConnector` has.
      options: of every connector.
    """
    if arguments.unix is not None:
        return UnixConnector(arguments.unix, ssl=trusted, **options)
    if isinstance(way, ProxyChoice):
        way = () if way.proxy is None else (way.proxy,)
    return TCPConnector(ssl=trusted, proxy=way, **tcp_options, **options)


def count(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def seconds(text: str) -> float:
    """A positive number of seconds, for argparse."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return value


def run(main: Any, *arguments: Any) -> Any:
    """`trio.run`, with an interrupt coming out bare whatever nursery it went through."""
    try:
        return trio.run(main, *arguments)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        raise
