"""Hosts, ports and URLs: what is taken, in which form, and what is refused."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import idna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioconn._errors import InvalidTargetError
from trioconn._names import URL, Host, check_port, parse_host, split_url

HUGE = 10**5000  # str() of it is an error
LONG_LABEL = "a" * 63
LONGEST = ".".join([LONG_LABEL] * 3 + ["a" * 61])  # 253 characters


def test_plain_names_are_lower_cased() -> None:
    assert parse_host("Example.ORG") == Host("example.org")
    assert parse_host("localhost") == Host("localhost")
    assert parse_host("r3---sn-x.test").name == "r3---sn-x.test"


@pytest.mark.security(70)
@pytest.mark.parametrize("text", ["a.test", "A.Test", "a。test", "ａ.test", "ａ．ｔｅｓｔ", "a｡test"])
def test_one_form_for_all_spellings(text: str) -> None:
    assert parse_host(text) == Host("a.test")


@pytest.mark.security(70)
@pytest.mark.parametrize("text", ["a.test.", "a.test。", "Ａ.TEST．"])
def test_final_dot_is_part_of_the_question_and_the_key_only(text: str) -> None:
    host = parse_host(text)
    assert host != parse_host("a.test")
    assert host == Host("a.test", absolute=True)
    assert (host.dns_name, host.dial_name) == ("a.test.", "a.test.")
    assert host.server_name == "a.test"
    assert host.authority(443) == "a.test:443"


@pytest.mark.security(69)
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("straße.test", "xn--strae-oqa.test"),  # IDNA 2003 would say strasse.test
        ("STRAẞE.test", "xn--strae-oqa.test"),
        ("faß.de", "xn--fa-hia.de"),
        ("xn--strae-oqa.test", "xn--strae-oqa.test"),
        ("XN--Strae-OQA.test", "xn--strae-oqa.test"),
        ("क्\u200dष.test", "xn--11b2ezcw70k.test"),  # ZWJ where it means something
        ("a_b.straße.test", "a_b.xn--strae-oqa.test"),
    ],
)
def test_idna_2008(text: str, name: str) -> None:
    assert parse_host(text).name == name


def test_underscore_is_a_name_of_dns() -> None:
    assert parse_host("a_b.test").name == "a_b.test"
    assert parse_host("_dmarc.Test").name == "_dmarc.test"


@pytest.mark.security(77)
@pytest.mark.parametrize(
    "text",
    ["xn--example-.org", "example.org.xn--", "xn--zzzz--", "xn--a.test", "ｘn--example-.org", "xn--ls8h.test"],
)
def test_false_a_labels(text: str) -> None:
    with pytest.raises(InvalidTargetError, match="IDNA 2008"):
        parse_host(text)


@pytest.mark.security(77)
def test_no_table_of_unicode_makes_two_labels_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's tables map no character to a dot but those at which names are divided; tomorrow's are not ours."""
    monkeypatch.setattr(idna, "encode", lambda *args, **options: b"trusted.evil")
    with pytest.raises(InvalidTargetError, match="more than one label"):
        parse_host("trusted\u2024evil.test")


EMPTY_OR_LONG = [
    "", ".", "..", "...", "a..b", ".a", "a.test..", "。", LONG_LABEL + "a", LONGEST + "a", LONGEST + "a.",
    "a." * 127 + "b", "ü" * 64, "ü" * 60, ".".join(["ü" * 40] * 6),
]  # fmt: skip
CONTROLS = [
    "a\0.test", "localhost\0.evil.test", "a\r\nb", "a\nb", "a\tb", "a\x7fb", "a\x1fb", "a\x85b", "a\x9fb", " ", " a",
    "a ", "a b", "a\u00a0b", "a\u3000b", "a\u2028b", "\ta.test", "a.test\n",
]  # fmt: skip
SEPARATORS = [
    "a/b", "a\\b", "a@b", "a?b", "a#b", "a%b", "a%2fb", "a%00b", "a:b", "a.test:443", "[a]", "[::1]", "a]", "<a>",
    "a,b", "a;b", "a'b", 'a"b', "a`b", "a|b", "a+b", "a~b", "a!b", "a$b", "a&b", "a(b", "a=b", "a^b", "a{b", "*.test",
    "*", "a／b", "a＠b", "a％b", "a：b", "a＃b", "a？b", "a＼b", "ａ_b.test",
]  # fmt: skip
NOT_CANONICAL = [
    "127.1", "0177.0.0.1", "0x7f.1", "0x7f000001", "0x7F000001", "2130706433", "0", "1.2.3.256", "1.2.3", "1.2.3.4.5",
    "01.2.3.4", "１２７.０.０.１", "127.0.0.１", "127.0.0。1", "127.0.0.1.", "127.0.0.1。", "127。0。0。1", "a.0",
    "a.test.1", "1.2.3.0x4", "1.2.3.0x", "①.②.③.④", "1.2.3.-4.5", "127.0.0.²",
]  # fmt: skip
NOT_IPV6 = ["::1%", "::1%a b", "::1%a%b", "::1%\u00e9", "::1%25/", "1::2::3", ":", "::g", "::1]", "::1:", "12345::",
            "::١", "::ffff:127.1", "::ffff:0177.0.0.1", "::1%" + "a" * 65, "fe80::1%[", "::1/128"]  # fmt: skip
NOT_IDNA = ["☃.test", "a\u200db.test", "\u00ad.test", "a…b.test", "㎯.test", "\ud800.test", "a\u202eb.test", "💩.test"]


@pytest.mark.security(50)
@pytest.mark.parametrize("text", EMPTY_OR_LONG + CONTROLS + SEPARATORS + NOT_CANONICAL + NOT_IPV6 + NOT_IDNA)
def test_bad_hosts(text: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        parse_host(text)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    if text not in ("a/b", "a?b", "a#b", "a@b", "[::1]"):  # these mean something in a URL
        with pytest.raises(InvalidTargetError):
            split_url(f"http://{text}:80/")


@pytest.mark.security(72)
def test_nul_is_refused_though_the_resolver_takes_it() -> None:
    with pytest.raises(InvalidTargetError, match="control"):
        parse_host("localhost\0.evil.test")


@pytest.mark.aiohttp("tcp_connector_rejects_non_canonical_ipv4_alias")
@pytest.mark.security(73)
@pytest.mark.parametrize("text", ["127.1", "0177.0.0.1", "0x7f.1", "2130706433", "0", "１２７.０.０.１"])
def test_what_getaddrinfo_takes_as_address_is_refused(text: str) -> None:
    # The premise; numeric, so nothing is looked up.
    assert socket.getaddrinfo(text.encode("idna").decode(), 80, flags=socket.AI_NUMERICHOST)
    with pytest.raises(InvalidTargetError, match="IPv4"):
        parse_host(text)


@pytest.mark.security(74)
@pytest.mark.parametrize("text", ["a%2e.test", "a%2fb", "a/b", "a\\b", "a@b", "a?b", "a#b"])
def test_nothing_is_decoded(text: str) -> None:
    with pytest.raises(InvalidTargetError):
        parse_host(text)


@pytest.mark.security(75)
@pytest.mark.parametrize(
    "authority",
    ["[127.0.0.1]", "[a.test]", "[v1.x]", "[::1]x", "[::1]:", "[::1", "::1", "[]", "[::1]:80:80", "[[::1]]", "a[::1]",
     "[::1]]", "[::1].test", "[localhost]"],
)  # fmt: skip
def test_brackets_hold_ipv6_only(authority: str) -> None:
    if authority == "[::1]:":
        assert split_url("http://[::1]:/").port is None
        return
    with pytest.raises(InvalidTargetError):
        split_url(f"http://{authority}/")


@pytest.mark.security(75)
def test_bracketed_argument() -> None:
    assert parse_host("::1", bracketed=True).address == IPv6Address("::1")
    for text in ("127.0.0.1", "a.test", "[::1]"):
        with pytest.raises(InvalidTargetError):
            parse_host(text, bracketed=True)


@pytest.mark.security(76)
@pytest.mark.parametrize("text", ["\u0660" * 100_000, "a" * 100_000, "\u0660" * 64 + ".test", "xn--" + "a" * 100_000])
def test_long_ones_never_reach_idna(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> bytes:
        raise AssertionError("idna was asked")

    monkeypatch.setattr(idna, "encode", never)
    with pytest.raises(InvalidTargetError):
        parse_host(text)


def test_the_longest_names() -> None:
    assert parse_host(LONGEST).name == LONGEST
    assert parse_host(LONGEST + ".").dns_name == LONGEST + "."


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("127.0.0.1", "127.0.0.1", IPv4Address("127.0.0.1")),
        ("::1", "::1", IPv6Address("::1")),
        ("0:0:0:0:0:0:0:1", "::1", IPv6Address("::1")),
        ("2001:DB8::A", "2001:db8::a", IPv6Address("2001:db8::a")),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", IPv6Address("::ffff:7f00:1")),
        ("::FFFF:7F00:1", "::ffff:127.0.0.1", IPv6Address("::ffff:7f00:1")),
    ],
)
def test_literals(text: str, name: str, address: IPv4Address | IPv6Address) -> None:
    assert parse_host(text) == Host(name, address=address)


@pytest.mark.security(12)
def test_zone_is_dialled_and_keyed_but_not_verified() -> None:
    one, two, none = parse_host("fe80::1%1"), parse_host("fe80::1%2"), parse_host("fe80::1")
    assert len({one, two, none}) == 3
    assert parse_host("FE80::1%1") == one == split_url("http://[fe80::1%1]/").host
    assert parse_host("::1%lo").zone == "lo" != parse_host("::1%LO").zone
    assert (one.dial_name, one.server_name, one.authority(80), one.authority()) == (
        "fe80::1%1", "fe80::1", "[fe80::1]:80", "[fe80::1]",
    )  # fmt: skip
    assert str(one) == "fe80::1%1"


@pytest.mark.security(79)
def test_zone_text_is_no_part_of_the_name() -> None:
    host = split_url("http://[::1%25.example.com]/").host
    assert host is not None
    assert host.server_name == "::1"


@pytest.mark.parametrize(
    "port",
    [0, -1, 65536, HUGE, True, False, "443", 443.0, None, b"443", 1j],
    ids=lambda port: "huge" if port is HUGE else repr(port),
)
def test_bad_ports(port: object) -> None:
    with pytest.raises(InvalidTargetError, match="port"):
        check_port(port)


def test_good_ports() -> None:
    assert [check_port(port) for port in (1, 443, 65535)] == [1, 443, 65535]


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999", "100000", "+80", "8 0", "８０", "0x50", "80a", "8_0"])
def test_bad_ports_in_urls(port: str) -> None:
    with pytest.raises(InvalidTargetError):
        split_url(f"http://a.test:{port}/")


def test_split_url() -> None:
    assert split_url("HTTPS://A.test:8443/p/%2e?q=1#f") == URL(
        "https", None, Host("a.test"), 8443, "/p/%2e", "q=1", "f"
    )
    assert split_url("http://a.test") == URL("http", None, Host("a.test"), None, "", None, None)
    assert split_url("http://a.test:?#") == URL("http", None, Host("a.test"), None, "", "", "")
    assert split_url("unix:///run/x") == URL("unix", None, None, None, "/run/x", None, None)
    assert split_url("unix:/run/x").host is None
    assert split_url("http://u%40:p@ss:@a.test/").userinfo == "u%40:p@ss:"
    assert split_url("http://@a.test/").userinfo == ""
    assert split_url("http://a.test/@b.test").host == Host("a.test")
    assert split_url("http://a.test?@b.test").host == Host("a.test")


@pytest.mark.security(49)
@pytest.mark.parametrize(
    "text",
    ["", "//a.test/", "a.test", "/a", "1http://a.test/", "ht tp://a.test/", "ht\ttp://a.test", "http://a.test/\r\nX: y",
     " http://a.test/", "http://a.test/ ", "http://a.te\tst/", "http://a.test/\0", "http://a.test/\x7f", "http://a\nb/",
     "http://a.test\\@b.test/", "http:\\\\a.test/", "http://a.test/\\..", "http://user@/", "http://user@:80/", "http://:80",
     "http://a.test:80:80/", "hättp://a.test", "http://\u2028a.test"],
)  # fmt: skip
def test_bad_urls(text: str) -> None:
    with pytest.raises(InvalidTargetError, match="URL"):
        split_url(text)


@pytest.mark.parametrize("value", [None, 3, b"http://a.test", object()])
def test_other_types(value: object) -> None:
    with pytest.raises(InvalidTargetError, match="str"):
        split_url(value)
    with pytest.raises(InvalidTargetError, match="str"):
        parse_host(value)


@pytest.mark.parametrize(
    "url",
    ["http://user:s3cret@a test/", "http://user:s3cret@a.test:99999/", "http://user:s3cret@127.1/",
     "http://user:s3/cret@a.test/", "http://user:s3?cret@a.test:x/", "//user:s3cret@a.test",
     "http://a b/?token=s3cret", "http://a.test:x/s3cret", "http://a b#s3cret", "http:s3cret@ ", "http://a\\s3cret"],
)  # fmt: skip
def test_messages_hold_no_secret(url: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        split_url(url)
    for hidden in ("s3", "cret", "user"):
        assert hidden not in str(caught.value)


def test_repr_holds_no_secret() -> None:
    assert "s3cret" not in repr(split_url("http://user:s3cret@a.test/?s3cret#s3cret"))


@given(st.text(max_size=80))
def test_any_text_is_refused_or_canonical(text: str) -> None:
    try:
        host = parse_host(text)
    except InvalidTargetError:
        return
    assert parse_host(host.dial_name) == host
    assert host.name.isascii()
    assert host.name == host.name.lower()


@given(st.text(alphabet="ab.1:/[]@%?#\\xn-u", max_size=30))
def test_any_url_is_refused_or_split(text: str) -> None:
    try:
        url = split_url("http://" + text)
    except InvalidTargetError:
        return
    if url.host is not None:
        assert parse_host(url.host.dial_name) == url.host


@pytest.mark.parametrize("port", [1, 2, 9999, 10000, 65534, 65535])
def test_good_ports_in_urls(port: int) -> None:
    assert split_url(f"http://a.test:{port}/").port == port
    assert split_url(f"http://[::1]:{port}/").port == port


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a.test:65536", "URL 'http://a.test:65536': the port must be a number from 1 to 65535"),
        ("http://[::1:80", "URL 'http://[::1:80': brackets must hold the whole IPv6 address, as in [::1]:443"),
        ("http://::1", "URL 'http://::1': an IPv6 address needs brackets, as in [::1]:443"),
        ("http://a b", "URL 'http://a b': has control characters or blanks; percent-encode them or take them out"),
        ("http://u:s3cret@a.test:0", "URL 'http://…@a.test:0': the port must be a number from 1 to 65535"),
        ("http://u:s3@cret@a.test:0", "URL 'http://…@a.test:0': the port must be a number from 1 to 65535"),
        ("//u:s3cret@a.test", "URL '…@a.test': needs a scheme, as in https://example.org"),
        (3, "a URL must be a str, not int"),
        ("1http://a.test", "URL '1http://a.test': needs a scheme, as in https://example.org"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_url_is_said(url: object, message: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        split_url(url)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("fe80::1%a b", "host 'fe80::1%a b': the host has control characters or blanks"),
        (".a", "host '.a': the labels between the dots must have 1 to 63 characters"),
        ("a!b", "host 'a!b': host names consist of letters, digits, '-', '_' and dots"),
        (
            "127.1",
            "host '127.1': ends in a number but is not an IPv4 address; write four decimal numbers, as in 127.0.0.1",
        ),
        (3, "a host must be a str, not int: give its name or its IP address"),
        ("fe80::1%a/b", "host 'fe80::1%a/b': the zone of an IPv6 address is a name such as eth0 or a number"),
        (
            "::1]:80",
            "host '::1]:80': not an IPv6 address (brackets hold nothing else, and a port is given apart from the host)",
        ),
    ],
)
def test_what_is_wrong_with_a_host_is_said(host: object, message: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        parse_host(host)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("a" * 2000, r"^host 'a+…?': host names have at most 253 characters$"),
        (".".join(["ü" * 40] * 6), r"^host '.+': host names have at most 253 characters, also after IDNA$"),
        ("xn--a.test", r"^host 'xn--a\.test': xn--a is not a valid label of IDNA 2008 \([A-Z].+\)$"),
    ],
    ids=["long", "long after IDNA", "false A-label"],
)
def test_what_is_wrong_with_a_long_or_foreign_host_is_said(host: str, message: str) -> None:
    with pytest.raises(InvalidTargetError, match=message) as caught:
        parse_host(host)
    assert "(None)" not in str(caught.value)


def test_a_single_label_may_be_absolute() -> None:
    assert parse_host("localhost.") == Host("localhost", absolute=True)


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("443", "port '443': must be an int from 1 to 65535, not str"),
        (65536, "port 65536: must be from 1 to 65535"),
        (-1, "port -1: must be from 1 to 65535"),
        (HUGE, "port out of all bounds: must be from 1 to 65535"),
        (-HUGE, "port out of all bounds: must be from 1 to 65535"),
    ],
    ids=["text", "high", "low", "huge", "minus huge"],
)
def test_what_is_wrong_with_a_port_is_said(port: object, message: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        check_port(port)
    assert str(caught.value) == message
