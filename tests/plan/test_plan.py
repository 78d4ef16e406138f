"""The one table of combinations: targets and options in, routes or named errors out. No I/O anywhere."""

from __future__ import annotations

import socket
import ssl
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio

import trioconn
from trioconn import Fingerprint, InvalidTargetError, Proxy, TCPConnector, UnixConnector
from trioconn._establish import unix
from trioconn._establish.unix import check_unix_path
from trioconn._names import parse_host
from trioconn._route import ConnectStep, CustomHop, SocksStep, TCPHop, TLSStep, UnixHop

if TYPE_CHECKING:
    from trioconn import BaseConnector, Route

PIN = Fingerprint("ab" * 32)


@pytest.fixture
def tcp() -> TCPConnector:
    return TCPConnector()


def kinds(route: Route) -> list[str]:
    """The steps of a route in short: the kind, and whose it is."""
    names = {TLSStep: "tls", ConnectStep: "connect", SocksStep: "socks"}
    return [f"{names[type(step)]}{step.hop}" for step in route.steps]


DIRECT = [
    ("http://a.test", 80, []),
    ("https://a.test", 443, ["tls-1"]),
    ("ws://a.test", 80, []),
    ("wss://a.test", 443, ["tls-1"]),
    ("tcp://a.test:9", 9, []),
    ("tls://a.test:9", 9, ["tls-1"]),
    ("HTTPS://A.Test:8443/path?query#fragment", 8443, ["tls-1"]),
]


@pytest.mark.aiohttp("get_ssl_context1")
@pytest.mark.parametrize(("url", "port", "steps"), DIRECT)
def test_direct(tcp: TCPConnector, url: str, port: int, steps: list[str]) -> None:
    route = tcp.route(url)
    assert (route.host, route.port, kinds(route)) == ("a.test", port, steps)
    assert route.is_ssl == bool(steps)
    assert route.endpoint == ("a.test", port, bool(steps))
    assert route.server_name == ("a.test" if steps else None)
    assert route.scheme == url.partition(":")[0].lower()
    assert not route.forwarded
    assert route.proxies == ()


PROXIED = {
    # scheme: (through an http proxy, an https proxy, socks5, socks5h, an https proxy and then an http one)
    "http": ([], ["tls0"], ["socks0"], ["socks0"], ["tls0", "connect0"]),
    "https": (
        ["connect0", "tls-1"],
        ["tls0", "connect0", "tls-1"],
        ["socks0", "tls-1"],
        ["socks0", "tls-1"],
        ["tls0", "connect0", "connect1", "tls-1"],
    ),
    "ws": (["connect0"], ["tls0", "connect0"], ["socks0"], ["socks0"], ["tls0", "connect0", "connect1"]),
}
PROXIED["wss"] = PROXIED["tls"] = PROXIED["https"]
PROXIED["tcp"] = PROXIED["ws"]
CHAINS: list[str | list[str]] = [
    "http://p.test",
    "https://p.test",
    "socks5://p.test",
    "socks5h://p.test",
    ["https://p.test", "http://q.test:3128"],
]


@pytest.mark.security(17)
@pytest.mark.security(37)
@pytest.mark.security(38)
@pytest.mark.parametrize("scheme", PROXIED)
@pytest.mark.parametrize("column", range(len(CHAINS)))
def test_through_proxies(tcp: TCPConnector, scheme: str, column: int) -> None:
    route = tcp.route(f"{scheme}://a.test:9", proxy=CHAINS[column])
    assert kinds(route) == PROXIED[scheme][column]
    assert isinstance(route.first, TCPHop)
    assert route.first.host.name == "p.test"  # the first of a chain is the one that is dialled
    by_http = column in (0, 1, 4)
    assert route.forwarded == (scheme == "http" and by_http)
    if route.forwarded:
        last = ("q.test", 3128, False) if column == 4 else ("p.test", 443 if column else 80, column == 1)
        assert route.endpoint == last
        assert (route.host, route.port) == last[:2]
    else:
        assert route.endpoint == ("a.test", 9, scheme in ("https", "wss", "tls"))
        tunnels = [step for step in route.steps if isinstance(step, ConnectStep | SocksStep)]
        assert (tunnels[-1].host.name, tunnels[-1].port) == ("a.test", 9)
    assert [proxy.host for proxy in route.proxies] == ["p.test", "q.test"][: 2 if column == 4 else 1]


def test_forwarded_routes_are_shared_between_origins_and_tell_what_the_proxy_needs(tcp: TCPConnector) -> None:
    one, two = (
        tcp.route(f"http://{host}.test", proxy="http://me:secret@p.test", proxy_headers={"X-A": "b"}) for host in "ab"
    )
    assert one == two
    assert hash(one) == hash(two)
    assert one.request_headers is not None
    assert one.request_headers.value == ((b"Proxy-Authorization", b"Basic bWU6c2VjcmV0"), (b"X-A", b"b"))
    assert "secret" not in repr(one)
    assert "bWU6" not in repr(one)
    assert one != tcp.route("http://a.test", proxy="http://me:other@p.test", proxy_headers={"X-A": "b"})


@dataclass
class Target:
    scheme: Any = "https"
    host: Any = "a.test"
    port: Any = None


def test_targets_with_scheme_host_and_port(tcp: TCPConnector) -> None:
    assert tcp.route(Target()) == tcp.route("https://a.test")
    assert tcp.route(Target("http", "fe80::1%lo", 81)).host == "fe80::1%lo"
    with pytest.raises(TypeError, match="has \\.scheme"):
        tcp.route(443)
    for bad in (
        Target(host=""),
        Target(host=None),
        Target(host=b"a.test"),
        Target(port=0),
        Target(port="443"),
        Target(port=True),
        Target(port=443.0),
        Target(port=65536),
        Target(scheme=None),
        Target(scheme="ftp"),
    ):
        with pytest.raises(InvalidTargetError):
            tcp.route(bad)


BAD_URLS = [
    "a.test",
    "//a.test",
    "ftp://a.test",
    "https://",
    "https:///path",
    "https://user@a.test",
    "https://user:hunter2@a.test",
    "https://a.test:0",
    "https://a.test:65536",
    "https://a.test:http",
    "tcp://a.test",
    "tls://a.test",
    "https://a.test\r\n",
    "https://a.te\tst",
    "https://a .test",
    "https://127.1",
    "https://0x7f.1",
    "https://2130706433",
    "https://[a.test]",
    "https://[127.0.0.1]",
    "https://a%2etest",
    "https://a.test\\@b.test",
    "https://*.test",
    "https://☃.test",
    "unix:/tmp/x",
    "npipe:",
]


@pytest.mark.security(49)
@pytest.mark.security(50)
@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_targets(tcp: TCPConnector, url: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        tcp.route(url)
    assert isinstance(caught.value, ValueError)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_final_dot_is_part_of_the_key_and_of_nothing_else(tcp: TCPConnector) -> None:
    dotted, plain = tcp.route("https://a.test."), tcp.route("https://A.TEST")
    assert dotted != plain
    assert dotted.server_name == plain.server_name == "a.test"
    assert dotted.endpoint == plain.endpoint


# TLS options


@pytest.mark.security(86)
@pytest.mark.aiohttp("invalid_ssl_param")
@pytest.mark.parametrize("value", [0, 1, "", "false", b"", object(), ssl.CERT_NONE])
def test_ssl_takes_nothing_that_could_be_meant_as_off(tcp: TCPConnector, value: Any) -> None:
    with pytest.raises(TypeError, match="ssl must be True, False"):
        tcp.route("https://a.test", ssl=value)
    with pytest.raises(TypeError, match="ssl must be True, False"):
        TCPConnector(ssl=value)
    with pytest.raises(TypeError):
        Proxy("https://p.test", ssl=value)


def test_none_is_no_value_for_the_connector_and_its_default_for_a_call(tcp: TCPConnector) -> None:
    with pytest.raises(TypeError, match="ssl must be True"):
        TCPConnector(ssl=None)  # type: ignore[arg-type]
    assert tcp.route("https://a.test", ssl=None) == tcp.route("https://a.test", ssl=True)


def test_older_spellings() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    digest = bytes(32)

    def step(**options: Any) -> TLSStep:
        (tls,) = TCPConnector(**options).route("https://a.test").steps
        assert isinstance(tls, TLSStep)
        return tls

    assert step(verify_ssl=False) == step(ssl=False) != step()
    assert step(verify_ssl=True) == step()
    assert step(fingerprint=digest) == step(ssl=Fingerprint(digest))
    assert step(fingerprint=digest).pin == digest
    assert step(ssl_context=context) == step(ssl=context) != step()


@pytest.mark.parametrize(
    "options",
    [
        {"ssl": False, "verify_ssl": False},
        {"verify_ssl": True, "fingerprint": bytes(32)},
        {"ssl": PIN, "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
        {"fingerprint": bytes(32), "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
    ],
)
def test_at_most_one_of_the_four_spellings(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        TCPConnector(**options)


@pytest.mark.parametrize(
    "options", [{"verify_ssl": 1}, {"ssl_context": True}, {"fingerprint": 7}, {"fingerprint": "zz" * 32}]
)
def test_older_spellings_of_the_wrong_type(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        TCPConnector(**options)


@pytest.mark.aiohttp("insecure_fingerprint_md5")
@pytest.mark.aiohttp("insecure_fingerprint_sha1")
@pytest.mark.aiohttp("tcp_connector_ctor_fingerprint_valid")
def test_fingerprints() -> None:
    assert Fingerprint("AB:" * 31 + "AB").digest == Fingerprint("ab" * 32).digest == b"\xab" * 32
    assert len(Fingerprint(bytes(48)).digest) == 48
    assert len(Fingerprint(bytes(64)).digest) == 64
    for length, name in ((16, "MD5"), (20, "SHA-1")):
        with pytest.raises(ValueError, match=name):
            Fingerprint(bytes(length))
    for bad in (b"", bytes(31), bytes(33), "", "xyz"):
        with pytest.raises(ValueError, match=r"digest|hexadecimal"):
            Fingerprint(bad)
    for wrong in (None, 7, [bytes(32)], bytearray(32)):
        with pytest.raises(TypeError):
            Fingerprint(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Fingerprint(bytes(32), context=True)  # type: ignore[arg-type]
    assert not Fingerprint(bytes(32)).matches(b"")


def test_options_for_tls_are_no_part_of_a_plain_route() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with_pin = TCPConnector(ssl=PIN)
    assert kinds(with_pin.route("http://a.test")) == []
    tcp = TCPConnector()
    plain = tcp.route("http://a.test")
    assert tcp.route("http://a.test", ssl=False) == plain
    assert tcp.route("http://a.test", ssl=context) == plain
    assert tcp.route("http://a.test", ssl=context).contexts == ()
    assert tcp.route("http://a.test", alpn_protocols=["h2"]) == plain
    with pytest.raises(InvalidTargetError, match="Fingerprint"):
        tcp.route("http://a.test", ssl=PIN)
    with pytest.raises(InvalidTargetError, match="server_hostname"):
        tcp.route("http://a.test", server_hostname="b.test")


def test_alpn(tcp: TCPConnector) -> None:
    assert tcp.route("https://a.test", alpn_protocols=["h2", "http/1.1"]).alpn_protocols == ("h2", "http/1.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for option in (context, Fingerprint(bytes(32), context=context)):
        with pytest.raises(TypeError, match="set_alpn_protocols"):
            tcp.route("https://a.test", ssl=option, alpn_protocols=["h2"])
    assert tcp.route("https://a.test", ssl=PIN, alpn_protocols=["h2"]).alpn_protocols == ("h2",)
    for wrong in ("h2", b"h2", [b"h2"], [7]):
        with pytest.raises(TypeError):
            tcp.route("https://a.test", alpn_protocols=wrong)  # type: ignore[arg-type]
    for bad in ([""], ["ä"], ["x" * 256]):
        with pytest.raises(InvalidTargetError):
            tcp.route("https://a.test", alpn_protocols=bad)


def test_server_hostname_is_made_canonical_and_checked(tcp: TCPConnector) -> None:
    assert tcp.route("https://127.0.0.1", server_hostname="B.Test.").server_name == "b.test"
    assert tcp.route("https://[fe80::1%lo]").server_name == "fe80::1"
    for bad in ("", "a b", "a\0b", "b.test:443"):
        with pytest.raises(InvalidTargetError):
            tcp.route("https://a.test", server_hostname=bad)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system")
def test_a_context_that_checks_names_needs_one() -> None:
    connector = UnixConnector("/tmp/x")
    assert kinds(connector.route("https://a.test")) == ["tls-1"]
    assert kinds(connector.route("unix:")) == []


# Proxies


@pytest.mark.parametrize(
    "proxy",
    ["ftp://p.test", "p.test:3128", "http://", "http://p.test/path", "http://a:b@c:d@p.test\r\n", ["http://p", ""]],
)
def test_bad_proxies(tcp: TCPConnector, proxy: Any) -> None:
    for attempt in (lambda: tcp.route("https://a.test", proxy=proxy), lambda: TCPConnector(proxy=proxy)):
        with pytest.raises(InvalidTargetError):
            attempt()


@pytest.mark.parametrize("proxy", [7, True, b"http://p.test", {"http": "x"}, [None]])
def test_proxies_of_the_wrong_type(tcp: TCPConnector, proxy: Any) -> None:
    with pytest.raises(TypeError):
        tcp.route("https://a.test", proxy=proxy)


def test_an_empty_sequence_is_a_direct_connection() -> None:
    tcp = TCPConnector(proxy="http://p.test")
    assert tcp.route("https://a.test").proxies != ()
    assert tcp.route("https://a.test", proxy=()) == TCPConnector().route("https://a.test")


def test_proxy_headers_need_exactly_one_http_proxy(tcp: TCPConnector) -> None:
    for proxy in (None, (), "socks5://p.test", ["http://p.test", "http://q.test"]):
        with pytest.raises(InvalidTargetError, match="exactly one HTTP proxy"):
            tcp.route("https://a.test", proxy=proxy, proxy_headers={"X": "y"})
    with pytest.raises(InvalidTargetError):
        tcp.route("https://a.test", proxy="http://p.test", proxy_headers={"X": "y\r\nZ: q"})


def test_the_environment_is_asked_only_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://env.test:3128")
    monkeypatch.setenv("no_proxy", "b.test")
    assert TCPConnector().route("https://a.test").proxies == ()
    trusting = TCPConnector(trust_env=True)
    assert [str(proxy) for proxy in trusting.route("https://a.test").proxies] == ["http://env.test:3128"]
    assert trusting.route("https://b.test").proxies == ()
    assert trusting.route("https://a.test", proxy=()).proxies == ()
    assert TCPConnector(trust_env=True, proxy=()).route("https://a.test").proxies == ()


def test_an_address_policy_refuses_what_a_proxy_would_resolve_unseen() -> None:
    tcp = TCPConnector(address_policy=trioconn.public_addresses_only)
    for proxy in ("http://p.test", "https://p.test", "socks5h://p.test", "socks4a://p.test"):
        for scheme in ("http", "https"):
            with pytest.raises(trioconn.AddressDeniedError, match="out of its sight"):
                tcp.route(f"{scheme}://a.test", proxy=proxy)
            with pytest.raises(trioconn.AddressDeniedError, match="does not allow"):
                tcp.route(f"{scheme}://10.0.0.1", proxy=proxy)
            assert tcp.route(f"{scheme}://8.8.8.8", proxy=proxy).proxies
    assert tcp.route("https://a.test", proxy="socks5://p.test").proxies  # judged when it is resolved
    assert tcp.route("https://a.test").proxies == ()


# Local address, Unix, isolation


def test_local_addr(tcp: TCPConnector) -> None:
    assert tcp.route("http://a.test", local_addr=("127.0.0.1", 0)).local_addr == ("127.0.0.1", 0)
    assert TCPConnector(local_addr=("::1", 5)).route("http://a.test").local_addr == ("::1", 5)
    for bad in (("localhost", 0), ("127.0.0.1", -1), ("127.0.0.1", 65536), ("127.1", 0), ("127.0.0.1", False)):
        with pytest.raises(InvalidTargetError):
            tcp.route("http://a.test", local_addr=bad)
    for wrong in ("127.0.0.1", ("127.0.0.1",), 7, ("127.0.0.1", 0, 0)):
        with pytest.raises(TypeError):
            tcp.route("http://a.test", local_addr=wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system")
def test_unix_routes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    connector = UnixConnector("x.sock")
    monkeypatch.chdir("/")
    path = str(tmp_path / "x.sock")
    assert connector.path == path
    for target in (
        "http://a.test",
        "ws://a.test",
        "unix:",
        "unix://",
        f"unix:{path}",
        "tcp://a.test",
        "https://a.test",
    ):
        route = connector.route(target)
        assert (route.path, route.endpoint, route.first) == (path, path, UnixHop(path))
        assert kinds(route) == (["tls-1"] if target.startswith("https") else [])
    with pytest.raises(InvalidTargetError, match="this connector goes to"):
        connector.route("unix:/another")
    for option in ({"proxy": "http://p.test"}, {"local_addr": ("127.0.0.1", 0)}, {"proxy_headers": {"A": "b"}}):
        with pytest.raises(InvalidTargetError):
            connector.route("http://a.test", **option)
    assert connector.route("http://a.test", proxy=()) == connector.route("http://a.test")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system")
@pytest.mark.parametrize("path", ["", "a\0b", "x" * 200, "/" + "x" * 108, "\0"])
def test_bad_unix_paths(path: str) -> None:
    with pytest.raises(InvalidTargetError):
        UnixConnector(path)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system")
def test_abstract_unix_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are no files: Linux has them. Elsewhere the name would be a file's, or be cut at the NUL."""
    monkeypatch.setattr(unix, "sys", SimpleNamespace(platform="linux"))
    connector = UnixConnector("\0name")
    assert connector.path == "\0name"
    assert connector.route("unix:").first == UnixHop("\0name")
    monkeypatch.setattr(unix, "sys", SimpleNamespace(platform="darwin"))
    with pytest.raises(InvalidTargetError, match="Linux only"):
        UnixConnector("\0name")


@pytest.mark.parametrize("path", [7, None, ["/x"]])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(path).__name__}"):
        check_unix_path(path)


def test_a_system_without_unix_sockets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(NotImplementedError, match="no Unix sockets"):
        UnixConnector("/x")


@pytest.mark.security(6)
@pytest.mark.security(7)
@pytest.mark.security(8)
def test_isolation_is_compared_with_its_type(tcp: TCPConnector) -> None:
    values = [None, "", "x", b"", b"x", 0, 1, True, False, "1", (), ("",), (1,), (True,), ("a", "b"), (("a",), "b")]
    routes = [tcp.route("https://a.test", isolation=value) for value in values]
    assert len(set(routes)) == len(values)
    assert tcp.route("https://a.test", isolation=("a", "b")) == routes[14]
    for wrong in (1.5, ["a"], {"a"}, object(), ("a", 1.5)):
        with pytest.raises(TypeError, match="isolation must be"):
            tcp.route("https://a.test", isolation=wrong)  # type: ignore[arg-type]


def test_a_missing_extra_is_named_before_anything_is_dialled(
    tcp: TCPConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ImportError, match=r"trioconn\[socks\]"):
        tcp.route("https://a.test", proxy="socks5h://p.test")
    assert tcp.route("https://a.test", proxy="http://p.test").proxies


# Connectors of one's own, and whose routes are whose


async def test_connectors_that_dial_by_themselves_make_no_stream_for_others(tcp: TCPConnector) -> None:
    with pytest.raises(NotImplementedError, match="subclass BaseConnector"):
        await tcp.create_stream(tcp.route("http://a.test"))


class Own(trioconn.BaseConnector):
    async def create_stream(self, route: Route) -> trio.abc.Stream:
        raise NotImplementedError


def test_a_connector_of_ones_own_gets_the_same_routes() -> None:
    own = Own()
    assert kinds(own.route("https://a.test", ssl=PIN)) == ["tls-1"]
    for option in ({"proxy": "http://p.test"}, {"local_addr": ("127.0.0.1", 0)}):
        with pytest.raises(InvalidTargetError):
            own.route("https://a.test", **option)


def test_a_connector_of_ones_own_may_have_schemes_of_its_own() -> None:
    class Queue(Own):
        schemes: ClassVar[frozenset[str]] = frozenset({"queue", "tcp"})

    route = Queue().route("queue://a.test:5")
    assert (route.scheme, route.host, route.port, route.is_ssl, kinds(route)) == ("queue", "a.test", 5, False, [])
    with pytest.raises(InvalidTargetError, match="needs a port"):
        Queue().route("queue://a.test")
    with pytest.raises(InvalidTargetError, match="it takes queue, tcp"):
        Queue().route("https://a.test")


async def test_a_route_is_accepted_by_its_maker_only() -> None:
    async with TCPConnector() as mine, TCPConnector() as other:
        route = other.route("http://127.0.0.1:1")
        with pytest.raises(TypeError, match="another connector"):
            await mine.connect(route)
        with pytest.raises(TypeError, match="another connector"):
            mine.connect_nowait(route)
        with pytest.raises(TypeError, match="options inside"):
            await other.connect(route, ssl=False)
        with pytest.raises(TypeError, match="a Route already"):
            other.route(route)


@pytest.mark.parametrize("make", [TCPConnector, Own])
@pytest.mark.aiohttp("ctor_with_default_loop")
def test_what_does_not_exist_here_says_what_to_use(make: type[BaseConnector]) -> None:
    with pytest.raises(TypeError, match="leave it out"):
        make(loop=None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'limits'"):
        make(limits=3)
    connector = make()
    with pytest.raises(AttributeError, match="await connector\\.aclose"):
        connector.close  # noqa: B018
    with pytest.raises(TypeError, match="async with"), connector:
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"limit": -1},
        {"limit_per_host": -1},
        {"keepalive_timeout": -0.1},
        {"keepalive_timeout": float("nan")},
        {"connect_timeout": -1},
        {"connect_timeout": float("nan")},
        {"max_lifetime": -1},
        {"lifetime_jitter": 1.1},
        {"lifetime_jitter": -0.1},
        {"timeout_ceil_threshold": float("nan")},
        {"max_uses": 0},
        {"max_uses": -1},
        {"ttl_dns_cache": -1},
        {"ttl_dns_cache": float("nan")},
        {"dns_cache_max_size": -1},
        {"happy_eyeballs_delay": -1},
        {"happy_eyeballs_delay": float("nan")},
        {"interleave": -1},
        {"ssl_shutdown_timeout": -1},
        {"family": 12345},
    ],
)
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TCPConnector(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": "100"},
        {"limit": True},
        {"limit": 1.5},
        {"keepalive_timeout": "15"},
        {"connect_timeout": True},
        {"observers": [7]},
        {"resolver": object()},
        {"socket_factory": 7},
        {"address_policy": 7},
    ],
)
def test_options_of_the_wrong_type(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        TCPConnector(**options)


@pytest.mark.aiohttp("limit_property")
@pytest.mark.aiohttp("limit_per_host_property")
@pytest.mark.aiohttp("limit_property_default")
@pytest.mark.aiohttp("limit_per_host_property_default")
@pytest.mark.aiohttp("default_force_close")
@pytest.mark.aiohttp("default_use_dns_cache")
@pytest.mark.aiohttp("tcp_connector_ctor")
def test_properties() -> None:
    tcp = TCPConnector()
    assert (tcp.limit, tcp.limit_per_host, tcp.force_close, tcp.closed) == (100, 0, False, False)
    assert (tcp.family, tcp.use_dns_cache) == (0, True)
    other = TCPConnector(
        limit=None, limit_per_host=5, force_close=True, family=socket.AF_INET6, use_dns_cache=False, max_uses=None
    )
    assert (other.limit, other.limit_per_host, other.force_close) == (0, 5, True)
    assert (other.family, other.use_dns_cache) == (socket.AF_INET6, False)


@pytest.mark.aiohttp("tcp_connector_clear_dns_cache_bad_args")
def test_a_port_alone_is_no_key_of_the_dns_cache(tcp: TCPConnector) -> None:
    tcp.clear_dns_cache()
    tcp.clear_dns_cache("a.test")
    tcp.clear_dns_cache("a.test", 80)
    with pytest.raises(ValueError, match="not a port alone"):
        tcp.clear_dns_cache(port=80)


@pytest.mark.parametrize("way", ["target", "pin", "proxy"])
def test_a_context_for_servers_is_refused_before_any_io(way: str) -> None:
    """The standard mistake of ``create_default_context(Purpose.CLIENT_AUTH)``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    connector = trioconn.TCPConnector()
    options: dict[str, Any] = {
        "target": {"ssl": context},
        "pin": {"ssl": trioconn.Fingerprint(b"x" * 32, context=context)},
        "proxy": {"proxy": trioconn.Proxy("https://proxy.test", ssl=context)},
    }[way]
    with pytest.raises(trioconn.InvalidTargetError, match="for servers"):
        connector.route("https://a.test", **options)


def test_each_proxy_of_a_chain_is_asked_for_the_next(tcp: TCPConnector) -> None:
    chain = ["http://p.test:1", "socks5h://q.test:2", Proxy("https://r.test:3", ssl=PIN)]
    *tunnels, secured, last, tls = tcp.route("https://a.test", proxy=chain).steps
    assert isinstance(secured, TLSStep) and isinstance(last, ConnectStep) and isinstance(tls, TLSStep)
    behind = [(step.host.name, step.port) for step in tunnels if isinstance(step, ConnectStep | SocksStep)]
    assert behind == [("q.test", 2), ("r.test", 3)]
    assert (last.host.name, last.port) == ("a.test", 443)
    assert (secured.hop, secured.pin, secured.alpn) == (2, PIN.digest, ())
    assert (tls.hop, tls.pin) == (-1, None)


def test_the_environments_exclusions_know_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://env.test:3128")
    monkeypatch.setenv("no_proxy", "a.test:8443")
    trusting = TCPConnector(trust_env=True)
    assert trusting.route("https://a.test:8443").proxies == ()
    assert trusting.route("https://a.test").proxies


def test_a_policy_is_asked_about_the_address_as_name_and_as_address() -> None:
    asked: list[tuple[str, str]] = []

    def policy(host: str, address: object) -> bool:
        asked.append((host, str(address)))
        return False

    with pytest.raises(trioconn.AddressDeniedError) as caught:
        TCPConnector(address_policy=policy).route("http://192.0.2.1", proxy="http://p.test")
    assert (asked, caught.value.stage) == ([("192.0.2.1", "192.0.2.1")], "connect")
    with pytest.raises(trioconn.AddressDeniedError) as caught:
        TCPConnector(address_policy=policy).route("http://a.test", proxy="http://p.test")
    assert (len(asked), caught.value.stage) == (1, "resolve")


def test_a_fingerprint_by_its_older_spelling_may_be_ready_made() -> None:
    pinned = TCPConnector(fingerprint=PIN)
    assert pinned.route("https://a.test") == TCPConnector(ssl=PIN).route("https://a.test")


def test_alpn_names_have_up_to_255_characters(tcp: TCPConnector) -> None:
    assert tcp.route("https://a.test", alpn_protocols=["x" * 255, "y"]).alpn_protocols == ("x" * 255, "y")
    for bad in ("x" * 256, "", "é"):
        with pytest.raises(InvalidTargetError, match=r"ALPN protocol .*: 1 to 255 ASCII characters"):
            tcp.route("https://a.test", alpn_protocols=[bad])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proxy": 7}, "proxy must be a URL, a Proxy or a sequence of these, not int"),
        ({"proxy": [7]}, "a proxy is a URL or a Proxy, not a int"),
        ({"verify_ssl": 1}, "verify_ssl must be a bool, not int"),
        ({"ssl_context": True}, "ssl_context must be an ssl.SSLContext, not bool"),
        (
            {"verify_ssl": True, "fingerprint": bytes(32)},
            "verify_ssl and fingerprint exclude each other: give one of them",
        ),
        (
            {"ssl": PIN, "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
            "ssl and ssl_context exclude each other: give one of them",
        ),
        (
            {"ssl": None},
            "ssl must be True, False (TLS without verification), an ssl.SSLContext or a Fingerprint, not NoneType",
        ),
        ({"local_addr": "127.0.0.1"}, "local_addr must be a pair (IP address, port), not 127.0.0.1"),
        ({"local_addr": ("a.test", 0)}, "local_addr: a.test must be an IP address of this machine, not a name"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        TCPConnector(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"alpn_protocols": "h2"},
            "alpn_protocols must be a sequence of names, as in ['h2', 'http/1.1'], not a single string",
        ),
        ({"alpn_protocols": [7]}, "the names in alpn_protocols must be str, not int"),
        (
            {"alpn_protocols": ["h2"], "ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
            "alpn_protocols is for contexts that we make: call set_alpn_protocols on your SSLContext",
        ),
        (
            {"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
            "this SSLContext is for servers: make one with ssl.create_default_context(), without Purpose.CLIENT_AUTH",
        ),
    ],
)
def test_what_is_wrong_with_an_option_of_a_call_is_said(
    tcp: TCPConnector, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, InvalidTargetError)) as caught:
        tcp.route("https://a.test", **options)
    assert str(caught.value) == message


def test_routes_of_a_connector_of_ones_own_differ_by_host_and_port() -> None:
    own = Own()
    route = own.route("http://a.test")
    assert isinstance(route.first, CustomHop)
    assert (route.first.host, route.first.port) == (parse_host("a.test"), 80)
    assert len({route, own.route("http://b.test"), own.route("http://a.test:81"), own.route("http://a.test:80")}) == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(host=""), "https:// needs a host, as in https://example.org"),
        (Target(host=None), "https:// needs a host, as in https://example.org"),
        (Target(scheme=7), "scheme must be a str, not int"),
        (
            "https://user@a.test",
            "https://a.test: a target has no user or password; they belong into the request's headers",
        ),
    ],
)
def test_what_is_wrong_with_a_target_is_said(tcp: TCPConnector, target: Any, message: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        tcp.route(target)
    assert str(caught.value) == message


def test_what_is_no_target(tcp: TCPConnector) -> None:
    what = "a target is a URL, a Route of this connector, or has .scheme, .host and .port; this is a int"
    with pytest.raises(TypeError) as caught:
        tcp.route(443)
    assert str(caught.value) == what


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system")
def test_the_root_is_no_path_of_another_connector() -> None:
    own = UnixConnector("/run/x")
    assert own.route("unix:/") == own.route("unix:///run/x") == own.route("unix:")
    with pytest.raises(InvalidTargetError, match=r"not to '/run/y'; make another connector for that path$"):
        own.route("unix:/run/y")
