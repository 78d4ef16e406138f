"""Address policies, against the ways in which private addresses are dressed up."""

from __future__ import annotations

from collections.abc import Generator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from trioconn._establish.policy import judge, public_addresses_only

DENIED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::2",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "64:ff9b:1::8.8.8.8",
    "64:ff9b:0:1::8.8.8.8",
    "100::1",
    "100:0:0:1::1",
    "2001::1",
    "2001:0:7f00:1::f7f7:f7f7",
    "2001:0:808:808::80ff:fffe",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:1::1",
    "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:127.0.0.1",
    "3ffe::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%1",
    "febf::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ff0e::1",
    "2001:db8::5efe:8.8.8.8",
    "2606:4700::1%1",
    "2606:4700::1%0",
]
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "2001:0:808:808::f7f7:f7f7",
    "2606:4700::5efe:8.8.8.8",
    "2001:200::1",
    "2001:db7:ffff::1",
    "2001:db9::1",
]


@pytest.mark.security(92)
@pytest.mark.parametrize("text", DENIED)
def test_denied(text: str) -> None:
    assert public_addresses_only("a.test", ip_address(text)) is False


@pytest.mark.parametrize("text", ALLOWED)
def test_allowed(text: str) -> None:
    assert public_addresses_only("a.test", ip_address(text)) is True


@pytest.mark.parametrize("text", [text for text in DENIED + ALLOWED if "%" not in text])
def test_never_laxer_than_the_standard_library(text: str) -> None:
    address = ip_address(text)
    if public_addresses_only("a.test", address) and getattr(address, "ipv4_mapped", None) is None:
        tunnels = text.startswith(("2002:", "64:ff9b:", "2001:0:"))  # judged by what they carry
        assert address.is_global or tunnels
        assert not (address.is_private and not tunnels) and not address.is_multicast


@pytest.mark.security(92)
def test_the_policy_sees_where_the_packets_go() -> None:
    seen: list[tuple[str, IPv4Address | IPv6Address]] = []

    def policy(host: str, address: IPv4Address | IPv6Address) -> bool:
        seen.append((host, address))
        return True

    for text in ("::ffff:127.0.0.1", "::ffff:7f00:1", "fe80::1%eth0", "8.8.8.8"):
        assert judge(policy, "a.test", text)
    assert seen == [
        ("a.test", IPv4Address("127.0.0.1")),
        ("a.test", IPv4Address("127.0.0.1")),
        ("a.test", IPv6Address("fe80::1")),
        ("a.test", IPv4Address("8.8.8.8")),
    ]


@pytest.mark.parametrize("error", [ValueError, OSError, AssertionError])
def test_a_policy_that_raises_denies(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    def policy(host: str, address: object) -> bool:
        raise error("no")

    assert judge(policy, "a.test\n", "8.8.8.8") is False
    assert "denied" in caplog.text
    assert "a.test\\n" in caplog.text


def test_what_is_no_address_is_denied(caplog: pytest.LogCaptureFixture) -> None:
    assert judge(lambda host, address: True, "a.test", "localhost") is False


@pytest.mark.parametrize("kind", ["coroutine", "future"])
def test_an_answer_that_must_be_awaited_denies(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    class Future:
        def __await__(self) -> Generator[None, None, bool]:
            yield
            return True

    async def allowed() -> bool:
        return True

    policy: Any = (lambda host, address: allowed()) if kind == "coroutine" else (lambda host, address: Future())
    assert judge(policy, "a.test", "8.8.8.8") is False
    assert "synchronous" in caplog.text


def test_truth_of_the_answer_counts() -> None:
    assert judge(lambda host, address: None, "a.test", "8.8.8.8") is False  # type: ignore[arg-type, return-value]
