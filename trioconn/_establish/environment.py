"""Proxies from the environment: which one, and why.

Theory of operation
-------------------
No standard says what ``HTTP_PROXY`` and its like mean; these are the rules that curl, urllib, requests and Go share,
and where they differ, the choice:

* ``http_proxy`` is for http and ws, ``https_proxy`` for https and wss: the scheme of the *target*. ``all_proxy`` is for
  what these two do not name, and alone for tcp and tls.
* The lower-case name wins, also when it is empty (urllib); an empty variable names no proxy (all).
* ``HTTP_PROXY`` is ignored where ``REQUEST_METHOD`` is set: there a CGI server has made it out of a header ``Proxy:``
  that anybody can send (CVE-2016-5385, "httpoxy"). Names are compared exactly, on Windows too, where the system's
  look-up ignores case and would let it in again under the lower-case name.
* A value without a scheme is an http proxy.
* ``no_proxy`` is a list, separated by commas or blanks. An entry is ``*`` (everything), a name (it and all below it,
  with or without a leading dot: curl, urllib), ``*.name`` (only those below it: Go, httpx), an IP address, or a network
  as ``10.0.0.0/8``. All but ``*`` and networks may end in ``:port``, IPv6 addresses then in brackets.
* Entries for addresses are for targets given by address: nothing is resolved to decide this.
* An entry that cannot match any target (``<local>``, ``192.168.*``) matches none: its targets go through the proxy.
  An unusable proxy is an error, since ignoring it would send in the clear what was meant for the proxy.

Names are compared in canonical form, so case, IDNA and a trailing dot make no difference, and by whole labels.
Addresses are compared as addresses, IPv4-mapped ones as the IPv4 address that would be dialled; the zone of an IPv6
address is not part of any name (Go took ``::1%25.example.com`` for a host below example.com: CVE-2025-22870).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final

from .._errors import InvalidTargetError, shown
from .._names import Host, check_port, parse_host, split_url
from .._proxy import Proxy, ProxyChoice

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Network

_VARIABLES: Final = {
    "http": ("http_proxy", "all_proxy"),
    "ws": ("http_proxy", "all_proxy"),
    "https": ("https_proxy", "all_proxy"),
    "wss": ("https_proxy", "all_proxy"),
    "tcp": ("all_proxy",),
    "tls": ("all_proxy",),
}
_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_SEPARATORS: Final = re.compile(r"[,\s]+")


def proxy_for(url: str, environ: Mapping[str, str] | None = None) -> ProxyChoice:
    """The proxy that the environment asks for, for `url`, and the rule that decided.

    Args:
      url: a target: http, https, ws, wss, or tcp and tls with a port.
      environ: the variables; None means `os.environ`.

    Raises:
      InvalidTargetError: the URL is no target, or the variable that applies holds no usable proxy. The message names
        the variable and never shows a login.
    """
    parts = split_url(url)
    if parts.scheme not in _VARIABLES:
        raise InvalidTargetError(f"scheme '{shown(parts.scheme)}': known are {', '.join(_VARIABLES)}")
    if parts.host is None:
        raise InvalidTargetError(f"a host is missing behind {parts.scheme}://")
    if parts.userinfo is not None:
        raise InvalidTargetError(
            f"{parts.scheme}://{parts.host}: a target must not have a user; leave out what is before '@'"
        )
    port = parts.port or _PORTS.get(parts.scheme)
    if port is None:
        raise InvalidTargetError(f"{parts.scheme}://{parts.host} needs a port")
    return choose(parts.scheme, parts.host, port, os.environ if environ is None else environ)


def choose(scheme: str, host: Host, port: int, environ: Mapping[str, str]) -> ProxyChoice:
    """The proxy for a target that was taken apart already.

    Args:
      scheme: the target's, in lower case. Schemes that no variable is for are direct.
      host: the target's.
      port: the target's, the default one filled in.
      environ: the variables.

    Raises:
      InvalidTargetError: the variable that applies holds no usable proxy.
    """
    variables = dict(environ)  # os.environ of Windows ignores case when asked, but not when iterated
    ignored = ""
    names = _VARIABLES.get(scheme)
    if names is None:
        return ProxyChoice(None, f"no variable is for targets of scheme {scheme}.")
    for lower in names:
        name, value = _look_up(lower, variables)
        if name == "HTTP_PROXY" and "REQUEST_METHOD" in variables:
            ignored = "HTTP_PROXY is ignored because REQUEST_METHOD is set, "
            continue
        if value:
            break
    else:
        if ignored:
            return ProxyChoice(None, f"{ignored}and no other variable names a proxy for {scheme}.")
        return ProxyChoice(None, f"{' and '.join(names)} {'name' if len(names) > 1 else 'names'} no proxy.")
    no_proxy, exclusions = _look_up("no_proxy", variables)
    entry = _first_match(_parse(exclusions), host, port)
    if entry is not None:
        return ProxyChoice(None, f"{no_proxy} has the entry '{shown(entry)}', which matches {host.authority(port)}.")
    try:
        proxy = Proxy(value if "://" in value else f"http://{value}")
    except InvalidTargetError as exc:
        raise InvalidTargetError(f"{name}: {exc}") from exc
    but = f", and no entry of {no_proxy} matches {host.authority(port)}" if exclusions else ""
    return ProxyChoice(proxy, f"{ignored}{name} names it for {scheme}{but}.")


def _look_up(lower: str, variables: Mapping[str, str]) -> tuple[str, str]:
    """The name under which a variable is set, and its value; the lower-case name wins."""
    name = lower if lower in variables or lower.upper() not in variables else lower.upper()
    return name, variables.get(name, "").strip()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of ``no_proxy``: `text` as written and what it means. Exactly one meaning is set."""

    text: str
    everything: bool = False
    network: IPv4Network | IPv6Network | None = None
    host: Host | None = None
    below: str = ""
    port: int | None = None

    def matches(self, host: Host, port: int) -> bool:
        if self.everything:
            return True
        if self.port is not None and self.port != port:
            return False
        address = _unmapped(host.address)
        if self.network is not None:
            return address is not None and address in self.network
        if self.host is not None and self.host.address is not None:
            return address == _unmapped(self.host.address) and self.host.zone in {None, host.zone}
        if address is not None:  # the text of an address is below no name
            return False
        return (self.host is not None and host.name == self.host.name) or host.name.endswith(self.below)


def _first_match(entries: tuple[_Entry, ...], host: Host, port: int) -> str | None:
    return next((entry.text for entry in entries if entry.matches(host, port)), None)


@lru_cache(maxsize=8)  # with trust_env it is asked for each connect, and is nearly always the same
def _parse(text: str) -> tuple[_Entry, ...]:
    entries = (_parse_entry(entry) for entry in _SEPARATORS.split(text) if entry)
    return tuple(entry for entry in entries if entry is not None)


def _parse_entry(text: str) -> _Entry | None:
    if text == "*":
        return _Entry(text, everything=True)
    if "/" in text:
        try:
            return _Entry(
                text, network=_unmapped_network(ip_network(text.replace("[", "").replace("]", ""), strict=False))
            )
        except ValueError:
            return None
    try:
        if text.startswith("["):
            literal, bracket, rest = text[1:].partition("]")
            if not bracket or rest[:1] not in {"", ":"}:
                return None
            port = _parse_port(rest[1:]) if rest else None
            return _Entry(text, host=parse_host(literal, bracketed=True), port=port)
        if text.count(":") > 1:
            return _Entry(text, host=parse_host(text))
        name, colon, digits = text.partition(":")
        port = _parse_port(digits) if colon else None
        only_below = name.startswith("*.")
        host = parse_host(name[2:] if only_below else name.removeprefix("."))
    except InvalidTargetError:
        return None
    if host.address is not None:
        return None if only_below or name.startswith(".") else _Entry(text, host=host, port=port)
    return _Entry(text, host=None if only_below else host, below="." + host.name, port=port)


def _parse_port(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        raise InvalidTargetError("not a port")
    return check_port(int(digits))


def _unmapped(address: IPv4Address | IPv6Address | None) -> IPv4Address | IPv6Address | None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _unmapped_network(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None:
        return ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network
