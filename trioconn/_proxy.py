"""What a caller says about a proxy, checked once and kept as bytes.

A `Proxy` is a value: two that compare equal lead to the same connections. Everything in it is checked when it is made,
so that nothing which would break a request line, a header or a SOCKS message in two reaches the code that writes them
(CVE-2026-1502, CVE-2014-8150). Its repr shows scheme, host and port and whether there is a login, never the login: not
the user's name either, since many providers put the whole key there.

Default ports are those that httpx and requests use: 80, 443 and 1080. curl takes 1080 for http too, which is a remnant
of its first proxies; who means it can write it.
"""

from __future__ import annotations

import copy
import re
import ssl as _ssl
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args
from urllib.parse import unquote_to_bytes

from ._errors import InvalidTargetError, shown
from ._names import parse_host, split_url
from ._route import ConnectStep, Fingerprint, Hop, Secret, SocksStep

if TYPE_CHECKING:
    from ._names import Host
    from ._route import HeaderPairs

ProxyScheme: TypeAlias = Literal["http", "https", "socks4a", "socks5", "socks5h"]
"""The kinds of proxies. `socks5` resolves names here, `socks5h` and `socks4a` let the proxy do it."""

HeaderText: TypeAlias = "str | bytes"
Headers: TypeAlias = "Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[HeaderText, HeaderText]]"
"""Headers as callers give them: a mapping, or pairs. Text is encoded as UTF-8."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
_SCHEMES: Final = get_args(ProxyScheme)
_REFUSED_SCHEMES: Final = {
    "socks": "write socks5h (the proxy resolves names) or socks5",
    "socks4": "SOCKS 4 cannot carry names; write socks4a",
}
_NAMES_BY_US: Final = {b"host", b"content-length", b"transfer-encoding"}
_LONGEST_IN_SOCKS: Final = 255  # one byte holds the length: RFC 1928 section 4, RFC 1929 section 2
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Visible characters and bytes above ASCII, with blanks and tabs between them only: RFC 9110 section 5.5.
_FIELD_VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Proxy:
    """A proxy: where it is, who we are to it, and how it is trusted.

    Args:
      url: ``scheme://[user[:password]@]host[:port]``, with nothing behind but a lone slash. Schemes: ``http`` (port 80
        unless given), ``https`` (443), ``socks4a``, ``socks5``, ``socks5h`` (1080). User and password are
        percent-decoded once, as UTF-8; a user without a password has an empty one.
      auth: (user, password), instead of those in the URL. HTTP proxies get them as Basic (RFC 7617, in UTF-8) with the
        first request, SOCKS 5 proxies by RFC 1929, SOCKS 4a proxies the user alone.
      headers: what the proxy gets with each request that is meant for it, as a mapping or as pairs of str or bytes;
        HTTP proxies only. The target never sees them.
      ssl: how an ``https`` proxy is verified: True, False (encrypted, not verified), an `ssl.SSLContext` or a
        `Fingerprint`. What the target is trusted by has no influence on it.
      server_hostname: the name that the certificate of an ``https`` proxy must have, if not that of the URL.

    Attributes:
      scheme: one of the five.
      host: the proxy's host in canonical form.
      port: its port.
      auth: (user, password) or None. No login is unequal to an empty one.
      headers: pairs of bytes in the order given, the login not among them.
      ssl: as given.
      server_hostname: in canonical form, or None.

    Raises:
      InvalidTargetError: something cannot be honoured. The message shows neither login nor header values.
      TypeError: an argument is of the wrong type.
    """

    scheme: ProxyScheme
    host: Host
    port: int
    auth: tuple[str, str] | None
    headers: HeaderPairs
    ssl: bool | _ssl.SSLContext | Fingerprint
    server_hostname: str | None

    def __init__(
        self,
        url: str,
        *,
        auth: tuple[str, str] | None = None,
        headers: Headers = (),
        ssl: bool | _ssl.SSLContext | Fingerprint = True,
        server_hostname: str | None = None,
    ) -> None:
        scheme, host, port, login = _split(url)
        if auth is not None:
            if login is not None:
                raise InvalidTargetError(f"proxy {host}: a login stands in the URL and in auth; give it once")
            login = _check_auth(auth)
        _check_ssl(ssl)
        if scheme != "https" and (ssl is not True or server_hostname is not None):
            what = "ssl" if ssl is not True else "server_hostname"
            raise InvalidTargetError(f"{what} is for https proxies; {scheme}://{host.authority(port)} has no TLS")
        if login is not None:
            _check_login(login, scheme)
        pairs = header_pairs(headers)
        _check_headers(pairs, Hop(scheme, host.dial_name, port), login)
        for name, value in (
            ("scheme", scheme),
            ("host", host),
            ("port", port),
            ("auth", login),
            ("headers", pairs),
            ("ssl", ssl),
            ("server_hostname", None if server_hostname is None else parse_host(server_hostname).server_name),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        more = (
            (", auth=…" if self.auth is not None else "")
            + (", headers=…" if self.headers else "")
            + (f", ssl={self.ssl!r}" if self.ssl is not True else "")
            + (f", server_hostname={self.server_hostname!r}" if self.server_hostname is not None else "")
        )
        return f"Proxy('{self.hop}'{more})"

    @property
    def is_http(self) -> bool:
        """Whether it is asked with CONNECT and can forward requests."""
        return self.scheme in {"http", "https"}

    @property
    def hop(self) -> Hop:
        """The proxy without its secrets."""
        return Hop(self.scheme, self.host.dial_name, self.port)

    @property
    def authorization(self) -> bytes | None:
        """The value of ``Proxy-Authorization`` that the login makes, or None without one."""
        if self.auth is None or not self.is_http:
            return None
        user, password = self.auth
        return b"Basic " + b64encode(f"{user}:{password}".encode())

    @property
    def request_headers(self) -> HeaderPairs:
        """All that each request to the proxy has to carry for it: the login, if any, then `headers`."""
        authorization = self.authorization
        return self.headers if authorization is None else ((b"Proxy-Authorization", authorization), *self.headers)

    def with_headers(self, headers: Headers) -> Proxy:
        """The same proxy with more headers behind its own.

        Raises:
          InvalidTargetError: it is a SOCKS proxy, or a header cannot be sent.
        """
        more = header_pairs(headers)
        _check_headers(more, self.hop, self.auth)
        other = copy.copy(self)
        object.__setattr__(other, "headers", self.headers + more)
        return other

    def step(self, host: Host, port: int, hop: int) -> ConnectStep | SocksStep:
        """The step that asks this proxy, number `hop` of the chain, for a tunnel to `host`:`port`.

        Raises:
          InvalidTargetError: its protocol cannot say that host.
        """
        if host.zone is not None:
            raise InvalidTargetError(
                f"{host} through {self.hop}: a zone means nothing on another machine; leave it out"
            )
        if self.scheme == "socks4a" and isinstance(host.address, IPv6Address):
            raise InvalidTargetError(f"{host} through {self.hop}: SOCKS 4a cannot carry IPv6 addresses; use socks5h")
        auth = None if self.auth is None else Secret(self.auth)
        if self.scheme == "http" or self.scheme == "https":
            return ConnectStep(host, port, auth, Secret(self.request_headers), hop)
        return SocksStep(self.scheme, host, port, auth, hop)


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """Which proxy the environment asks for, and why.

    Attributes:
      proxy: the proxy, or None for a direct connection.
      reason: one sentence that names the variable and the rule that decided. It holds no credentials.
    """

    proxy: Proxy | None
    reason: str


def header_pairs(headers: Headers) -> HeaderPairs:
    """`headers` as pairs of bytes that may be sent to a proxy.

    Raises:
      InvalidTargetError: a name is no token, a value has control characters or outer blanks, or the header is one of
        those that frame the request and are made here (Host, Content-Length, Transfer-Encoding).
      TypeError: it is neither a mapping nor pairs of str or bytes.
    """
    given = cast("object", headers)
    if isinstance(given, Mapping):
        return tuple(map(_header_pair, cast("Mapping[object, object]", given).items()))
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(f"headers must be a mapping or pairs, not {type(given).__name__}")
    return tuple(map(_header_pair, cast("Iterable[object]", given)))


def _header_pair(pair: object) -> tuple[bytes, bytes]:
    if not isinstance(pair, tuple | list) or len(cast("tuple[object, ...]", pair)) != 2:
        raise TypeError("each header must be a pair of name and value")
    name, value = (_header_bytes(part) for part in cast("tuple[object, object]", pair))
    if not _TOKEN.fullmatch(name):
        # Not shown: a whole line "Name: value" given as the name is the mistake most often made.
        raise InvalidTargetError(
            "a name among the proxy headers is no token (letters, digits and some of !#$%&'*+-.^_`|~)"
        )
    if name.lower() in _NAMES_BY_US:
        raise InvalidTargetError(f"{shown(name)} is not for callers to set: it is made with the request, or frames it")
    if not _FIELD_VALUE.fullmatch(value):
        raise InvalidTargetError(f"the value of proxy header {shown(name)} has control characters or outer blanks")
    return name, value


def _header_bytes(part: object) -> bytes:
    if isinstance(part, str):
        if _SURROGATE.search(part):
            raise InvalidTargetError("a proxy header has a lone surrogate, which UTF-8 cannot express")
        return part.encode()
    if isinstance(part, bytes):
        return part
    raise TypeError(f"names and values of headers must be str or bytes, not {type(part).__name__}")


def _split(url: object) -> tuple[ProxyScheme, Host, int, tuple[str, str] | None]:
    if not isinstance(url, str):
        raise TypeError(f"the URL of a proxy must be a str, not {type(url).__name__}")
    parts = split_url(url)
    # "user:password@host:1" splits into a scheme "user"; hence nothing is shown before there is a host.
    if parts.host is None:
        raise InvalidTargetError("a proxy is given as scheme://host:port, for example http://proxy.example.org:3128")
    if parts.scheme not in _SCHEMES:
        hint = _REFUSED_SCHEMES.get(parts.scheme, f"known are {', '.join(_SCHEMES)}")
        raise InvalidTargetError(f"proxy scheme '{shown(parts.scheme)}': {hint}")
    scheme = cast("ProxyScheme", parts.scheme)
    port = parts.port or _DEFAULT_PORTS[scheme]
    if parts.path not in {"", "/"} or parts.query is not None or parts.fragment is not None:
        raise InvalidTargetError(
            # Not shown: with an unescaped "/" in the password, what looks like the host is the user.
            "path, query and fragment mean nothing to a proxy: end its URL with the port (and percent-encode '/', '?' "
            "and '#' in a password)"
        )
    return scheme, parts.host, port, None if parts.userinfo is None else _decode_userinfo(parts.userinfo)


def _decode_userinfo(userinfo: str) -> tuple[str, str]:
    user, _, password = userinfo.partition(":")
    if _BAD_ESCAPE.search(userinfo):
        raise InvalidTargetError("the login in a proxy URL has a '%' that begins no escape; write %25")
    try:
        return unquote_to_bytes(user).decode(), unquote_to_bytes(password).decode()
    except UnicodeError:
        pass  # the error holds the login: it must be neither cause nor context of ours
    raise InvalidTargetError("the login in a proxy URL is not UTF-8 when decoded")


def _check_ssl(ssl: object) -> None:
    if not isinstance(ssl, bool | _ssl.SSLContext | Fingerprint):
        raise TypeError(f"ssl of a proxy must be a bool, an SSLContext or a Fingerprint, not {type(ssl).__name__}")


def _check_auth(auth: object) -> tuple[str, str]:
    pair = cast("tuple[object, ...]", auth)
    if not isinstance(auth, tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise TypeError("auth must be a tuple (user, password) of two str")
    return cast("tuple[str, str]", auth)


def _check_login(login: tuple[str, str], scheme: ProxyScheme) -> None:
    user, password = login
    # RFC 7617 section 2 forbids both: a colon would move the border to the password. SOCKS tells lengths instead.
    if ":" in user and scheme in {"http", "https"}:
        raise InvalidTargetError("the user of a proxy login has a ':', which Basic authentication cannot express")
    if _CONTROL.search(user) or _CONTROL.search(password):
        raise InvalidTargetError("user or password of a proxy login has control characters")
    if _SURROGATE.search(user) or _SURROGATE.search(password):
        raise InvalidTargetError("user or password of a proxy login has a lone surrogate, which UTF-8 cannot express")
    if scheme in {"http", "https"}:
        return
    if scheme == "socks4a" and password:
        raise InvalidTargetError("SOCKS 4a knows no password: leave it out, or write socks5h")
    parts = {"user": user} if scheme == "socks4a" else {"user": user, "password": password}
    for what, part in parts.items():
        length = len(part.encode())
        if not 1 <= length <= _LONGEST_IN_SOCKS:
            raise InvalidTargetError(
                f"{what} of a SOCKS proxy: 1 to {_LONGEST_IN_SOCKS} bytes are possible, here are {length}"
            )


def _check_headers(pairs: HeaderPairs, hop: Hop, login: tuple[str, str] | None) -> None:
    if pairs and hop.scheme not in {"http", "https"}:
        raise InvalidTargetError(f"headers are for HTTP proxies; SOCKS has none, so {hop} cannot get them")
    if login is not None and any(name.lower() == b"proxy-authorization" for name, _ in pairs):
        raise InvalidTargetError("Proxy-Authorization stands in headers, and there is a login as well; give one")
