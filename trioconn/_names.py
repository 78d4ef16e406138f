r"""Hosts, ports and URLs: one canonical form, made once.

Theory of operation
-------------------

The same name is used for DNS, SNI, verification, CONNECT, SOCKS, ``no_proxy`` and the pool key. Where two of these
see two spellings of it, one of them is checked and the other one is dialled; most of the advisories about names are of
this shape. So text becomes a `Host` at the border, and everything behind the border gets the `Host`.

The order of the checks matters. Length and characters come first, because they are cheap and because what follows is
not made for hostile text: IDNA was super-linear in long labels (CVE-2024-3651, CVE-2026-45409), the C resolver stops
at a NUL (``localhost\0.evil.test`` is 127.0.0.1 to it), and `ssl` takes server names with CR and LF. Then come IP
literals, in their one canonical spelling: ``getaddrinfo`` also takes ``127.1``, octal, hexadecimal and full-width
digits, which others read as names. As in the WHATWG URL standard, a name whose last label is a number is an IPv4
address or an error, never a name; this is asked again after IDNA, which maps full-width digits to ASCII.

ASCII labels of letters, digits, ``-`` and ``_`` are taken as they are, lower-cased: DNS has names that IDNA forbids
(``_dmarc``, ``r3---sn-x``). Other labels, and those that claim to be A-labels (``xn--``), must satisfy IDNA 2008 after
the mapping of UTS #46. IDNA 2003, which Python's own codec speaks, would send ``straße.test`` to another host.

URLs are split here rather than by `urllib.parse.urlsplit`, which deletes CR, LF and TAB and strips blanks before it
looks. Nothing is percent-decoded: a host with a ``%`` is an error unless it separates the zone of an IPv6 literal in
brackets. A backslash before the query is an error: browsers read it as a slash, RFC 3986 as part of the user's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import idna

from ._errors import InvalidTargetError, shown

_MOST_OCTETS = 253  # of a name in text form, without the final dot: RFC 1035 section 2.3.4
_MOST_IN_LABEL = 63
_MOST_TEXT = _MOST_OCTETS + 1
_DOTS = re.compile("[.\u3002\uff0e\uff61]")
_LABEL = re.compile(r"[a-z0-9_-]+")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}")
"""What the zone of an IPv6 address may look like: an interface's name or number."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
# C0, DEL and C1, and everything that Unicode calls a space. In a URL and in a host.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\s]")
_URL = re.compile(r"([^:/?#]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_UP_TO_PATH = re.compile(r"[^/?#\\]*(?://[^/?#\\]*)?")


@dataclass(frozen=True, slots=True)
class Host:
    """A host in canonical form. Equal hosts are the same host to DNS, to TLS and to the pool.

    Attributes:
      name: lower-case A-labels without the final dot, or the text of an IP address without brackets and zone.
      absolute: whether the name was written with a final dot: part of the DNS question and of keys, of nothing else.
      address: the address if the host is an IP literal, else None.
      zone: the zone of an IPv6 literal, exactly as written, or None.
    """

    name: str
    absolute: bool = False
    address: IPv4Address | IPv6Address | None = None
    zone: str | None = None

    @property
    def dns_name(self) -> str:
        """The name as a DNS question: with the final dot if it is absolute."""
        return self.name + "." if self.absolute else self.name

    @property
    def server_name(self) -> str:
        """The name as SNI and certificates have it: no final dot, no zone."""
        return self.name

    @property
    def dial_name(self) -> str:
        """What the system is asked for: the literal with its zone, or the DNS question."""
        return f"{self.name}%{self.zone}" if self.zone is not None else self.dns_name

    def authority(self, port: int | None = None) -> str:
        """The host as in a URL, a ``Host`` field or a CONNECT request, with the port if one is given.

        IPv6 literals get brackets. The zone is left out: it means nothing on another machine (RFC 6874 section 4).
        """
        host = f"[{self.name}]" if isinstance(self.address, IPv6Address) else self.name
        return host if port is None else f"{host}:{port}"

    def __str__(self) -> str:
        return self.dial_name


@dataclass(frozen=True, slots=True)
class URL:
    """The parts of a URL. The repr hides what may be secret.

    Attributes:
      scheme: in lower case.
      userinfo: the raw text before the ``@``, percent-encoding included, or None without an ``@``.
      host: None if the URL has no authority (``unix:/run/x``) or an empty one (``unix:///run/x``).
      port: None if absent.
      path: raw.
      query: raw, or None if absent.
      fragment: raw, or None if absent.
    """

    scheme: str
    userinfo: str | None = field(repr=False)
    host: Host | None
    port: int | None
    path: str
    query: str | None = field(repr=False)
    fragment: str | None = field(repr=False)


def parse_host(text: object, *, bracketed: bool = False) -> Host:
    """The canonical form of `text`: a name or an IP literal.

    An IPv6 literal stands here without brackets, with or without a zone.

    Args:
      text: a str, as somebody wrote it, without port.
      bracketed: whether it stood in brackets: only an IPv6 literal will do.

    Raises:
      InvalidTargetError: it is neither a name nor a literal in canonical spelling.
    """
    if not isinstance(text, str):
        raise InvalidTargetError(f"a host must be a str, not {type(text).__name__}: give its name or its IP address")
    return _parse_host(text, bracketed, f"host '{shown(text)}'")


def check_port(port: object) -> int:
    """`port` as an int from 1 to 65535.

    Raises:
      InvalidTargetError: it is something else. ``True``, ``"443"`` and ``443.0`` are something else, too.
    """
    if not isinstance(port, int) or isinstance(port, bool):
        raise InvalidTargetError(f"port {shown(repr(port))}: must be an int from 1 to 65535, not {type(port).__name__}")
    if not 1 <= port <= 65535:
        # A huge int is not formatted: str() of it is slow, and since Python 3.11 an error.
        raise InvalidTargetError(f"port {port if abs(port) < 10**9 else 'out of all bounds'}: must be from 1 to 65535")
    return int(port)


def split_url(text: object) -> URL:
    """Split `text` and make its host canonical.

    Raises:
      InvalidTargetError: it has control characters, blanks, a backslash before the query, no scheme, a host that
        `parse_host` refuses, or a bad port. The message never shows the user's name and password.
    """
    if not isinstance(text, str):
        raise InvalidTargetError(f"a URL must be a str, not {type(text).__name__}")
    what = f"URL '{_without_secrets(text)}'"
    if _CONTROL.search(text):
        raise InvalidTargetError(f"{what}: has control characters or blanks; percent-encode them or take them out")
    match = _URL.fullmatch(text)
    if match is None or not _SCHEME.fullmatch(match[1]):
        raise InvalidTargetError(f"{what}: needs a scheme, as in https://example.org")
    scheme, authority, path, query, fragment = match.groups()
    if "\\" in path or (authority is not None and "\\" in authority):
        raise InvalidTargetError(f"{what}: has a backslash, which some read as a slash; write / or %5C")
    userinfo = host = port = None
    if authority:
        before, at, rest = authority.rpartition("@")
        userinfo = before if at else None
        host, port = _split_host_and_port(rest, what)
    return URL(scheme.lower(), userinfo, host, port, path, query, fragment)


def _without_secrets(text: str) -> str:
    # A password may hold an unescaped "/", and then what looks like host and port is a part of it. Hence the last "@"
    # of the whole text counts, not the authority's. Path and query are not shown either: they hold tokens.
    secret, at, rest = text.rpartition("@")
    start = ""
    if at:
        scheme = _SCHEME.match(secret)
        start = f"{scheme[0]}://…@" if scheme and secret.startswith("://", scheme.end()) else "…@"
    harmless = _UP_TO_PATH.match(rest)
    return start + shown(harmless[0] if harmless else "")


def _split_host_and_port(text: str, what: str) -> tuple[Host, int | None]:
    bracketed = text.startswith("[")
    if bracketed:
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidTargetError(f"{what}: brackets must hold the whole IPv6 address, as in [::1]:443")
        digits = rest[1:]
    else:
        name, _, digits = text.partition(":")
        if ":" in digits:
            raise InvalidTargetError(f"{what}: an IPv6 address needs brackets, as in [::1]:443")
    host = _parse_host(name, bracketed, what)
    if not digits:  # "http://a.test:/" has the default port: RFC 3986 section 3.2.3
        return host, None
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise InvalidTargetError(f"{what}: the port must be a number from 1 to 65535")
    return host, int(digits)


def _parse_host(text: str, bracketed: bool, what: str) -> Host:
    if len(text) > _MOST_TEXT:
        raise InvalidTargetError(f"{what}: host names have at most {_MOST_OCTETS} characters")
    if not text:
        raise InvalidTargetError(f"{what}: the host is empty")
    if _CONTROL.search(text):
        raise InvalidTargetError(f"{what}: the host has control characters or blanks")
    if bracketed or ":" in text:
        return _parse_ipv6(text, what)
    labels = _DOTS.split(text)
    absolute = len(labels) > 1 and not labels[-1]
    if absolute:
        del labels[-1]
    if not all(0 < len(label) <= _MOST_IN_LABEL for label in labels):
        raise InvalidTargetError(f"{what}: the labels between the dots must have 1 to {_MOST_IN_LABEL} characters")
    name = ".".join([_a_label(label, what) for label in labels])
    if len(name) > _MOST_OCTETS:
        raise InvalidTargetError(f"{what}: host names have at most {_MOST_OCTETS} characters, also after IDNA")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        if name != text:
            raise InvalidTargetError(f"{what}: an IPv4 address is written in ASCII digits, with no dot at its end")
        return _parse_ipv4(name, what)
    return Host(name, absolute)


def _a_label(label: str, what: str) -> str:
    if label.isascii():
        lower = label.lower()
        if not _LABEL.fullmatch(lower):
            raise InvalidTargetError(f"{what}: host names consist of letters, digits, '-', '_' and dots")
        if not lower.startswith("xn--"):
            return lower
    try:
        # std3_rules: what UTS #46 maps to ASCII (full-width letters, and the full-width "/") is held to letters,
        # digits and hyphens.
        encoded = idna.encode(label, uts46=True, std3_rules=True).decode("ascii")
    except UnicodeError as exc:  # idna.IDNAError is one
        raise InvalidTargetError(
            f"{what}: {shown(label)} is not a valid label of IDNA 2008 ({shown(str(exc))})"
        ) from exc
    if not _LABEL.fullmatch(encoded):
        raise InvalidTargetError(f"{what}: {shown(label)} stands for more than one label")
    return encoded


def _parse_ipv4(text: str, what: str) -> Host:
    try:
        address = IPv4Address(text)
    except AddressValueError as exc:
        raise InvalidTargetError(
            f"{what}: ends in a number but is not an IPv4 address; write four decimal numbers, as in 127.0.0.1"
        ) from exc
    return Host(str(address), address=address)


def _parse_ipv6(text: str, what: str) -> Host:
    literal, percent, zone = text.partition("%")
    if percent and not ZONE.fullmatch(zone):
        raise InvalidTargetError(f"{what}: the zone of an IPv6 address is a name such as eth0 or a number")
    try:
        address = IPv6Address(literal)
    except AddressValueError as exc:
        raise InvalidTargetError(
            f"{what}: not an IPv6 address (brackets hold nothing else, and a port is given apart from the host)"
        ) from exc
    return Host(address_text(address), address=address, zone=zone or None)


def address_text(address: IPv4Address | IPv6Address) -> str:
    """The canonical text of an address, the same in all versions of Python.

    IPv4-mapped ones are written with dots (RFC 5952 section 5), which Python does only since 3.13. The zone is left
    out.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return f"::ffff:{address.ipv4_mapped}"
        return str(address).partition("%")[0]
    return str(address)
