"""``trace`` for real, on loopback: what it finds, what it writes, and its exit codes."""

from __future__ import annotations

import importlib
import json
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from trioconn._cli import main
from trioconn._cli.terminal import Look
from trioconn._cli.trace import FixedResolver, show

if TYPE_CHECKING:
    import trustme
    from conftest import Script

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "trace.schema.json").read_text(encoding="utf-8"))
Trace = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trace(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Trace:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["trace", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def document(trace: Trace) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        code, out, _ = trace(*arguments, "--json")
        made: dict[str, Any] = json.loads(out)
        jsonschema.validate(made, SCHEMA)
        assert code == made["exit_code"]
        return made

    return run


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def unused() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_demo_shows_real_traces(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--trace"]) == 0
    out = capfd.readouterr().out
    assert "takes connections and then says nothing" in out
    assert "mute: no TLS answer" in out
    assert "hint      it is for elsewhere.test" in out
    assert "refused: 407" in out
    assert re.search(r"^ +2  reused #1", out, re.MULTILINE)


def test_a_connection_that_works(threaded_tls_server: Callable[..., Any], document: Any, ca_file: Path) -> None:
    server = threaded_tls_server()
    made = document(f"https://localhost:{server.port}", "-4", "--cacert", ca_file, "-n", 2)
    assert made["exit_code"] == 0
    [dial] = made["dials"]
    [tls] = dial["steps"]
    assert tls["version"] == "TLSv1.3" and tls["server_name"] == "localhost"
    assert "localhost" in tls["certificate"]["names"]
    assert [use["reused"] for use in made["uses"]] == [False, True]
    assert made["uses"][1]["why"] == "#1 was idle"
    assert made["trust"] == {"verified": True, "authorities": str(ca_file), "pin": None}


def test_the_digest_that_it_shows_is_a_pin(
    threaded_tls_server: Callable[..., Any], document: Any, trace: Trace
) -> None:
    url = f"https://127.0.0.1:{threaded_tls_server().port}"
    refused = document(url)
    assert refused["exit_code"] == 50
    [shown] = refused["presented"]
    assert any("--cacert FILE" in hint for hint in refused["hints"])
    assert document(url, "--pin", shown["sha256"])["exit_code"] == 0
    wrong = document(url, "--pin", "00" * 32)
    assert wrong["exit_code"] == 51
    assert wrong["dials"][0]["error"]["got"] == shown["sha256"]
    code, out, _ = trace(url, "--no-verify")
    assert code == 0
    assert "nothing is verified" in out


@pytest.mark.parametrize(("url", "code"), [("http://127.0.0.1:{}", 30), ("https://nothing.invalid:{}", 20)])
def test_exit_codes_tell_the_stage(document: Any, unused: int, url: str, code: int) -> None:
    made = document(url.format(unused), "--direct", "--timeout", 20)
    assert made["exit_code"] == code
    assert made["hints"]


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_an_unreachable_proxy_is_one_of_the_proxy(document: Any, trace: Trace, unused: int, scheme: str) -> None:
    pytest.importorskip("socksio")
    proxy = f"{scheme}://user:hunter2@127.0.0.1:{unused}"
    made = document("https://a.test", "--proxy", proxy)
    assert made["exit_code"] in (30, 40)
    assert made["dials"][0]["error"]["hop"] == 0
    _, out, err = trace("https://a.test", "--proxy", proxy)
    assert "hunter2" not in json.dumps(made) + out + err
    assert "is the proxy running" in out


def test_a_server_that_does_not_speak_tls(script: Callable[..., Script], trace: Trace) -> None:
    def plain(script: Script, sock: socket.socket, number: int) -> None:
        sock.recv(100)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    code, out, _ = trace(f"https://127.0.0.1:{script(plain).port}")
    assert code == 50
    assert "http:// instead of https://" in out


def test_the_environments_proxy_is_shown_with_its_reason(
    trace: Trace, unused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:hunter2@127.0.0.1:{unused}")
    _, out, _ = trace("https://a.test")
    assert f"via       http://127.0.0.1:{unused}\n" in out
    assert "https_proxy names it for https" in out
    assert "hunter2" not in out


def test_a_forwarded_target_is_shown_as_itself(script: Callable[..., Script], trace: Trace) -> None:
    proxy = script(lambda _, sock, __: sock.recv(1))
    code, out, _ = trace("http://origin.test:8000/secret?x", "--proxy", f"http://127.0.0.1:{proxy.port}")
    assert code == 0
    assert re.search(r"^target    http://origin\.test:8000, forwarded", out, re.MULTILINE)
    assert f"via       http://127.0.0.1:{proxy.port}\n" in out
    assert "secret" not in out


def test_addresses_for_a_port_that_is_not_on_the_way_cannot_be_honoured(
    script: Callable[..., Script], trace: Trace
) -> None:
    server = script(lambda _, sock, __: sock.recv(1))
    url = f"http://elsewhere.test:{server.port}"
    assert trace(url, "--resolve", f"Elsewhere.test.:{server.port}:127.0.0.1")[0] == 0
    code, _, err = trace(url, "--resolve", "elsewhere.test:443:127.0.0.1")
    assert code == 2 and "nothing on the way is elsewhere.test:443" in err


def test_a_picture_that_cannot_be_written_is_no_traceback(
    script: Callable[..., Script], trace: Trace, tmp_path: Path
) -> None:
    server = script(lambda _, sock, __: sock.recv(1))
    code, out, err = trace(f"http://127.0.0.1:{server.port}", "--svg", tmp_path / "missing" / "x.svg")
    assert code == 2 and "connected" in out
    assert err.startswith("trioconn trace: --svg ") and "No such file" in err


def test_a_closed_connection_says_why_it_was_not_reused(script: Callable[..., Script], trace: Trace) -> None:
    server = script(lambda script, sock, number: None)
    code, out, _ = trace(f"tcp://127.0.0.1:{server.port}", "-n", 2, "--pause", 0.2)
    assert code == 0
    assert re.search(r"^ +2  new    #2 .*#1 was closed: server closed", out, re.MULTILINE), out


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_socket(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert document("http://x", "--unix", path)["exit_code"] == 30
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        made = document("http://x", "--unix", path)
    [attempt] = made["dials"][0]["attempts"]
    assert (made["exit_code"], attempt["outcome"], attempt["family"]) == (0, "won", "path")


def test_a_picture(script: Callable[..., Script], trace: Trace, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    server = script(lambda script, sock, number: sock.recv(1))
    file = tmp_path / "screen.svg"
    code, out, _ = trace(f"tcp://127.0.0.1:{server.port}", "--svg", file)
    assert code == 0
    picture = file.read_text(encoding="utf-8")
    assert picture.startswith("<svg") and "127.0.0.1" in picture
    assert "127.0.0.1" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://x"],
        ["tcp://x"],
        ["https://user@x"],
        ["https://x", "--resolve", "x:443"],
        ["https://x", "--resolve", "x:443:not-an-address"],
        ["https://x", "--direct", "--proxy", "http://p"],
        ["https://x", "--pin", "12"],
        ["https://x", "--unix", ""],
        ["https://x", "--proxy", "http://p", "--unix", "y"],
        ["http://x", "--pin", "00" * 32],
        ["https://x", "--unix", "y", "-4"],
        ["https://x", "--unix", "y", "--resolve", "x:443:127.0.0.1"],
    ],
)
def test_a_wrong_command_line(trace: Trace, arguments: list[str]) -> None:
    code, out, err = trace(*arguments)
    assert code == 2, out
    assert err.startswith("trioconn trace: ")
    assert "Traceback" not in err


async def test_resolve_keeps_the_order_it_was_given() -> None:
    resolver = FixedResolver(["A.test:443:[::1],127.0.0.1"])
    assert [one.address for one in await resolver.resolve("a.test.")] == ["::1", "127.0.0.1"]
    assert [one.address for one in await resolver.resolve("a.test", family=socket.AF_INET)] == ["127.0.0.1"]
    assert not resolver.splits("a.test")
    await resolver.aclose()


def test_on_a_terminal_without_rich_the_screen_is_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Look, "of", lambda stream: Look(colour=True))
    monkeypatch.setitem(sys.modules, "rich.console", None)
    show([[("total", "bold"), (" 5 ms", None)]])
    assert capsys.readouterr().out == "total 5 ms\n"


def test_on_a_terminal_the_screen_is_coloured_by_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's own question whether this is a terminal
    monkeypatch.setattr(Look, "of", lambda stream: Look(colour=True))
    long = "x" * 200
    show([[("total", "bold"), (" [5] ms", None)], [(long, "good")]])
    out = capsys.readouterr().out
    assert out == f"\x1b[1mtotal\x1b[0m [5] ms\n\x1b[32m{long}\x1b[0m\n"


def test_a_certificate_that_cannot_be_looked_at_again_is_left_out(
    threaded_tls_server: Callable[..., Any], document: Any
) -> None:
    """The second look is refused: the server has gone in the meantime."""
    server = threaded_tls_server()
    seen: list[str] = []
    honest = server._context.sni_callback

    def gone_after_one(sock: Any, name: str, context: Any) -> Any:
        seen.append(name)
        return None if len(seen) == 1 else ssl.ALERT_DESCRIPTION_INTERNAL_ERROR

    assert honest is None
    server._context.sni_callback = gone_after_one
    made = document(f"https://localhost:{server.port}", "-4")
    assert made["exit_code"] == 50 and made["presented"] == []
    assert len(seen) == 2
    assert [hint for hint in made["hints"] if "--cacert FILE (after" in hint]


async def test_other_names_than_the_given_ones_are_asked_of_the_system() -> None:
    resolver = FixedResolver(["a.test:443:192.0.2.1"])
    try:
        assert "127.0.0.1" in [one.address for one in await resolver.resolve("localhost", family=socket.AF_INET)]
    finally:
        await resolver.aclose()


def test_a_picture_needs_rich_and_says_so(monkeypatch: pytest.MonkeyPatch, trace: Trace) -> None:
    module = importlib.import_module("trioconn._cli.trace")  # the package has a function of that name
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    code, _, err = trace("https://a.test", "--svg", "x.svg")
    assert code == 2
    assert 'pip install "trioconn[cli]"' in err


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_refused_https_proxy_is_looked_at_and_told_nothing(
    by: str,
    threaded_tls_server: Callable[..., Any],
    document: Any,
    ca_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[bytes] = []

    def proxy(sock: Any) -> None:
        heard.append(sock.recv(65536))
        sock.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")

    url = f"https://user:hunter2@localhost:{threaded_tls_server(proxy).port}"
    arguments = ["https://a.test", "--proxy", url]
    if by == "environment":
        monkeypatch.setenv("https_proxy", url)
        arguments = ["https://a.test"]
    refused = document(*arguments)
    assert refused["exit_code"] == 50
    [shown] = refused["presented"]
    assert shown["hop"] == 0 and "localhost" in shown["names"]
    assert any("--proxy-cacert FILE" in hint for hint in refused["hints"])
    assert not any(heard), "neither login nor target may reach a proxy that is not trusted"
    heard.clear()
    trusted = document(*arguments, "--proxy-cacert", ca_file)
    assert trusted["exit_code"] == 40
    assert any("give the proxy a login" in hint for hint in trusted["hints"])
    assert heard[0].startswith(b"CONNECT a.test:443 ") and b"Proxy-Authorization: Basic" in heard[0]
