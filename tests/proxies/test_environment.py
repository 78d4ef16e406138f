"""Proxies from the environment: a table of variables, targets and choices."""

from __future__ import annotations

import pytest

from trioconn._errors import InvalidTargetError
from trioconn._establish import environment
from trioconn._establish.environment import choose, proxy_for
from trioconn._names import parse_host
from trioconn._proxy import Proxy

H, S, A = "http://h.test:1", "http://s.test:2", "socks5h://a.test:3"
ALL = {"http_proxy": H, "https_proxy": S, "all_proxy": A}


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> None:
    """Each test reads its lists itself: mutants begin in a process in which the tests have run before."""
    environment._parse.cache_clear()


@pytest.mark.parametrize(
    ("url", "environ", "expected", "variable"),
    [
        ("http://x.test", {}, None, "http_proxy and all_proxy"),
        ("http://x.test", ALL, H, "http_proxy"),
        ("ws://x.test", ALL, H, "http_proxy"),
        ("https://x.test", ALL, S, "https_proxy"),
        ("wss://x.test", ALL, S, "https_proxy"),
        ("tcp://x.test:1", ALL, A, "all_proxy"),
        ("tls://x.test:1", ALL, A, "all_proxy"),
        ("tcp://x.test:1", {"http_proxy": H, "https_proxy": S}, None, "all_proxy"),
        ("http://x.test", {"https_proxy": S}, None, "http_proxy"),
        ("https://x.test", {"http_proxy": H}, None, "https_proxy"),
        ("http://x.test", {"all_proxy": A}, A, "all_proxy"),
        ("https://x.test", {"ALL_PROXY": A, "http_proxy": H}, A, "ALL_PROXY"),
        ("http://x.test", {"HTTP_PROXY": H}, H, "HTTP_PROXY"),
        ("https://x.test", {"HTTPS_PROXY": S}, S, "HTTPS_PROXY"),
        ("http://x.test", {"HTTP_PROXY": A, "http_proxy": H}, H, "http_proxy"),
        ("http://x.test", {"HTTP_PROXY": A, "http_proxy": ""}, None, "http_proxy"),
        ("http://x.test", {"http_proxy": "", "ALL_PROXY": A}, A, "ALL_PROXY"),
        ("http://x.test", {"http_proxy": "  "}, None, "http_proxy"),
        ("http://x.test", {"http_proxy": f" {H} "}, H, "http_proxy"),
        ("http://x.test", {"http_proxy": "h.test:1"}, H, "http_proxy"),
        ("http://x.test", {"http_proxy": "u:p@h.test:1"}, "http://u:p@h.test:1", "http_proxy"),
        ("https://x.test", {"https_proxy": "https://s.test"}, "https://s.test", "https_proxy"),
        ("http://x.test", {"Http_Proxy": H}, None, "http_proxy"),
        # CVE-2016-5385: in a CGI program HTTP_PROXY is what a client has sent as a header.
        ("http://x.test", {"HTTP_PROXY": H, "REQUEST_METHOD": "GET"}, None, "HTTP_PROXY is ignored"),
        ("http://x.test", {"HTTP_PROXY": H, "REQUEST_METHOD": "", "all_proxy": A}, A, "HTTP_PROXY is ignored"),
        ("http://x.test", {"http_proxy": H, "REQUEST_METHOD": "GET"}, H, "http_proxy"),
        ("https://x.test", {"HTTPS_PROXY": S, "REQUEST_METHOD": "GET"}, S, "HTTPS_PROXY"),
    ],
)
def test_which_variable(url: str, environ: dict[str, str], expected: str | None, variable: str) -> None:
    choice = proxy_for(url, environ)
    assert choice.proxy == (None if expected is None else Proxy(expected))
    assert variable in choice.reason
    assert choice.reason.endswith(".")
    assert "u:p" not in choice.reason


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("", "http://x.test", False),
        ("*", "http://x.test", True),
        ("*", "http://127.0.0.1", True),
        ("y.test,*", "http://x.test", True),
        # Names: whole labels, with or without a leading dot
        ("x.test", "http://x.test", True),
        ("x.test", "http://a.b.x.test", True),
        ("x.test", "http://ax.test", False),
        ("x.test", "http://x.test.y", False),
        (".x.test", "http://x.test", True),
        (".x.test", "http://a.x.test", True),
        (".x.test", "http://ax.test", False),
        ("*.x.test", "http://x.test", False),
        ("*.x.test", "http://a.b.x.test", True),
        ("*.x.test", "http://ax.test", False),
        ("test", "http://x.test", True),
        ("localhost", "http://localhost:8080", True),
        ("x.*", "http://x.test", False),
        # One canonical form
        ("X.TEST", "http://x.test", True),
        ("x.test", "http://X.Test", True),
        ("x.test.", "http://x.test", True),
        ("x.test", "http://x.test.", True),
        ("straße.test", "http://xn--strae-oqa.test", True),
        ("xn--strae-oqa.test", "http://a.straße.test", True),
        # Ports
        ("x.test:80", "http://x.test", True),
        ("x.test:80", "ws://x.test", True),
        ("x.test:443", "wss://x.test", True),
        ("x.test:80", "http://x.test:8080", False),
        ("x.test:8080", "http://a.x.test:8080", True),
        ("*.x.test:8080", "http://a.x.test:8080", True),
        ("x.test:", "http://x.test", False),
        ("x.test:65535", "http://x.test:65535", True),
        ("x.test:99999", "http://x.test", False),
        # Lists
        ("a.test, x.test ,b.test", "http://x.test", True),
        ("a.test x.test\tb.test", "http://x.test", True),
        (",, ,x.test,,", "http://x.test", True),
        (",, ,", "http://x.test", False),
        # Addresses
        ("127.0.0.1", "http://127.0.0.1", True),
        ("127.0.0.1:80", "http://127.0.0.1", True),
        ("127.0.0.1:81", "http://127.0.0.1", False),
        (".127.0.0.1", "http://127.0.0.1", False),
        ("*.127.0.0.1", "http://127.0.0.1", False),
        ("[127.0.0.1]", "http://127.0.0.1", False),
        ("0.0.1", "http://127.0.0.1", False),
        (".0.0.1", "http://127.0.0.1", False),
        ("1", "http://127.0.0.1", False),
        ("127.0.0.1", "http://127.0.0.1.test", False),
        ("192.168.*", "http://192.168.0.1", False),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.1.2.3/8", "http://10.200.0.1", True),
        ("10.0.0.0/8", "http://11.0.0.1", False),
        ("10.0.0.0/8", "http://10.test", False),
        ("10.0.0.0/33", "http://10.0.0.1", False),
        ("0.0.0.0/0", "http://10.0.0.1", True),
        ("0.0.0.0/0", "http://[::1]", False),
        ("::1", "http://[::1]", True),
        ("[::1]", "http://[::1]", True),
        ("0:0::1", "http://[::1]", True),
        ("[::1]:80", "http://[::1]", True),
        ("[::1]:81", "http://[::1]", False),
        ("[::1]x", "http://[::1]", False),
        ("[::1", "http://[::1]", False),
        ("2001:db8::/32", "http://[2001:db8::5]", True),
        ("[2001:db8::]/32", "http://[2001:db8::5]", True),
        ("2001:db8::/32", "http://[2001:db9::5]", False),
        # IPv4-mapped addresses are the IPv4 addresses that would be dialled
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]", True),
        ("10.1.2.3", "http://[::ffff:10.1.2.3]", True),
        ("::ffff:10.0.0.0/104", "http://10.1.2.3", True),
        ("::ffff:10.1.2.3", "http://10.1.2.3", True),
        ("::/0", "http://10.1.2.3", False),
        ("::ffff:0:0/96", "http://10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "http://11.0.0.1", False),
        # Zones
        ("fe80::1", "http://[fe80::1%25eth0]", True),
        ("fe80::/10", "http://[fe80::1%25eth0]", True),
        # Nobody can be meant
        ("<local>", "http://x.test", False),
        ("<local>,x.test", "http://x.test", True),
        ("a..b,/,:,[],.", "http://x.test", False),
    ],
)
def test_no_proxy(no_proxy: str, url: str, direct: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        choice = proxy_for(url, {**ALL, name: no_proxy})
        assert (choice.proxy is None) is direct
        assert (f"{name} has the entry" in choice.reason) is direct


@pytest.mark.security(79)
@pytest.mark.parametrize("zone", ["25.example.com", "x.example.com"])
def test_zone_is_no_suffix(zone: str) -> None:
    host = parse_host(f"::1%{zone}")
    for entry in ("example.com", ".example.com", "*.example.com"):
        assert choose("http", host, 80, {"http_proxy": H, "no_proxy": entry}).proxy is not None
    for entry in ("::1", "[::1]", "[::1]:80"):
        assert choose("http", host, 80, {"http_proxy": H, "no_proxy": entry}).proxy is None


def test_zone_of_an_entry_counts() -> None:
    environ = {"http_proxy": H, "no_proxy": "fe80::1%eth0"}
    assert choose("http", parse_host("fe80::1%eth0"), 80, environ).proxy is None
    assert choose("http", parse_host("fe80::1%eth1"), 80, environ).proxy is not None
    assert choose("http", parse_host("fe80::1"), 80, environ).proxy is not None


def test_lower_case_no_proxy_wins_also_empty() -> None:
    assert proxy_for("http://x.test", {**ALL, "no_proxy": "", "NO_PROXY": "*"}).proxy is not None
    assert proxy_for("http://x.test", {**ALL, "no_proxy": "*", "NO_PROXY": ""}).proxy is None


def test_reason_names_rule_and_target() -> None:
    environ = {"https_proxy": "http://hidden:hidden@s.test", "NO_PROXY": "y.test"}
    choice = proxy_for("https://x.test", environ)
    assert choice.reason == "https_proxy names it for https, and no entry of NO_PROXY matches x.test:443."
    assert "hidden" not in repr(choice)
    assert (
        proxy_for("https://a.y.test:8", environ).reason == "NO_PROXY has the entry 'y.test', which matches a.y.test:8."
    )


@pytest.mark.parametrize(
    "value",
    ["socks://hidden@x", "http://hidden:hidden@", "hidden:hidden@x:y", "http://x/hidden", "ftp://x", "http://a b"],
)
def test_bad_values_name_the_variable_and_no_secret(value: str) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        with pytest.raises(InvalidTargetError, match=f"^{name}: ") as caught:
            proxy_for("http://x.test", {name: value})
        assert "hidden" not in str(caught.value)
    assert proxy_for("https://x.test", {"http_proxy": value}).proxy is None  # not the variable that applies
    assert proxy_for("http://x.test", {"http_proxy": value, "no_proxy": "x.test"}).proxy is None


@pytest.mark.parametrize(
    "url", ["x.test", "ftp://x.test", "http://", "tcp://x.test", "http://hidden@x.test", "unix:///x"]
)
def test_bad_targets(url: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        proxy_for(url, ALL)
    assert "hidden" not in str(caught.value)


def test_other_schemes_are_direct() -> None:
    choice = choose("unix", parse_host("x.test"), 80, ALL)
    assert choice.proxy is None
    assert "unix" in choice.reason


def test_os_environ_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_for("http://x.test").proxy is None
    monkeypatch.setenv("HTTP_PROXY", H)
    assert proxy_for("http://x.test").proxy == Proxy(H)


@pytest.mark.parametrize(
    ("url", "environ", "reason"),
    [
        ("http://x.test", {}, "http_proxy and all_proxy name no proxy."),
        ("tcp://x.test:1", {}, "all_proxy names no proxy."),
        ("http://x.test", {"http_proxy": H}, "http_proxy names it for http."),
        (
            "http://x.test",
            {"HTTP_PROXY": H, "REQUEST_METHOD": "GET", "all_proxy": A},
            "HTTP_PROXY is ignored because REQUEST_METHOD is set, all_proxy names it for http.",
        ),
    ],
)
def test_the_reason_is_a_sentence(url: str, environ: dict[str, str], reason: str) -> None:
    assert proxy_for(url, environ).reason == reason


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x.test", "scheme 'ftp': known are http, ws, https, wss, tcp, tls"),
        ("http://", "a host is missing behind http://"),
        ("http://hidden@x.test", "http://x.test: a target must not have a user; leave out what is before '@'"),
        ("tcp://x.test", "tcp://x.test needs a port"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(url: str, message: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        proxy_for(url, {})
    assert str(caught.value) == message
