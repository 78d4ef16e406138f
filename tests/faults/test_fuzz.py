"""Whatever a user or a peer writes where a name, a URL, a list, a pin or an address is read: a value or a typed error.

What proxies answer has its own place, in proxies/test_fuzz.py. The normal run tries a few hundred of each kind, the
soak run as many as fit in its time.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import trioconn
from trioconn._establish.hosts_file import parse as parse_hosts_file
from trioconn._establish.resolve import MOST_ADDRESSES, sanitised
from trioconn._names import Host, check_port, parse_host, split_url
from trioconn._proxy import Proxy

SECRET = "s3cr3t"
PIECES = [
    *(
        "a",
        "b.test",
        "xn--",
        "xn--strae-oqa",
        "xn--a",
        "straße",
        "ẞ",
        "☃",
        "é",
        "\u0660",
        "\u200d",
        "\u3002",
        "１２７",
        "Ａ",
    ),
    *("127.1", "0177.0.0.1", "0x7f", "2130706433", "127.0.0.1", "1.2.3.4", "255.255.255.255", "0", "00", "1e3", "08"),
    *(
        "::",
        "::1",
        "fe80::1",
        "fe80::1%a/b",
        "::ffff:127.0.0.1",
        "%1",
        "%25",
        "%eth0",
        "%2e",
        "%00",
        "[",
        "]",
        "[::1]",
        "::1]:80",
    ),
    *(
        "/",
        "\\",
        "@",
        ":",
        "?",
        "#",
        ",",
        ";",
        " ",
        "\t",
        "\r\n",
        "\0",
        "\x7f",
        "\x85",
        "\ufeff",
        "*",
        ".",
        "..",
        "-",
        "_",
    ),
    *(
        "443",
        "65535",
        "65536",
        "-1",
        "+1",
        "٤٤٣",
        "u",
        "a" * 63,
        "a" * 64,
        "a." * 127,
        "a" * 300,
        ("ü" * 40 + ".") * 6,
        "fe80::1%a/b",
        "=",
        "&",
        "!",
    ),
    *("http", "https", "wss", "tcp", "socks5h", "socks4a", "socks5", "HTTP", "unix", "://", ":/", "//", "localhost"),
]
text = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=7).map("".join)
urls = st.one_of(
    text,
    st.builds(
        "{}://{}".format,
        st.sampled_from(["http", "https", "ws", "wss", "tcp", "tls", "Http", "ftp"]),
        st.one_of(st.sampled_from(PIECES), text),
    ),
    st.builds("{}://u:{}@{}".format, st.sampled_from(["http", "https", "socks5h"]), st.just(SECRET), text),
)
exclusions = st.lists(
    st.one_of(text, st.sampled_from(["*", ".test", "*.test", "10.0.0.0/8", "::/0", "[::1]:80", "a.test:80", "1/2/3"])),
    max_size=5,
).flatmap(lambda entries: st.sampled_from([",", " ", ", ", ",,", "\n"]).map(lambda by: by.join(entries)))
digests = st.one_of(
    st.binary(max_size=70),
    st.sampled_from([16, 20, 32, 48, 64]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.sampled_from([16, 20, 32, 48, 64]).flatmap(
        lambda n: st.binary(min_size=n, max_size=n).map(lambda b: b.hex(":"))
    ),
    text,
)
addresses = st.one_of(text, st.ip_addresses().map(str), st.ip_addresses(v=6).map(lambda one: one.exploded))
odd = st.one_of(st.none(), st.integers(), st.floats(), st.binary(max_size=5), text)
answers = st.lists(
    st.one_of(
        st.builds(
            trioconn.ResolveResult,
            st.one_of(addresses, odd),
            st.sampled_from([socket.AF_INET, socket.AF_INET6, 0, 99]),
            odd,
        ),
        odd,
    ),
    max_size=40,
)
CONNECTOR = trioconn.TCPConnector(ssl=False)


def check_message(error: Exception) -> None:
    """It can be printed anywhere, is no flood, and tells no secret."""
    message = str(error)
    assert message.isprintable() and 0 < len(message) < 800, message  # three pieces of at most 200, and words
    assert SECRET not in message


def check_host(name: str) -> None:
    try:
        host = parse_host(name)
    except trioconn.InvalidTargetError as error:
        check_message(error)
        return
    check_canonical(host)
    assert parse_host(str(host).strip("[]")) == host


def check_canonical(host: Host) -> None:
    """What the C library would read in it is what we do."""
    assert host.name.isascii() and host.name.isprintable() and not set(host.name) & set(" /\\@?#[]%,;*")
    assert 0 < len(host.name) <= 253
    assert host.name == host.name.lower()
    try:
        packed = socket.inet_aton(host.name)  # which takes all that the resolver takes as an IPv4 address
    except OSError:
        pass
    else:
        assert ipaddress.ip_address(host.name).packed == packed, "one address to us and another one to the resolver"
    if ":" in host.name:
        assert ipaddress.ip_address(host.name).version == 6
    assert host.zone is None or not set(host.zone) & set(" /\\@?#[]%,;*\r\n\0")
    with_port = split_url(f"http://{host.authority(81)}/")
    # Neither the final dot nor the zone is said to another machine.
    assert (with_port.host, with_port.port) == (replace(host, absolute=False, zone=None), 81)


def check_url(url: str) -> None:
    try:
        route = CONNECTOR.route(url)
    except trioconn.InvalidTargetError as error:
        check_message(error)
        return
    assert check_port(route.port) == route.port
    assert "@" not in url.partition("://")[2].partition("/")[0].partition("?")[0].partition("#")[0]
    assert repr(route).isprintable()
    host = parse_host(route.host)
    check_canonical(host)
    again = f"{route.scheme}://{host.authority(route.port)}"
    meant = split_url(url).host
    assert CONNECTOR.route(again) == route or (meant is not None and (meant.absolute or meant.zone is not None))


def check_proxy(url: str) -> None:
    try:
        proxy = Proxy(url)
    except trioconn.InvalidTargetError as error:
        check_message(error)
        return
    assert repr(proxy).isprintable()
    assert SECRET not in repr(proxy)
    assert CONNECTOR.route("https://a.test", proxy=url).proxies == (proxy.hop,)


def check_no_proxy(entries: str, target: str) -> None:
    environ = {"http_proxy": f"http://u:{SECRET}@p.test", "no_proxy": entries}
    try:
        choice = trioconn.proxy_for(f"http://{target}/", environ)
    except trioconn.InvalidTargetError:
        with pytest.raises(trioconn.InvalidTargetError):
            CONNECTOR.route(f"http://{target}/")  # the target is to blame, never the list
        return
    assert choice.reason.isprintable() and len(choice.reason) < 2000
    assert "no_proxy has the entry" in choice.reason if choice.proxy is None else choice.proxy.hop.host == "p.test"
    assert trioconn.proxy_for(f"http://{target}/", {**environ, "no_proxy": entries + ",*"}).proxy is None


def check_fingerprint(digest: bytes | str) -> None:
    try:
        pin = trioconn.Fingerprint(digest)
    except ValueError as error:
        check_message(error)
        return
    assert len(pin.digest) in {32, 48, 64}
    assert not pin.matches(b"") and not pin.matches(b"x")
    assert trioconn.Fingerprint(pin.digest.hex()) == pin


def check_answers(results: list[Any], family: int) -> None:
    good = sanitised(results, family)
    assert len(good) <= MOST_ADDRESSES
    assert len({result.address for result in good}) == len(good)
    for result in good:
        literal, percent, zone = result.address.partition("%")
        parsed = ipaddress.ip_address(literal)
        assert result.family == (socket.AF_INET if parsed.version == 4 else socket.AF_INET6)
        assert family in {0, result.family}
        assert result.ttl is None or isinstance(result.ttl, int | float)
        assert bool(percent) == bool(zone) and zone.isprintable() and " " not in zone


def check_hosts_file(content: str) -> None:
    for name, found in parse_hosts_file(content).items():
        assert name and not set(name) & set(" \t\n#")
        assert found and all(str(ipaddress.ip_address(one)) == one for one in found)


KINDS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "host": (check_host, (st.one_of(st.sampled_from(PIECES), text, addresses),)),
    "URL": (check_url, (urls,)),
    "proxy URL": (check_proxy, (urls,)),
    "NO_PROXY": (check_no_proxy, (exclusions, st.one_of(text, st.sampled_from(["a.test", "[::1]:80", "10.1.2.3"])))),
    "fingerprint": (check_fingerprint, (digests,)),
    "DNS answers": (check_answers, (answers, st.sampled_from([0, socket.AF_INET, socket.AF_INET6]))),
    "hosts file": (check_hosts_file, (st.lists(st.one_of(text, addresses), max_size=20).map(" ".join),)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_or_a_typed_error(kind: str) -> None:
    check, strategies = KINDS[kind]

    @settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.tuples(*strategies))
    def run(arguments: tuple[Any, ...]) -> None:
        check(*arguments)

    run()


@pytest.mark.parametrize("name", ["a.test.", "fe80::1%eth0", "a." * 127, "::ffff:192.0.2.1"])
def test_hosts_that_have_something_more(name: str) -> None:
    check_host(name)
    check_url(f"http://[{name}]" if ":" in name else f"http://{name}:")


def test_a_dot_in_the_hosts_file_is_no_name() -> None:
    check_hosts_file("0.0.0.0 . a.test .")
    assert parse_hosts_file("0.0.0.0 . a.test .") == {"a.test": ("0.0.0.0",)}


@given(st.one_of(odd, st.booleans(), st.complex_numbers(), st.lists(st.integers(), max_size=2)))
@example("443")
@example(10**5000)
def test_what_is_no_port(port: object) -> None:
    try:
        assert 1 <= check_port(port) <= 65535 and type(port) is int
    except trioconn.InvalidTargetError as error:
        check_message(error)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_many_of_each(kind: str, soak: Any) -> None:
    check, strategies = KINDS[kind]
    print(soak.fuzz(check, *strategies, share=len(KINDS)), "examples")
