"""Bad inputs at the connector: refused before anything happens, or failed closed; and what each error tells."""

from __future__ import annotations

import itertools
import logging
import ssl
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn
from trioconn import CertificateError, Fingerprint, InvalidTargetError, Proxy, ProxyConnectError, TLSError
from trioconn.testing import FakeNetwork

from .peers import LOGIN, SECRETS, Loopback, Visit

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Authority

pytest.importorskip("socksio", reason="the extra socks is not installed")


class Target:
    """A target as a client's own URL type may be."""

    def __init__(self, scheme: Any = "https", host: Any = "a.test", port: Any = 443) -> None:
        self.scheme, self.host, self.port = scheme, host, port


HOSTS = [
    "", " ", ".", "..", "a..b", ".a", "a" * 64 + ".test", "a." * 127 + "ab", "\u0660" * 100_000, "a\0b", "a\rb", "a\nb",
    "a\tb", "a\x7fb", "a\x85b", "a b", "a/b", "a\\b", "a@b", "a?b", "a#b", "a%b", "a:b", "[a]", "[127.0.0.1]", "127.1",
    "0177.0.0.1", "0x7f.1", "2130706433", "0", "1.2.3.256", "１２７.０.０.１", "127.0.0.1.", "localhost\0.evil.test",
    "☃.test", "xn--zzzz--", "xn--example-.org", "*.test", "[v1.x]",
]  # fmt: skip


def nothing_happens_for() -> dict[str, Callable[[trioconn.TCPConnector], Any]]:
    rows: dict[str, Callable[[trioconn.TCPConnector], Any]] = {}
    for host in HOSTS:
        shown = ascii(host[:20])
        rows[f"host {shown}"] = lambda c, host=host: c.connect(Target(host=host))
        rows[f"server name {shown}"] = lambda c, host=host: c.connect("https://a.test", server_hostname=host)
        if "@" not in host:  # there it ends a login
            rows[f"proxy host {shown}"] = lambda c, host=host: c.connect("https://a.test", proxy=f"http://{host}:1")
    for port in (0, -1, 65536, True, "443", 443.0):
        rows[f"port {port!r}"] = lambda c, port=port: c.connect(Target(port=port))
    for scheme in ("ftp", "", "unix", "npipe", None, 3):
        rows[f"scheme {scheme!r}"] = lambda c, scheme=scheme: c.connect(Target(scheme))
    for text in ("a\r\nb", "a\0b", "a\nProxy-Authorization: x", "a\x7f"):
        rows[f"header value {text!r}"] = lambda c, t=text: c.connect(
            "https://a.test", proxy=Proxy("http://p.test", headers={"X": t})
        )
        rows[f"header name {text!r}"] = lambda c, t=text: c.connect(
            "https://a.test", proxy=Proxy("http://p.test", headers={t: "x"})
        )
        rows[f"user {text!r}"] = lambda c, t=text: c.connect(
            "https://a.test", proxy=Proxy("http://p.test", auth=(t, "x"))
        )
        rows[f"password {text!r}"] = lambda c, t=text: c.connect(
            "https://a.test", proxy=Proxy("socks5://p.test", auth=("x", t))
        )
        rows[f"target {text!r}"] = lambda c, t=text: c.connect(f"https://a.test/{t}")
    for name in ("Host", "content-length", "Transfer-Encoding"):
        rows[f"header {name}"] = lambda c, name=name: c.connect(
            "https://a.test", proxy="http://p.test", proxy_headers={name: "1"}
        )
    for url in (
        "http://p.test/path", "http://p.test?query", "http://p.test#fragment", "ftp://p.test", "p.test", "http://", "http:///",
        "http://u:p@", "http://%0d%0a:p@p.test", "http://a%3Ab:p@p.test", "socks4://p.test", "socks5://:@p.test",
        f"socks5h://{'u' * 256}:p@p.test", f"socks5h://u:{'é' * 128}@p.test", "socks5://u:@p.test", "http://%ff:p@p.test",
    ):  # fmt: skip
        rows[f"proxy {url[:40]}"] = lambda c, url=url: c.connect("https://a.test", proxy=url)
    for url in ("https://user:hidden-password@a.test", "https:\\\\a.test", "https://a.test\\@b.test", "//a.test"):
        rows[f"target {url}"] = lambda c, url=url: c.connect(url)
    rows["pin on plain"] = lambda c: c.connect("http://a.test", ssl=Fingerprint(bytes(32)))
    rows["server_hostname on plain"] = lambda c: c.connect("http://a.test", server_hostname="b.test")
    rows["headers for two proxies"] = lambda c: c.connect(
        "https://a.test", proxy=["http://p.test", "http://q.test"], proxy_headers={"X": "y"}
    )
    for digest in (b"", bytes(16), bytes(20), bytes(31), bytes(33), "", "zz", "00" * 16, "00:" * 31, " "):
        rows[f"pin {digest!r}"] = lambda c, digest=digest: c.connect("https://a.test", ssl=Fingerprint(digest))
    for value in (0, "", "false", 1, [], (), Fingerprint, ssl, b"x" * 32):
        rows[f"ssl={value!r}"] = lambda c, value=value: c.connect("https://a.test", ssl=value)
    return rows


NOTHING = nothing_happens_for()


@pytest.mark.security(49)
@pytest.mark.security(50)
@pytest.mark.security(70)
@pytest.mark.security(72)
@pytest.mark.security(73)
@pytest.mark.security(74)
@pytest.mark.security(75)
@pytest.mark.security(76)
@pytest.mark.security(77)
@pytest.mark.security(86)
async def test_refused_before_anything_happens(caplog: pytest.LogCaptureFixture) -> None:
    """No lookup, no socket, no event, no log; and an error that is about the argument, and short."""
    caplog.set_level(logging.DEBUG)
    resolver, happened = Loopback(), []
    async with trioconn.TCPConnector(
        resolver=resolver, observers=[happened.append], socket_factory=happened.append
    ) as c:
        for what, connect in NOTHING.items():
            with pytest.raises((ValueError, TypeError)) as caught:
                await connect(c)
            error = caught.value
            assert not isinstance(error, OSError), what
            assert isinstance(error, InvalidTargetError | TypeError) or "pin" in what, what
            assert len(str(error)) < 700 and str(error).isprintable(), what
            assert "hidden" not in f"{error!r}{error.__context__!r}", what
            assert c.statistics().open == 0
    assert (resolver.asked, happened, caplog.text) == ([], [], "")


@pytest.mark.parametrize("value", [None, 0, "", "false", 1])
@pytest.mark.security(86)
def test_no_value_of_a_connector_means_off(value: Any) -> None:
    for make in (trioconn.TCPConnector, lambda **options: trioconn.UnixConnector("/x", **options)):
        with pytest.raises(TypeError, match="ssl must be"):
            make(ssl=value)


@pytest.mark.parametrize("name", ["A.test", "a.TEST.", "a。test", "ａ.test", "A.Test."])
@pytest.mark.security(69)
@pytest.mark.security(70)
@pytest.mark.parametrize("path", ["direct", "http", "socks5h"])
async def test_one_canonical_name_for_everybody(way: Any, ca1: Authority, path: str, name: str) -> None:
    """Question, CONNECT, SOCKS, SNI and certificate: all have the same name, and pins do not depend on it."""
    resolver = Loopback()
    async with way(path, ca1.server("a.test"), resolver=resolver) as w:
        (await w.connector.connect(w.target("https", name))).close()
        await w.peer.visits[0].wait_shaken()
        assert w.peer.visits[0].sni == "a.test"
        if path == "direct":
            assert [asked.removesuffix(".") for asked in resolver.asked] == ["a.test"]
        elif path == "http":
            assert w.proxies.heads[0].startswith(b"CONNECT a.test:")
        else:
            assert w.proxies.socks[0][2] == b"a.test"


@pytest.mark.security(69)
@pytest.mark.parametrize("path", ["direct", "http", "socks5h"])
async def test_names_are_those_of_idna_2008(way: Any, ca1: Authority, path: str) -> None:
    resolver = Loopback()
    async with way(path, ca1.server("xn--strae-oqa.test"), resolver=resolver) as w:
        (await w.connector.connect(w.target("https", "straße.test"))).close()
        await w.peer.visits[0].wait_shaken()
        told = {"direct": resolver.asked, "http": w.proxies.heads, "socks5h": [told[2] for told in w.proxies.socks]}[
            path
        ]
        assert "xn--strae-oqa.test" in str(told[0])
        assert w.peer.visits[0].sni == "xn--strae-oqa.test"


# What a peer may send instead of a handshake


def flood(visit: Visit) -> None:
    visit.sock.recv(1000)
    while True:
        visit.sock.sendall(b"\x15\x03\x03\x00\x02\x01\x5a" * 1000)


def endless_handshake(visit: Visit) -> None:
    visit.sock.recv(1000)
    visit.sock.sendall(b"\x16\x03\x03\x40\x00\x02\xff\xff\xff" + bytes(0x4000 - 4))
    while True:
        visit.sock.sendall(b"\x16\x03\x03\x40\x00" + bytes(0x4000))


@pytest.mark.parametrize("path", ["direct", "http"])
@pytest.mark.parametrize("script", [flood, endless_handshake])
async def test_floods_are_bounded(way: Any, ca1: Authority, path: str, script: Callable[[Visit], None]) -> None:
    with trio.fail_after(20):
        async with way(path, ca1.server(), raw=script) as w:
            with pytest.raises(TLSError):
                await w.connector.connect(w.target("https"))
            w.check_closed()
            await w.peer.visits[0].wait_ended()


async def test_endless_certificates_are_bounded(way: Any, ca1: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf = ca1.ca.issue_cert("a.test")
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(leaf.private_key_and_cert_chain_pem.bytes() + ca1.ca.cert_pem.bytes() * 400)
        file.flush()
        context.load_cert_chain(file.name)
    async with way("direct", context) as w:
        with pytest.raises(TLSError, match="certificates"):
            await w.connector.connect(w.target("https"))
        w.check_closed()


@pytest.mark.security(48)
@pytest.mark.parametrize("stage", ["head", "interim", "tls", "refusal"])
async def test_one_byte_a_second_does_not_prolong_the_deadline(
    stage: str, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, client_ssl: ssl.SSLContext
) -> None:
    said = {
        "head": itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], itertools.repeat(b"x")),
        "interim": itertools.repeat(b"HTTP/1.1 103 wait\r\n\r\n"),
        "tls": itertools.chain(
            [b"HTTP/1.1 200 OK\r\n\r\n"], [b"\x16", b"\x03", b"\x03", b"\x40"], itertools.repeat(b"\0")
        ),
        "refusal": itertools.chain([b"HTTP/1.1 403 no\r\nContent-Length: 1000000\r\n\r\n"], itertools.repeat(b"x")),
    }[stage]

    async def drip(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for data in said:
            await stream.send_all(data)
            await trio.sleep(1)

    network = FakeNetwork(nursery)
    network.add_host("p.test", "192.0.2.1")
    network.listen("192.0.2.1", drip)
    async with network.connector(connect_timeout=5, proxy="http://p.test", ssl=client_ssl) as connector:
        with pytest.raises(trioconn.ConnectError):
            await connector.connect("https://a.test")
        assert trio.current_time() <= 5
        assert stage == "refusal" or trio.current_time() == 5
    nursery.cancel_scope.cancel()


# Messages


MESSAGES: dict[str, tuple[Callable[[Authority, Authority], ssl.SSLContext], dict[str, Any], list[str]]] = {
    "name": (lambda one, two: one.server("b.test"), {}, ["a.test:", "not for the name 'a.test'", "server_hostname="]),
    "given name": (
        lambda one, two: one.server("b.test"),
        {"server_hostname": "c.test"},
        ["https://a.test:", "not for the name 'c.test'", "server_hostname="],
    ),
    "authority": (
        lambda one, two: two.server(),
        {},
        ["https://a.test:", "authority is not trusted", "cafile", "ssl=", "whole chain"],
    ),
    "dates": (lambda one, two: one.expired("a.test"), {}, ["https://a.test:", "has expired", "renewed", "clock"]),
    "pin": (
        lambda one, two: one.server(),
        {"ssl": Fingerprint(b"\xab" * 32)},
        ["https://a.test:", "expected SHA-256 " + "ab" * 32, "got ", "renewed", "somebody else"],
    ),
    "long pin": (lambda one, two: one.server(), {"ssl": Fingerprint(bytes(64))}, ["expected SHA-512 " + "00" * 64]),
}


@pytest.mark.parametrize("what", MESSAGES)
@pytest.mark.parametrize("path", ["direct", "http"])
async def test_what_an_error_tells(way: Any, ca1: Authority, ca2: Authority, path: str, what: str) -> None:
    context, options, words = MESSAGES[what]
    async with way(path, context(ca1, ca2)) as w:
        with pytest.raises(TLSError) as caught:
            await w.connector.connect(w.target("https"), **options)
        message = str(caught.value)
        assert [word for word in words if word not in message] == [], message
        assert ("via http://proxy.test" in message) is (path == "http")
        assert len(message) < 400 + 128 * ("pin" in what)
        assert not any(secret in message for secret in SECRETS)


async def test_what_an_error_tells_of_a_proxy(way: Any, ca1: Authority) -> None:
    async with way("direct", ca1.server()) as w:
        url = w.proxies.url("https", "other.test")
        for proxy, words in (
            (
                Proxy(url, auth=LOGIN, ssl=ca1.client()),
                ["not for the name 'other.test'", "server_hostname= of that Proxy"],
            ),
            (Proxy(url, auth=LOGIN), ["authority is not trusted", "ssl= of that Proxy"]),
            (Proxy(url, auth=LOGIN, ssl=Fingerprint(bytes(32))), ["not the pinned one", "expected SHA-256 00"]),
        ):
            with pytest.raises(ProxyConnectError) as caught:
                await w.connector.connect(w.target("https"), proxy=proxy)
            error = caught.value
            assert isinstance(error.__cause__, CertificateError | trioconn.FingerprintMismatchError)
            assert [word for word in [url, *words] if word not in str(error)] == []
            assert not any(secret in f"{error}{error!r}{error.__cause__!r}" for secret in SECRETS)
            assert error.hop == 0
            w.check_closed()
        assert w.proxies.heads == []
