"""``trioconn doctor [URL]``: what of this machine concerns connections, to be pasted into a bug report.

Nothing is connected to. Names are looked up only if a URL is given; routes are asked for by connecting datagram
sockets, which sends nothing. Logins never appear: of a proxy only scheme, host and port are shown.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

import trio

from .. import InvalidTargetError, Proxy, SystemResolver, proxy_for
from .._errors import shown
from .._names import split_url
from .options import run
from .terminal import Look

_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "OPENSSL_CONF")
_REQUIRED = ("trioconn", "trio", "idna", "h11")
_OPTIONAL = (
    *("socksio", "dnspython", "trustme", "rich", "cryptography", "httpx2", "httpcore2", "httpx", "anyio"),
    *("opentelemetry-api", "trio-asyncio", "aiohttp"),
)
_ROUTES = (("IPv6", socket.AF_INET6, "2001:db8::1"), ("IPv4", socket.AF_INET, "192.0.2.1"))  # of RFC 3849 and RFC 5737
_ASKED_WITHOUT_URL = ("http://example.org", "https://example.org")
_LOOKUP_TIMEOUT = 5.0  # seconds, for each family
_MARGIN = 14
_MOST_ADDRESSES = 4

Row = tuple[str, str]


def add_doctor(make: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the parser of this command with `make`, the ``add_parser`` of a parser of commands."""
    parser = make(
        "doctor",
        help="what of this machine concerns connections, for a bug report",
        description="Shows proxies, certificate authorities, routes, the resolver and versions. Connects to nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="the target in question")


def doctor(arguments: argparse.Namespace, environ: Mapping[str, str] | None = None) -> int:
    """Run the command.

    Raises:
      ValueError: the URL is no target.
    """
    variables = dict(os.environ if environ is None else environ)
    url: str | None = arguments.url
    look = Look.of(sys.stdout)
    _show(look, "versions", versions())
    _show(look, "proxies", proxies(variables, url))
    _show(look, "certificates", certificates(variables))
    _show(look, "routes", routes())
    if url is not None:
        host = split_url(url).host
        if host is not None and host.address is None:
            _show(look, "resolver", iter(run(lookups, host.dns_name)))
    return 0


def _show(look: Look, title: str, rows: Iterator[Row]) -> None:
    print(look(title, "bold"))
    for name, text in rows:
        print(f"  {look(f'{name:<{_MARGIN}}', 'dim')} {look(text)}")


def versions() -> Iterator[Row]:
    """Of Python, the system, OpenSSL, what is required, and what is there of the rest."""
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()
    yield "OpenSSL", ssl.OPENSSL_VERSION
    yield "needed", ", ".join(f"{name} {_version(name) or 'missing'}" for name in _REQUIRED)
    there = [f"{name} {version}" for name in _OPTIONAL if (version := _version(name)) is not None]
    yield "optional", ", ".join(there) or "none"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def proxies(environ: Mapping[str, str], url: str | None) -> Iterator[Row]:
    """What the environment says, and which proxy it means for `url`, or for any http and https URL.

    Raises:
      InvalidTargetError: the URL is no target.
    """
    found = False
    for lower in _PROXY_VARIABLES:
        for name in (lower, lower.upper()):
            if name in environ:
                found = True
                yield name, shown(environ[name]) if lower == "no_proxy" else _without_login(environ[name])
    if "REQUEST_METHOD" in environ:
        yield "REQUEST_METHOD", "is set, as for a CGI program: HTTP_PROXY is ignored"
    if not found:
        yield "variables", "none is set"
    if url is not None:
        proxy_for(url, {})  # a malformed URL is the caller's error, a malformed variable a finding
    for asked in _ASKED_WITHOUT_URL if url is None else (url,):
        try:
            choice = proxy_for(asked, environ)
        except InvalidTargetError as error:
            yield "for", f"{asked}: {error}"
        else:
            yield "for", f"{asked}: {'direct' if choice.proxy is None else choice.proxy.hop}, because {choice.reason}"


def _without_login(value: str) -> str:
    if not value.strip():
        return "empty: no proxy"
    try:
        return str(Proxy(value if "://" in value else f"http://{value}").hop)
    except InvalidTargetError as error:
        return f"unusable: {error}"


def certificates(environ: Mapping[str, str]) -> Iterator[Row]:
    """Whose authorities are trusted by default, and how many there are."""
    paths = ssl.get_default_verify_paths()
    for name in _CERTIFICATE_VARIABLES:
        if name in environ:
            yield name, environ[name]
    yield "file", _existing(paths.cafile, environ.get("SSL_CERT_FILE", paths.openssl_cafile))
    yield "directory", _existing(paths.capath, environ.get("SSL_CERT_DIR", paths.openssl_capath))
    try:
        loaded = ssl.create_default_context().cert_store_stats()["x509_ca"]
    except OSError as error:
        yield "loaded", f"failed: {error}"
    else:
        later = " (a directory is read as it is needed)" if paths.capath else ""
        yield "loaded", f"{loaded} authorities{later}"


def _existing(path: str | None, asked: str) -> str:
    return path if path is not None else f"{asked} does not exist"


def routes() -> Iterator[Row]:
    """Whether there is a route for each family, by the address that this machine would send from."""
    for name, family, address in _ROUTES:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 53))
                yield name, f"there is one, from {probe.getsockname()[0]}"
        except OSError as error:
            yield name, f"none: {error.strerror or error}"


async def lookups(host: str) -> list[Row]:
    """How long the system's resolver takes for each family of `host`, and what it says."""
    rows: list[Row] = [("host", host)]
    resolver = SystemResolver()
    try:
        for name, family, _ in _ROUTES:
            began = trio.current_time()
            said = f"no answer within {_LOOKUP_TIMEOUT:g} s"
            with trio.move_on_after(_LOOKUP_TIMEOUT):
                try:
                    found = [result.address for result in await resolver.resolve(host, 0, family)]
                except OSError as error:
                    said = f"nothing: {error.strerror or error}"
                else:
                    more = f" and {len(found) - _MOST_ADDRESSES} more" if len(found) > _MOST_ADDRESSES else ""
                    said = ", ".join(found[:_MOST_ADDRESSES]) + more
            rows.append((name, f"{said} ({(trio.current_time() - began) * 1000:.0f} ms)"))
    finally:
        await resolver.aclose()
    return rows
