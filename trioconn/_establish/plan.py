"""From a target and every option to a `Route`: the one table of combinations.

Theory of operation
-------------------
Options that some path forgot have been the commonest hole in connectors: a pin not looked at behind a proxy, TLS left
out for ``wss`` over SOCKS, a local address ignored. Here every option meets every path once, in `plan`: what the path
uses goes into the route, and what it cannot honour is an `InvalidTargetError`. Nothing else in the package knows a
scheme or decides about TLS.

An option for TLS on a plain scheme is harmless when it comes from the connector, which serves both kinds of targets,
and then it is not in the route. A pin or a server name given to that very call was meant for that very target, so it
is an error.

===========================  ==========  ===========  ==================  =====================  =====================
scheme                       direct      Unix, pipe   last proxy http(s)  last proxy socks       default port
===========================  ==========  ===========  ==================  =====================  =====================
http                         plain       plain        forwarded           tunnelled              80
https                        TLS         TLS          CONNECT, TLS        tunnelled, TLS         443
ws                           plain       plain        CONNECT             tunnelled              80
wss                          TLS         TLS          CONNECT, TLS        tunnelled, TLS         443
tcp                          plain       plain        CONNECT             tunnelled              none: must be given
tls                          TLS         TLS          CONNECT, TLS        tunnelled, TLS         none: must be given
unix, npipe                  --          plain        --                  --                     no port
a subclass's own             plain       --           --                  --                     none: must be given
===========================  ==========  ===========  ==================  =====================  =====================

Every proxy of a chain but the last is tunnelled through, and an https proxy is spoken to in TLS of its own.
"""

from __future__ import annotations

import os
import ssl as ssl_module
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address
from sys import intern
from typing import Any, Literal, TypeAlias, cast

from .._errors import AddressDeniedError, InvalidTargetError, shown
from .._names import URL, Host, check_port, parse_host, split_url
from .._proxy import Headers, Proxy
from .._route import (
    TARGET,
    ContextTrust,
    CustomHop,
    DefaultTrust,
    Endpoint,
    Fingerprint,
    FirstHop,
    Isolation,
    PipeHop,
    Route,
    Secret,
    Step,
    TCPHop,
    TLSStep,
    Trust,
    UnixHop,
    check_isolation,
)
from .environment import choose

SSLOption: TypeAlias = bool | ssl_module.SSLContext | Fingerprint
"""How a peer is trusted: verified, not verified, by a context, or by a pin."""

ProxyOption: TypeAlias = "str | Proxy | Sequence[str | Proxy]"
"""One proxy or a chain of them, the first the one that is dialled. An empty sequence is a direct connection."""

AddressPolicy: TypeAlias = Callable[[str, IPv4Address | IPv6Address], bool]

Kind: TypeAlias = Literal["tcp", "unix", "npipe", "custom"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a scheme means: TLS or not, its port, and whether an HTTP proxy forwards it."""

    tls: bool
    port: int | None
    forwardable: bool = False
    needs_host: bool = True


SCHEMES: Mapping[str, Scheme] = {
    "http": Scheme(tls=False, port=80, forwardable=True),
    "https": Scheme(tls=True, port=443),
    "ws": Scheme(tls=False, port=80),
    "wss": Scheme(tls=True, port=443),
    "tcp": Scheme(tls=False, port=None),
    "tls": Scheme(tls=True, port=None),
    "unix": Scheme(tls=False, port=None, needs_host=False),
    "npipe": Scheme(tls=False, port=None, needs_host=False),
}
"""The one place where a scheme becomes TLS or not."""
_OTHER = Scheme(tls=False, port=None)  # of a subclass's own: what it means is known to its create_stream

NETWORK_SCHEMES = frozenset({"http", "https", "ws", "wss", "tcp", "tls"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a connector was made with, as far as planning needs it."""

    kind: Kind
    schemes: frozenset[str]
    maker: object
    ssl: SSLOption = True
    proxies: tuple[Proxy, ...] | None = None
    trust_env: bool = False
    local_addr: tuple[str, int] | None = None
    path: str | None = None
    judge: Callable[[str, str], bool] | None = None  # the address policy, on a host and the text of an address
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was given to one call of ``connect`` or ``route``. None: as the connector."""

    proxy: ProxyOption | None = None
    proxy_headers: Headers | None = None
    ssl: SSLOption | None = None
    server_hostname: str | None = None
    alpn_protocols: Sequence[str] | None = None
    local_addr: tuple[str, int] | None = None
    isolation: Isolation | None = None


NO_OPTIONS = Options()


def plan(settings: Settings, target: object, options: Options = NO_OPTIONS) -> Route:
    """The route to `target`. Pure: nothing is looked up and nothing opened.

    Args:
      target: a URL, or anything with ``.scheme``, ``.host`` and ``.port``.

    Raises:
      InvalidTargetError: the target is malformed, or an option cannot be honoured on the way to it.
      TypeError: an option is of the wrong type.
      AddressDeniedError: there is an address policy, and a proxy would resolve the name out of its sight.
    """
    scheme_name, host, given_port = _target(settings, target)
    scheme = SCHEMES.get(scheme_name, _OTHER)
    port = scheme.port if given_port is None else check_port(given_port)
    if port is None and settings.kind in ("tcp", "custom"):
        raise InvalidTargetError(f"{scheme_name}:// needs a port, as in {scheme_name}://{host}:9000")
    proxies = _proxies(settings, options, scheme_name, host, port)
    final = _tls(settings, options, scheme, host)
    forwarded = bool(proxies) and proxies[-1].is_http and scheme.forwardable
    _check_policy(settings, proxies, host, forwarded=forwarded)
    local_addr = _local_addr(settings, options)

    first: FirstHop
    endpoint: Endpoint
    if settings.kind == "unix" or settings.kind == "npipe":
        assert settings.path is not None
        first = UnixHop(settings.path) if settings.kind == "unix" else PipeHop(settings.path)
        endpoint = settings.path
    else:
        assert host is not None and port is not None
        entry, entry_port = (proxies[0].host, proxies[0].port) if proxies else (host, port)
        first = TCPHop(entry, entry_port, local_addr) if settings.kind == "tcp" else CustomHop(host, port)
        endpoint = (_bare(host), port, scheme.tls)
    steps = [*_tunnels(proxies, host, port, forwarded=forwarded), *([] if final is None else [final])]
    request_headers = None
    if forwarded:
        # The connection is the proxy's: whatever origin is behind it, the key is the same.
        last = proxies[-1]
        host, port = last.host, last.port
        endpoint = (_bare(host), port, last.scheme == "https")
        request_headers = Secret(last.request_headers)
    return Route(
        scheme=scheme_name,
        host=None if host is None else _bare(host),
        port=port,
        is_ssl=scheme.tls,
        endpoint=endpoint,
        server_name=None if final is None else final.server_name,
        alpn_protocols=() if final is None else final.alpn,
        proxies=tuple(proxy.hop for proxy in proxies),
        local_addr=local_addr,
        path=settings.path,
        isolation=check_isolation(options.isolation),
        forwarded=forwarded,
        first=first,
        steps=tuple(steps),
        request_headers=request_headers,
        maker=settings.maker,
    )


def _bare(host: Host) -> str:
    # The final dot of an absolute name matters to DNS and to the key, where the first hop has it, and to nothing else.
    return host.name if host.zone is None else f"{host.name}%{host.zone}"


# The target


def _target(settings: Settings, target: object) -> tuple[str, Host | None, object]:
    if isinstance(target, str):
        url = split_url(target)
        if url.userinfo is not None:
            raise InvalidTargetError(
                f"{url.scheme}://{url.host}: a target has no user or password; they belong into the request's headers"
            )
        scheme, host, port = url.scheme, url.host, cast("object", url.port)
        if not SCHEMES.get(scheme, _OTHER).needs_host:
            _check_own_path(settings, url)
    else:
        try:
            thing = cast("Any", target)
            raw_scheme, raw_host, port = thing.scheme, thing.host, thing.port
        except AttributeError:
            raise TypeError(
                "a target is a URL, a Route of this connector, or has .scheme, .host and .port; "
                f"this is a {type(target).__name__}"
            ) from None
        if not isinstance(raw_scheme, str):
            raise InvalidTargetError(f"scheme must be a str, not {type(raw_scheme).__name__}")
        scheme = raw_scheme.lower()
        host = None if raw_host is None or raw_host == "" else parse_host(raw_host)
    if scheme not in settings.schemes:
        raise InvalidTargetError(
            f"scheme {shown(scheme)!r} is not known to this connector: it takes {', '.join(sorted(settings.schemes))}"
        )
    if host is None and SCHEMES.get(scheme, _OTHER).needs_host:
        raise InvalidTargetError(f"{scheme}:// needs a host, as in {scheme}://example.org")
    return intern(scheme), host, port  # one of a few: not another copy in each route


def _check_own_path(settings: Settings, url: URL) -> None:
    # The connector has one path. A target that names another one was meant for another connector.
    if url.path not in ("", "/") and url.path != settings.path:
        raise InvalidTargetError(
            f"{shown(url.scheme)}: this connector goes to {settings.path!r}, not to {shown(url.path)!r}; "
            "make another connector for that path"
        )


# Proxies


def check_proxies(option: ProxyOption) -> tuple[Proxy, ...]:
    """A chain of proxies from whatever ``proxy=`` may be.

    Raises:
      InvalidTargetError: an element is no usable proxy.
      TypeError: it is neither a URL, a `Proxy`, nor a sequence of these.
    """
    if isinstance(option, str | Proxy):
        return (_proxy(option),)
    if not isinstance(cast("object", option), Sequence) or isinstance(option, bytes | bytearray):
        raise TypeError(f"proxy must be a URL, a Proxy or a sequence of these, not {type(option).__name__}")
    return tuple(_proxy(one) for one in option)


def _proxy(one: object) -> Proxy:
    if isinstance(one, Proxy):
        return one
    if isinstance(one, str):
        return Proxy(one)
    raise TypeError(f"a proxy is a URL or a Proxy, not a {type(one).__name__}")


def _proxies(
    settings: Settings, options: Options, scheme: str, host: Host | None, port: int | None
) -> tuple[Proxy, ...]:
    if settings.kind != "tcp":
        if options.proxy is not None and check_proxies(options.proxy):
            raise InvalidTargetError("only a TCPConnector goes through proxies: leave proxy= out")
        proxies: tuple[Proxy, ...] = ()
    elif options.proxy is not None:
        proxies = check_proxies(options.proxy)
    elif settings.proxies is not None:
        proxies = settings.proxies
    elif settings.trust_env:
        assert host is not None and port is not None
        chosen = choose(scheme, host, port, settings.environ).proxy
        proxies = () if chosen is None else (chosen,)
    else:
        proxies = ()
    if any(not proxy.is_http for proxy in proxies) and find_spec("socksio") is None:
        raise ImportError("SOCKS proxies need the extra socks: pip install trioconn[socks]")
    if options.proxy_headers is not None:
        if len(proxies) != 1 or not proxies[0].is_http:
            raise InvalidTargetError(
                f"proxy_headers needs exactly one HTTP proxy, here are {len(proxies)}: "
                "give headers= to the Proxy that is meant"
            )
        proxies = (proxies[0].with_headers(options.proxy_headers),)
    return proxies


def _tunnels(proxies: tuple[Proxy, ...], host: Host | None, port: int | None, *, forwarded: bool) -> Iterable[Step]:
    for number, proxy in enumerate(proxies):
        if proxy.scheme == "https":
            trust, pin = _trust(proxy.ssl)
            yield TLSStep(trust, proxy.server_hostname or proxy.host.server_name, (), pin, number)
        if number + 1 < len(proxies):
            behind = proxies[number + 1]
            yield proxy.step(behind.host, behind.port, number)
        elif not forwarded:
            assert host is not None and port is not None  # proxies are for TCP, and that has both
            yield proxy.step(host, port, number)


def _check_policy(settings: Settings, proxies: tuple[Proxy, ...], host: Host | None, *, forwarded: bool) -> None:
    if settings.judge is None or not proxies or host is None:
        return
    if host.address is None:
        if forwarded or proxies[-1].scheme != "socks5":
            raise AddressDeniedError(
                f"{host}: there is an address_policy, and {proxies[-1].hop} would resolve the name out of its sight; "
                "connect directly, or through socks5://, which resolves names here",
                stage="resolve",
            )
    elif not settings.judge(host.name, host.name):
        raise AddressDeniedError(f"{host}: the address_policy does not allow this address", stage="connect")


# TLS


def check_ssl(option: object, name: str = "ssl") -> SSLOption:
    """`option` if it may say how a peer is trusted.

    Raises:
      TypeError: it is something else. None, 0, "" and "false" are something else: they must not mean "off".
    """
    if option is True or option is False or isinstance(option, ssl_module.SSLContext | Fingerprint):
        return option
    raise TypeError(
        f"{name} must be True, False (TLS without verification), an ssl.SSLContext or a Fingerprint, "
        f"not {type(option).__name__}"
    )


def one_ssl_option(
    ssl: object, verify_ssl: bool | None, fingerprint: bytes | Fingerprint | None, ssl_context: object
) -> SSLOption:
    """The option meant by ``ssl`` and its older spellings.

    Raises:
      ValueError: more than one of them was given.
      TypeError: one is of the wrong type.
    """
    given = [
        name
        for name, is_given in (
            ("ssl", ssl is not True),
            ("verify_ssl", verify_ssl is not None),
            ("fingerprint", fingerprint is not None),
            ("ssl_context", ssl_context is not None),
        )
        if is_given
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
    if verify_ssl is not None:
        if not isinstance(cast("object", verify_ssl), bool):
            raise TypeError(f"verify_ssl must be a bool, not {type(verify_ssl).__name__}")
        return verify_ssl
    if fingerprint is not None:
        return fingerprint if isinstance(fingerprint, Fingerprint) else Fingerprint(fingerprint)
    if ssl_context is not None:
        if not isinstance(ssl_context, ssl_module.SSLContext):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not {type(ssl_context).__name__}")
        return ssl_context
    return check_ssl(ssl)


def _tls(settings: Settings, options: Options, scheme: Scheme, host: Host | None) -> TLSStep | None:
    option = settings.ssl if options.ssl is None else check_ssl(options.ssl)
    alpn = _alpn(options.alpn_protocols)
    if not scheme.tls:
        pinned = isinstance(options.ssl, Fingerprint)
        if pinned or options.server_hostname is not None:
            what = "a Fingerprint" if pinned else "server_hostname"
            raise InvalidTargetError(f"{what} cannot be honoured: the scheme of the target has no TLS")
        return None
    trust, pin = _trust(option)
    if alpn and isinstance(trust, ContextTrust):
        raise TypeError("alpn_protocols is for contexts that we make: call set_alpn_protocols on your SSLContext")
    if options.server_hostname is not None:
        host = parse_host(options.server_hostname)
    assert host is not None  # every scheme with TLS needs a host
    return TLSStep(trust, host.server_name, alpn, pin, TARGET)


def _trust(option: SSLOption) -> tuple[Trust, bytes | None]:
    if isinstance(option, Fingerprint):
        context = option.context
        return (DefaultTrust(verified=False) if context is None else _context_trust(context)), option.digest
    if isinstance(option, ssl_module.SSLContext):
        return _context_trust(option), None
    return DefaultTrust(verified=option), None


def _context_trust(context: ssl_module.SSLContext) -> ContextTrust:
    if context.protocol is ssl_module.PROTOCOL_TLS_SERVER:
        raise InvalidTargetError(
            "this SSLContext is for servers: make one with ssl.create_default_context(), without Purpose.CLIENT_AUTH"
        )
    return ContextTrust.of(context)


def _alpn(protocols: Sequence[str] | None) -> tuple[str, ...]:
    if protocols is None:
        return ()
    if isinstance(cast("object", protocols), str | bytes):
        raise TypeError("alpn_protocols must be a sequence of names, as in ['h2', 'http/1.1'], not a single string")
    names = tuple(protocols)
    for name in names:
        if not isinstance(cast("object", name), str):
            raise TypeError(f"the names in alpn_protocols must be str, not {type(name).__name__}")
        if not (name.isascii() and 1 <= len(name) <= 255):
            raise InvalidTargetError(
                f"ALPN protocol {shown(name)!r}: 1 to 255 ASCII characters are possible (RFC 7301)"
            )
    return names


# The near end


def check_local_addr(value: object) -> tuple[str, int]:
    """`value` as a pair of an IP address and a port; port 0 lets the system choose.

    Raises:
      TypeError: it is no pair of str and int.
      InvalidTargetError: the host is no IP address, or the port is out of range.
    """
    pair = tuple(cast("Sequence[object]", value)) if isinstance(value, tuple | list) else ()
    if len(pair) != 2:
        raise TypeError(f"local_addr must be a pair (IP address, port), not {value!s:.50}")
    text, port = pair
    host = parse_host(text)
    if host.address is None:
        raise InvalidTargetError(f"local_addr: {host} must be an IP address of this machine, not a name")
    return host.dial_name, 0 if port == 0 and type(port) is int else check_port(port)


def _local_addr(settings: Settings, options: Options) -> tuple[str, int] | None:
    if options.local_addr is None:
        return settings.local_addr
    if settings.kind != "tcp":
        raise InvalidTargetError("local_addr is for TCP: this connector has no local address to bind")
    return check_local_addr(options.local_addr)
