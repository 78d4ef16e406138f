"""`Proxy`: what it takes, what it refuses before any I/O, and what it never shows."""

from __future__ import annotations

import copy
import pickle
import ssl

import pytest

from trioconn._errors import InvalidTargetError
from trioconn._names import parse_host
from trioconn._proxy import Proxy, ProxyChoice, header_pairs
from trioconn._route import ConnectStep, Fingerprint, Hop, Secret, SocksStep

HOST = parse_host("a.test")


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port"),
    [
        ("http://proxy.test", "http", "proxy.test", 80),
        ("https://proxy.test/", "https", "proxy.test", 443),
        ("HTTP://PROXY.test:3128", "http", "proxy.test", 3128),
        ("socks4a://proxy.test", "socks4a", "proxy.test", 1080),
        ("socks5://127.0.0.1", "socks5", "127.0.0.1", 1080),
        ("socks5h://[::1]:9050", "socks5h", "::1", 9050),
        ("http://straße.test:1", "http", "xn--strae-oqa.test", 1),
    ],
)
def test_url_is_taken_apart(url: str, scheme: str, host: str, port: int) -> None:
    proxy = Proxy(url)
    assert (proxy.scheme, proxy.host.name, proxy.port, proxy.auth) == (scheme, host, port, None)
    assert proxy.hop == Hop(scheme, host, port)
    assert proxy.authorization is None
    assert proxy.request_headers == ()


@pytest.mark.parametrize(
    ("userinfo", "auth"),
    [
        ("user:secret", ("user", "secret")),
        ("user", ("user", "")),
        ("user:", ("user", "")),
        (":secret", ("", "secret")),
        ("u%20ser:p%40%3A%2f", ("u ser", "p@:/")),
        ("user:a:b", ("user", "a:b")),
        ("user:%2525", ("user", "%25")),  # decoded once
        ("us%C3%A9r:pä", ("usér", "pä")),
    ],
)
def test_login_in_url_is_decoded_once_as_utf8(userinfo: str, auth: tuple[str, str]) -> None:
    assert Proxy(f"http://{userinfo}@proxy.test").auth == auth
    assert Proxy("http://proxy.test", auth=auth) == Proxy(f"http://{userinfo}@proxy.test")


def test_basic_is_utf8() -> None:
    # "Aladdin:open sesame" is the example of RFC 7617 section 2, "test:123£" that of section 2.1.
    aladdin = Proxy("http://proxy.test", auth=("Aladdin", "open sesame"))
    assert aladdin.authorization == b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert Proxy("https://proxy.test", auth=("test", "123£")).authorization == b"Basic dGVzdDoxMjPCow=="
    assert Proxy("socks5://proxy.test", auth=("test", "123£")).authorization is None


@pytest.mark.parametrize(
    "url",
    [
        "http://proxy.test/path",
        "http://proxy.test?query",
        "http://proxy.test?",
        "http://proxy.test#fragment",
        "http://proxy.test/?",
        "http://",
        "http:///",
        "proxy.test:3128",
        "proxy.test",
        "",
        "ftp://proxy.test",
        "socks://proxy.test",
        "socks4://proxy.test",
        "http://proxy.test:0",
        "http://proxy.test:65536",
        "http://127.1",
        "http://a..b",
        "http://proxy.test\r\nX: y",
        "http://proxy.test\t",
    ],
)
@pytest.mark.security(49)
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidTargetError):
        Proxy(url)


def test_refused_socks_kinds_say_what_to_write() -> None:
    with pytest.raises(InvalidTargetError, match="socks5h"):
        Proxy("socks://proxy.test")
    with pytest.raises(InvalidTargetError, match="socks4a"):
        Proxy("socks4://proxy.test")


BAD_LOGINS = [
    "hidden%0D%0AX%3A y:hidden".replace(" ", "%20"),
    "hidden:hidden%00",
    "hidden:hidden%0a",
    "hidden:hidden%7f",
    "hidden:hidden%C2%85",
    "hidden:hidden%ff",
    "hidden:hidden%zz",
    "hidden:hidden%",
    "hidden:12/hidden",
    "hidden:hid/den",
    "hidden:hid?den",
    "hidden:hid den",
    "hidden:hid\r\nden",
]


def test_colon_in_a_user_is_refused_where_it_would_move_the_border_to_the_password() -> None:
    for scheme in ("http", "https"):
        with pytest.raises(InvalidTargetError, match="Basic") as caught:
            Proxy(f"{scheme}://hidden%3Auser:hidden@proxy.test:1")
        assert "hid" not in str(caught.value)
    assert Proxy("socks5://a%3Auser:secret@proxy.test").auth == ("a:user", "secret")  # SOCKS tells the lengths


@pytest.mark.security(50)
@pytest.mark.parametrize("userinfo", BAD_LOGINS)
@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h", "ftp"])
def test_bad_logins_are_refused_and_not_shown(scheme: str, userinfo: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        Proxy(f"{scheme}://{userinfo}@proxy.test:1")
    error: BaseException | None = caught.value
    while error is not None:
        assert "hid" not in str(error)
        assert "hid" not in repr(error)
        error = error.__cause__ or error.__context__


@pytest.mark.security(50)
@pytest.mark.parametrize("auth", [("a:b", "c"), ("a\n", "c"), ("a", "c\x00"), ("a", "\ud800"), ("\udfff", "")])
def test_bad_auth_is_refused(auth: tuple[str, str]) -> None:
    with pytest.raises(InvalidTargetError):
        Proxy("http://proxy.test", auth=auth)


@pytest.mark.parametrize("auth", ["user:secret", ("user",), ("user", None), ["user", "secret"], (b"user", b"secret")])
def test_auth_of_another_type_is_a_type_error(auth: object) -> None:
    with pytest.raises(TypeError, match="tuple") as caught:
        Proxy("http://proxy.test", auth=auth)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_login_twice_is_refused() -> None:
    with pytest.raises(InvalidTargetError, match="once"):
        Proxy("http://user:secret@proxy.test", auth=("user", "secret"))


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize(("user", "password"), [("", "p"), ("u", ""), ("u" * 256, "p"), ("u", "é" * 128)])
def test_socks_login_has_1_to_255_bytes(scheme: str, user: str, password: str) -> None:
    with pytest.raises(InvalidTargetError, match="1 to 255 bytes"):
        Proxy(f"{scheme}://proxy.test", auth=(user, password))
    Proxy(f"{scheme}://proxy.test", auth=("u" * 255, "é" * 127))


def test_socks4a_takes_a_user_alone() -> None:
    assert Proxy("socks4a://user@proxy.test").auth == ("user", "")
    with pytest.raises(InvalidTargetError, match="no password"):
        Proxy("socks4a://user:secret@proxy.test")
    with pytest.raises(InvalidTargetError, match="1 to 255 bytes"):
        Proxy("socks4a://proxy.test", auth=("u" * 256, ""))


@pytest.mark.parametrize(
    "headers", [{"X-A": "1", "X-B": "2"}, [("X-A", b"1"), (b"X-B", "2")], {b"X-A": b"1", b"X-B": b"2"}.items()]
)
def test_headers_become_pairs_of_bytes_in_order(headers: object) -> None:
    proxy = Proxy("http://u:p@proxy.test", headers=headers)  # type: ignore[arg-type]
    assert proxy.headers == ((b"X-A", b"1"), (b"X-B", b"2"))
    assert proxy.request_headers == ((b"Proxy-Authorization", b"Basic dTpw"), *proxy.headers)


@pytest.mark.security(49)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X\r\nY", "hidden"),
        ("X Y", "hidden"),
        ("X:", "hidden"),
        ("", "hidden"),
        ("é", "hidden"),
        ("X\x00", "hidden"),
        ("X", "hidden\r\nY: z"),
        ("X", "hidden\n"),
        ("X", "hidden\x00"),
        ("X", "hidden\x7f"),
        ("X", " hidden"),
        ("X", "hidden\t"),
        ("X", "hidden\ud800"),
        ("Host", "hidden"),
        (b"hOST", b"hidden"),
        ("Content-Length", "1"),
        ("Transfer-Encoding", "chunked"),
    ],
)
def test_bad_headers_are_refused_and_values_not_shown(name: str | bytes, value: str | bytes) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        Proxy("http://proxy.test", headers=[(name, value)])
    assert "hidden" not in str(caught.value)
    with pytest.raises(InvalidTargetError):
        Proxy("http://proxy.test").with_headers([(name, value)])


@pytest.mark.parametrize(
    "headers", ["X: y", b"X: y", 5, ["X: y"], [("X", "y", "z")], [("X", 1)], [(1, "y")], {"X": None}]
)
def test_headers_of_another_type_are_a_type_error(headers: object) -> None:
    with pytest.raises(TypeError):
        header_pairs(headers)  # type: ignore[arg-type]


def test_two_logins_by_header_and_auth_are_refused() -> None:
    header = {"proxy-authorization": "Bearer hidden"}
    assert Proxy("http://proxy.test", headers=header).request_headers == ((b"proxy-authorization", b"Bearer hidden"),)
    with pytest.raises(InvalidTargetError, match="give one"):
        Proxy("http://u:p@proxy.test", headers=header)
    with pytest.raises(InvalidTargetError, match="give one"):
        Proxy("http://u:p@proxy.test").with_headers(header)


def test_headers_are_for_http_proxies() -> None:
    with pytest.raises(InvalidTargetError, match="HTTP proxies"):
        Proxy("socks5://proxy.test", headers={"X": "y"})
    with pytest.raises(InvalidTargetError, match="HTTP proxies"):
        Proxy("socks5://proxy.test").with_headers({"X": "y"})


def test_more_headers_leave_the_proxy_as_it_is() -> None:
    proxy = Proxy("https://u:p@proxy.test", headers={"X": "1"}, server_hostname="b.test")
    more = proxy.with_headers({"Y": "2"})
    assert proxy.headers == ((b"X", b"1"),)
    assert more.headers == ((b"X", b"1"), (b"Y", b"2"))
    assert more == Proxy("https://u:p@proxy.test", headers=[("X", "1"), ("Y", "2")], server_hostname="b.test")
    assert proxy.with_headers(()) == proxy


@pytest.mark.parametrize("scheme", ["http", "socks4a", "socks5", "socks5h"])
@pytest.mark.parametrize(
    "options", [{"ssl": False}, {"ssl": Fingerprint(bytes(32))}, {"server_hostname": "proxy.test"}], ids=repr
)
@pytest.mark.security(39)
def test_tls_options_without_tls_are_refused(scheme: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidTargetError, match="https proxies"):
        Proxy(f"{scheme}://proxy.test", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", [None, b"http://proxy.test", 80])
def test_url_of_another_type_is_a_type_error(url: object) -> None:
    with pytest.raises(TypeError, match="URL of a proxy"):
        Proxy(url)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 0, 1, "", "false"])
def test_ssl_of_another_type_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="ssl of a proxy"):
        Proxy("https://proxy.test", ssl=value)  # type: ignore[arg-type]


def test_tls_options_of_an_https_proxy() -> None:
    context = ssl.create_default_context()
    proxy = Proxy("https://proxy.test", ssl=context, server_hostname="Other.test.")
    assert proxy.ssl is context
    assert proxy.server_hostname == "other.test"
    with pytest.raises(InvalidTargetError):
        Proxy("https://proxy.test", server_hostname="a b")


@pytest.mark.security(9)
@pytest.mark.security(31)
def test_whatever_differs_makes_another_proxy() -> None:
    context = ssl.create_default_context()
    proxies = [
        Proxy("http://proxy.test"),
        Proxy("http://proxy.test:81"),
        Proxy("http://proxy.test."),
        Proxy("http://other.test"),
        Proxy("https://proxy.test:80"),
        Proxy("https://proxy.test:80", ssl=False),
        Proxy("https://proxy.test:80", ssl=context),
        Proxy("https://proxy.test:80", ssl=ssl.create_default_context()),
        Proxy("https://proxy.test:80", ssl=Fingerprint(bytes(32))),
        Proxy("https://proxy.test:80", ssl=Fingerprint(bytes(32), context=context)),
        Proxy("https://proxy.test:80", server_hostname="other.test"),
        Proxy("http://proxy.test", auth=("", "")),
        Proxy("http://proxy.test", auth=("u", "")),
        Proxy("http://proxy.test", auth=("u", "Secret")),
        Proxy("http://proxy.test", auth=("u", "secret")),
        Proxy("http://proxy.test", headers={"X": "y"}),
        Proxy("http://proxy.test", headers={"x": "y"}),
        Proxy("http://proxy.test", headers={"X": "Y"}),
        Proxy("socks5://proxy.test:80"),
        Proxy("socks5h://proxy.test:80"),
        Proxy("socks4a://proxy.test:80"),
    ]
    steps = [proxy.step(HOST, 443, 0) for proxy in proxies if proxy.scheme != "https"]
    assert len(set(proxies)) == len(proxies)
    assert len({(proxy.hop, proxy.step(HOST, 443, 0)) for proxy in proxies if proxy.scheme != "https"}) == len(steps)


def test_equal_by_value_also_after_copies() -> None:
    proxy = Proxy("http://u:p@Proxy.test", headers={"X": "y"})
    twin = Proxy("http://proxy.test:80/", auth=("u", "p"), headers=[(b"X", b"y")])
    assert proxy == twin
    assert hash(proxy) == hash(twin)
    assert copy.deepcopy(proxy) == proxy
    assert pickle.loads(pickle.dumps(proxy)) == proxy
    with pytest.raises(AttributeError):
        proxy.port = 81  # type: ignore[misc]


@pytest.mark.security(25)
def test_repr_shows_no_secret() -> None:
    proxy = Proxy(
        "https://hidden:hidden@proxy.test",
        headers={"X": "hidden"},
        ssl=Fingerprint(bytes(32)),
        server_hostname="b.test",
    )
    choice = ProxyChoice(proxy, "because.")
    step = proxy.step(HOST, 443, 0)
    for text in (repr(proxy), str(proxy), f"{proxy}", repr(choice), repr(step), str(proxy.hop)):
        assert "hidden" not in text
        assert "aGlkZGVuOmhpZGRlbg" not in text
    assert repr(proxy).startswith("Proxy('https://proxy.test:443', auth=…, headers=…, ssl=Fingerprint(")
    assert repr(Proxy("http://[::1]")) == "Proxy('http://[::1]:80')"


def test_steps() -> None:
    connect = Proxy("https://u:p@proxy.test", headers={"X": "y"}).step(HOST, 443, 1)
    headers = Secret(((b"Proxy-Authorization", b"Basic dTpw"), (b"X", b"y")))
    assert connect == ConnectStep(HOST, 443, Secret(("u", "p")), headers, 1)
    socks = Proxy("socks5h://u:p@proxy.test").step(HOST, 443, 0)
    assert socks == SocksStep("socks5h", HOST, 443, Secret(("u", "p")), 0)
    assert Proxy("socks4a://proxy.test").step(HOST, 443, 0) == SocksStep("socks4a", HOST, 443, None, 0)


def test_hosts_that_a_proxy_cannot_be_told() -> None:
    with pytest.raises(InvalidTargetError, match="zone"):
        Proxy("http://proxy.test").step(parse_host("fe80::1%eth0"), 443, 0)
    with pytest.raises(InvalidTargetError, match="IPv6"):
        Proxy("socks4a://proxy.test").step(parse_host("::1"), 443, 0)
