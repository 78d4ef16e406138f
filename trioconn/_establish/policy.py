"""Address policies: which addresses a program lets itself be sent to. Pure.

Theory of operation
-------------------
A program that fetches URLs given by strangers can be made to fetch from its own machine or its own network (server-side
request forgery). Checking the name, or checking an address and then resolving again for the dial, does not help: the
second answer may differ (DNS rebinding). So the policy is asked about the very addresses that are dialled.

`public_addresses_only` lets pass what is meant to be globally reachable unicast, by a list of its own: that of
`ipaddress` differs between versions of Python (multicast is "global", and CVE-2024-4032 changed it). Addresses that
stand for an IPv4 address, to which something on the way sends the packets, are judged by that one: IPv4-mapped ones,
NAT64 (RFC 6052), 6to4 (RFC 3056) and Teredo (RFC 4380); ISATAP (RFC 5214) by that one too. The NAT64 prefix for local
use (RFC 8215) is denied: where in it the IPv4 address stands is known only locally. A NAT64 prefix that an operator
chose for itself looks like any other address, and cannot be recognised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import isawaitable, iscoroutine
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

from .._errors import shown

AddressPolicy: TypeAlias = Callable[[str, IPv4Address | IPv6Address], bool]
"""``policy(host, address)``: whether `address`, to which `host` resolved, may be dialled. An exception denies."""

_LOG = logging.getLogger("trioconn")

# From the special-purpose registry of IANA (RFC 6890 and its successors): what is not globally reachable. A few anycast
# addresses inside 192.0.0.0/24 and 2001::/23 count as reachable there, but lead to the nearest router.
_REFUSED_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network: RFC 791. Linux dials itself
        "10.0.0.0/8",  # private: RFC 1918
        "100.64.0.0/10",  # behind carrier-grade NAT: RFC 6598. Some clouds keep their metadata there
        "127.0.0.0/8",  # loopback: RFC 1122
        "169.254.0.0/16",  # link-local, and the metadata of clouds: RFC 3927
        "172.16.0.0/12",  # private: RFC 1918
        "192.0.0.0/24",  # protocol assignments: RFC 6890. 192.0.0.192 is metadata, too
        "192.0.2.0/24",  # documentation: RFC 5737
        "192.88.99.0/24",  # 6to4 relays: RFC 7526
        "192.168.0.0/16",  # private: RFC 1918
        "198.18.0.0/15",  # benchmarks: RFC 2544
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast: RFC 1112, RFC 919
    )
)
# Everything outside of 2000::/3 is refused, but for NAT64; hence loopback, unspecified, link-local, unique local,
# site-local (fec0::/10), multicast and discard-only (100::/64) need no line.
_UNICAST_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: RFC 2928. ORCHID, benchmarks; Teredo is judged before
        "2001:db8::/32",  # documentation: RFC 3849
        "3ffe::/16",  # 6bone: RFC 3701
        "3fff::/20",  # documentation: RFC 9637
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_32_BITS = 0xFFFFFFFF
_ISATAP = (0x00005EFE, 0x02005EFE)


def public_addresses_only(host: str, address: IPv4Address | IPv6Address) -> bool:
    """An ``address_policy`` that allows globally reachable unicast addresses only.

    Denied are loopback, private and link-local addresses, those behind carrier-grade NAT, multicast, reserved,
    documentation and benchmark blocks, and IPv6 addresses that stand for one of these by translation or tunnel.

    It cannot see what a router or proxy makes of a public address, nor that a public address belongs to this machine.

    Args:
      host: the host as the target names it; it plays no part here.
      address: what would be dialled.
    """
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _REFUSED_V4)
    if address.scope_id is not None:
        return False  # only what is not global has a zone
    number = int(address)
    if address.ipv4_mapped is not None or address in _NAT64:
        return public_addresses_only(host, IPv4Address(number & _32_BITS))
    if address in _6TO4:
        return public_addresses_only(host, IPv4Address(number >> 80 & _32_BITS))
    if address in _TEREDO:  # of the server and, inverted, of the client
        server, client = IPv4Address(number >> 64 & _32_BITS), IPv4Address(~number & _32_BITS)
        return public_addresses_only(host, server) and public_addresses_only(host, client)
    if number >> 32 & _32_BITS in _ISATAP and not public_addresses_only(host, IPv4Address(number & _32_BITS)):
        return False
    return address in _UNICAST_V6 and not any(address in block for block in _REFUSED_V6)


def judge(policy: AddressPolicy, host: str, address_text: str) -> bool:
    """What `policy` says about an address as it would be dialled.

    The zone is stripped and an IPv4-mapped address unwrapped, since that is where the packets go. An exception of the
    policy, an answer that would have to be awaited, and a text that is no address, deny.
    """
    try:
        address = ip_address(address_text.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        answer: object = policy(host, address)
        if isawaitable(answer):  # true as an object, whatever it would have come to
            if iscoroutine(answer):
                answer.close()
            raise TypeError("an address policy is synchronous")
        return bool(answer)
    except Exception:
        _LOG.exception("the address policy failed for %s of %s: denied", shown(address_text), shown(host))
        return False
