"""Orders of addresses: RFC 6724, RFC 8305 section 4, and what is remembered."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioconn._establish.addresses import Address, History, Order, by_reachability, interleave

if TYPE_CHECKING:
    from collections.abc import Callable


def address(text: str) -> Address:
    if ":" in text:
        return Address(socket.AF_INET6, (text, 443, 0, 0))
    return Address(socket.AF_INET, (text, 443))


def texts(addresses: list[Address]) -> list[str]:
    return [each.sockaddr[0] for each in addresses]


def sources(**by_destination: str) -> Callable[[Address], IPv4Address | IPv6Address | None]:
    return lambda each: ip_address(by_destination[each.sockaddr[0]]) if each.sockaddr[0] in by_destination else None


# RFC 6724 section 10.2, its examples of destination address selection


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        pytest.param(
            {"2001:db8:1::1": "2001:db8:1::2", "198.51.100.121": "169.254.13.78"},
            ["2001:db8:1::1", "198.51.100.121"],
            id="rule 2: prefer matching scope, IPv6",
        ),
        pytest.param(
            {"2001:db8:1::1": "fe80::1", "198.51.100.121": "198.51.100.117"},
            ["198.51.100.121", "2001:db8:1::1"],
            id="rule 2: prefer matching scope, IPv4",
        ),
        pytest.param(
            {"10.1.2.3": "10.1.2.4", "2001:db8:1::1": "2001:db8:1::2"},
            ["2001:db8:1::1", "10.1.2.3"],
            id="rule 6: prefer higher precedence",
        ),
        pytest.param(
            {"2001:db8:1::1": "2001:db8:1::2", "fe80::1": "fe80::2"},
            ["fe80::1", "2001:db8:1::1"],
            id="rule 8: prefer smaller scope",
        ),
        pytest.param(
            {"2001:db8:3ffe::1": "2001:db8:1::2", "2001:db8:1::1": "2001:db8:1::2"},
            ["2001:db8:1::1", "2001:db8:3ffe::1"],
            id="rule 9: longest matching prefix",
        ),
        pytest.param(
            {"2002:c633:6401::1": "2002:c633:6401::2", "2001:db8:1::1": "2002:c633:6401::2"},
            ["2002:c633:6401::1", "2001:db8:1::1"],
            id="rule 5: prefer matching label",
        ),
        pytest.param(
            {"2002:c633:6401::1": "2002:c633:6401::2", "2001:db8:1::1": "2001:db8:1::2"},
            ["2001:db8:1::1", "2002:c633:6401::1"],
            id="rule 6: native before 6to4",
        ),
        pytest.param({"192.0.2.1": "192.0.2.9"}, ["192.0.2.1", "2001:db8::1"], id="rule 1: avoid unusable ones"),
    ],
)
def test_examples_of_rfc_6724(candidates: dict[str, str], expected: list[str]) -> None:
    for order in (expected, expected[::-1]):
        ordered = by_reachability(map(address, order), sources(**candidates))
        assert texts(ordered) == expected


@pytest.mark.parametrize(
    ("text", "source", "before"),
    [
        ("fd00::1", "fd00::2", "2001:db8::1"),  # unique local: label 13 matches, precedence 3 does not decide before it
        ("::1", "::1", "2001:db8::1"),
    ],
)
def test_labels_come_before_precedence(text: str, source: str, before: str) -> None:
    ordered = by_reachability([address(before), address(text)], sources(**{text: source, before: "fd00::2"}))
    assert texts(ordered) == [text, before]


def test_unique_local_comes_after_ipv4_and_teredo_last() -> None:
    own = {"fd00::1": "fd00::2", "192.0.2.1": "192.0.2.9", "2001:0:1::1": "2001:0:1::2", "2001:db8::1": "2001:db8::2"}
    ordered = by_reachability(map(address, own), sources(**own))
    assert texts(ordered) == ["2001:db8::1", "192.0.2.1", "2001:0:1::1", "fd00::1"]


def test_ipv4_addresses_keep_the_order_of_the_name_server() -> None:
    """Rule 9 for IPv4 would send everyone of one network to the same address, and undo rotation."""
    rotated = ["203.0.113.9", "198.51.100.1", "192.0.2.1"]
    assert texts(by_reachability(map(address, rotated), lambda _: IPv4Address("192.0.2.77"))) == rotated


def test_prefixes_beyond_the_source_prefix_do_not_count() -> None:
    """What follows the first 64 bits names machines: of two in one network none is nearer."""
    order = ["2001:db8::ffff", "2001:db8::1"]
    assert texts(by_reachability(map(address, order), lambda _: IPv6Address("2001:db8::2"))) == order


def test_mapped_addresses_are_judged_as_ipv4() -> None:
    order = ["::ffff:169.254.1.1", "::ffff:192.0.2.1"]
    own = dict.fromkeys(order, "::ffff:192.0.2.9")
    assert texts(by_reachability(map(address, order), sources(**own))) == order[::-1]  # scope of source and destination


@given(st.lists(st.ip_addresses(), unique=True), st.ip_addresses() | st.none())
def test_sorting_loses_nothing_and_never_fails(
    found: list[IPv4Address | IPv6Address], source: IPv4Address | IPv6Address | None
) -> None:
    addresses = [address(str(each)) for each in found]
    ordered = by_reachability(addresses, lambda each: source if source and ":" in str(source) else None)
    assert sorted(texts(ordered)) == sorted(texts(addresses))
    assert by_reachability(ordered, lambda each: source if source and ":" in str(source) else None) == ordered


# Interleaving


def by_letter(items: str, count: int) -> str:
    return "".join(interleave(items, count, lambda letter: int(letter.isupper())))


@pytest.mark.parametrize(
    ("items", "count", "expected"),
    [
        ("abcAB", 1, "aAbBc"),
        ("abcAB", 2, "abAcB"),
        ("abcAB", 3, "abcAB"),
        ("abcAB", 9, "abcAB"),
        ("abcAB", 0, "abcAB"),
        ("abcAB", -3, "aAbBc"),
        ("ABab", 1, "AaBb"),
        ("aAbBc", 1, "aAbBc"),
        ("abc", 2, "abc"),
        ("", 1, ""),
    ],
)
def test_interleave(items: str, count: int, expected: str) -> None:
    assert by_letter(items, count) == expected


@given(st.text("abcABC", max_size=12), st.integers(0, 4))
def test_interleave_loses_nothing(items: str, count: int) -> None:
    result = by_letter(items, count)
    assert sorted(result) == sorted(items)
    for family in (str.isupper, str.islower):  # the order inside a family stays
        assert list(filter(family, result)) == list(filter(family, items))
    if count and {letter.isupper() for letter in items} == {True, False}:
        ahead = max(1, count)
        others = [index for index, letter in enumerate(result) if letter.isupper() != result[0].isupper()]
        assert others[0] <= ahead  # the other family's first turn comes after the first family's share


# Late answers


def test_late_family_is_spliced_in_with_the_tried_ones_counted() -> None:
    order = Order(first_family_count=1, source=lambda each: each.ip)
    order.add(map(address, ["192.0.2.1", "192.0.2.2"]), sort=True)
    tried = order.untried([])[:1]
    order.add(map(address, ["2001:db8::1", "2001:db8::2"]), sort=True)
    assert texts(order.untried(tried)) == ["2001:db8::1", "2001:db8::2", "192.0.2.2"]


def test_late_ipv4_is_next_while_ipv6_is_under_way() -> None:
    order = Order(first_family_count=1, source=lambda each: each.ip)
    order.add(map(address, ["2001:db8::1", "2001:db8::2"]), sort=True)
    tried = order.untried([])[:1]
    order.add([address("192.0.2.1")], sort=True)
    assert texts(order.untried(tried)) == ["192.0.2.1", "2001:db8::2"]


def test_preferred_one_comes_first_and_the_other_family_second() -> None:
    order = Order(first_family_count=1, source=lambda each: each.ip, preferred=address("192.0.2.2"))
    order.add(map(address, ["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"]), sort=False)
    assert texts(order.untried([])) == ["192.0.2.2", "2001:db8::1", "192.0.2.1", "2001:db8::2"]


def test_duplicates_are_one() -> None:
    order = Order(first_family_count=1, source=lambda each: each.ip)
    order.add(map(address, ["192.0.2.1", "192.0.2.1"]), sort=False)
    order.add(map(address, ["192.0.2.1", "192.0.2.2"]), sort=False)
    assert texts(order.untried([])) == ["192.0.2.1", "192.0.2.2"]


# History

FIRST, SECOND = address("192.0.2.1"), address("192.0.2.2")


def home(each: Address) -> IPv4Address:
    return IPv4Address("10.0.0.1")


def away(each: Address) -> IPv4Address:
    return IPv4Address("10.9.9.9")


def test_history_remembers_for_ten_minutes_from_the_win() -> None:
    history = History()
    history.won("a", FIRST, 100, home)
    assert history.preferred("a", 100, home) == FIRST
    assert history.preferred("a", 699, home) == FIRST
    assert history.preferred("b", 100, home) is None
    assert history.preferred("a", 700, home) is None
    assert history.size == 0


def test_history_forgets_after_a_failure_of_that_address() -> None:
    history = History()
    history.won("a", FIRST, 0, home)
    history.failed("a", SECOND)
    history.failed("b", FIRST)
    assert history.preferred("a", 0, home) == FIRST
    history.failed("a", FIRST)
    assert history.preferred("a", 0, home) is None


def test_history_never_crosses_networks() -> None:
    history = History()
    history.won("a", FIRST, 0, home)
    assert history.preferred("a", 1, away) is None
    assert history.preferred("a", 1, home) is None  # it is forgotten, not hidden
    history.won("a", FIRST, 0, home)
    assert history.preferred("a", 1, lambda each: None) is None


def test_history_is_bounded_and_the_least_recently_used_goes_first() -> None:
    history = History(max_size=2)
    history.won("a", FIRST, 0, home)
    history.won("b", FIRST, 0, home)
    assert history.preferred("a", 0, home) == FIRST
    history.won("c", FIRST, 0, home)
    assert history.size == 2
    assert history.preferred("b", 0, home) is None
    assert history.preferred("a", 0, home) == FIRST


def test_history_can_be_cleared_and_a_later_win_replaces() -> None:
    history = History()
    history.won("a", FIRST, 0, home)
    history.won("a", SECOND, 300, home)
    assert history.preferred("a", 899, home) == SECOND
    history.clear()
    assert history.preferred("a", 300, home) is None


def test_addresses_as_text() -> None:
    assert str(address("192.0.2.1")) == "192.0.2.1:443"
    assert str(address("2001:db8::1")) == "[2001:db8::1]:443"
    assert Address(socket.AF_INET6, ("fe80::1%eth0", 1, 0, 2)).ip == IPv6Address("fe80::1")


def test_loopback_and_link_local_ipv4_have_a_scope_of_their_own() -> None:
    """RFC 6724 section 3.2: 127/8 and 169.254/16 are of link-local scope."""
    order = [address("192.0.2.1"), address("127.0.0.1")]
    own = {"192.0.2.1": "192.0.2.9", "127.0.0.1": "127.0.0.1"}
    assert texts(by_reachability(order, sources(**own))) == ["127.0.0.1", "192.0.2.1"]  # rule 8
    assert texts(by_reachability(order[::-1], lambda _: IPv4Address("192.0.2.9"))) == ["192.0.2.1", "127.0.0.1"]
    order = [address("192.0.2.1"), address("169.254.1.1")]
    own = {"192.0.2.1": "192.0.2.9", "169.254.1.1": "169.254.1.2"}
    assert texts(by_reachability(order, sources(**own))) == ["169.254.1.1", "192.0.2.1"]


def test_site_local_is_a_scope() -> None:
    own = {"fec0::1": "fe00::1", "3ffe::1": "8000::1"}  # neither label matches, both have precedence 1
    assert texts(by_reachability(map(address, own), sources(**own))) == ["3ffe::1", "fec0::1"]


def test_what_can_be_reached_comes_first_and_the_rest_by_precedence() -> None:
    own = {"fd00::1": "169.254.1.1"}  # nothing but the way there speaks for it
    order = ["2001:db8::1", "fd00::1", "192.0.2.1"]
    expected = ["fd00::1", "2001:db8::1", "192.0.2.1"]
    assert texts(by_reachability(map(address, order), sources(**own))) == expected
    assert texts(by_reachability(map(address, order[::-1]), sources(**own))) == expected


def test_the_first_64_bits_count_and_no_more() -> None:
    def source(_: Address) -> IPv6Address:
        return IPv6Address("2001:db8::2")

    assert texts(by_reachability(map(address, ["2001:db8:0:1::1", "2001:db8::1"]), source))[0] == "2001:db8::1"
    order = ["2001:db8::8000:0:0:1", "2001:db8::1"]  # the 65th bit tells them apart
    assert texts(by_reachability(map(address, order), source)) == order


def test_history_asks_for_the_source_of_the_address_that_it_holds() -> None:
    source = {FIRST: IPv4Address("10.0.0.1"), SECOND: IPv4Address("10.9.9.9")}.get
    history = History()
    history.won("a", FIRST, 0, source)
    assert history.preferred("a", 0, source) == FIRST
    assert history.preferred("a", 0, lambda each: home(each) if each == FIRST else None) == FIRST


@pytest.mark.parametrize(
    ("text", "family", "sockaddr"),
    [
        ("192.0.2.1", socket.AF_INET, ("192.0.2.1", 80)),
        ("2001:DB8::0", socket.AF_INET6, ("2001:db8::", 80, 0, 0)),
        ("fe80::1%7", socket.AF_INET6, ("fe80::1", 80, 0, 7)),
    ],
)
def test_an_address_is_read_from_text(text: str, family: int, sockaddr: tuple[str, int]) -> None:
    assert Address.from_text(text, 80) == Address(family, sockaddr)


@pytest.mark.parametrize("text", ["", "a.test", "192.0.2.1%1", "127.1", "fe80::1%no such zone", "fe80::1%1%1"])
def test_what_is_no_address(text: str) -> None:
    assert Address.from_text(text, 80) is None


def test_a_zone_may_be_the_name_of_an_interface() -> None:
    number, name = socket.if_nameindex()[0]
    assert Address.from_text(f"fe80::1%{name}", 80) == Address(socket.AF_INET6, ("fe80::1", 80, 0, number))
