"""``get`` against servers that play back what stands here: which connections are used again, what errors are called."""

from __future__ import annotations

import importlib
import io
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trioconn._cli import main
from trioconn._cli.get import percentile
from trioconn._cli.http import Request, exchange
from trioconn.testing import ScriptedConnector

if TYPE_CHECKING:
    import trustme
    from conftest import Script

get_module = importlib.import_module("trioconn._cli.get")  # the package has a function of that name
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Scripts = Callable[..., "Script"]


def answering(*answers: bytes) -> Callable[[Script, socket.socket, int], None]:
    """Each connection answers its requests with these, one after the other, and the last one for ever."""

    def handler(script: Script, sock: socket.socket, number: int) -> None:
        left = list(answers)
        while script.read(sock):
            sock.sendall(left.pop(0) if len(left) > 1 else left[0])

    return handler


class Got:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __getitem__(self, row: str) -> str:
        found = re.search(rf"^{row} +(.*)$", self.out, re.MULTILINE)
        return "" if found is None else found[1]


@pytest.fixture
def get(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Got]:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Got:
        code = main(["get", *map(str, arguments)])
        out, err = capsys.readouterr()
        return Got(code, out, err)

    return run


@pytest.mark.parametrize(
    ("answer", "made", "options"),
    [
        (OK, 1, []),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1, []),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 1, []),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 1, []),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", 1, ["-I"]),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, 1, []),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 3, []),
        (OK.replace(b"1.1", b"1.0", 1), 3, []),
        (OK + b"more than was asked for", 3, []),
    ],
    ids=["length", "chunked", "204", "304", "HEAD", "103", "close", "1.0", "trailing"],
)
def test_a_connection_is_used_again_if_and_only_if_it_is_clean(
    script: Scripts, get: Callable[..., Got], answer: bytes, made: int, options: list[str]
) -> None:
    server = script(answering(answer))
    got = get(f"http://127.0.0.1:{server.port}/a?b=c", "-n", 3, *options)
    assert got.code == 0, got.out
    assert got["connections"].startswith(f"{made} made, reused {3 - made} times")
    assert got["answered"].startswith("3 in ")
    assert len(server.requests) == 3
    assert server.requests[0].split()[1] == b"/a?b=c"
    assert f"\r\nHost: 127.0.0.1:{server.port}\r\n".encode() in server.requests[0]


def test_a_response_without_length_ends_with_the_connection(script: Scripts, get: Callable[..., Got]) -> None:
    def handler(script: Script, sock: socket.socket, number: int) -> None:
        script.read(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    got = get(f"http://127.0.0.1:{script(handler).port}/", "-n", 2)
    assert got.code == 0
    assert "20 bytes" in got["answered"]
    assert got["connections"].startswith("2 made, reused 0")


def hang_up_on_the_second(script: Script, sock: socket.socket, number: int) -> None:
    """The second request of each connection gets its end instead of an answer."""
    script.read(sock)
    sock.sendall(OK)
    script.read(sock)


def test_a_stale_connection_is_repeated_once_and_counted(script: Scripts, get: Callable[..., Got]) -> None:
    server = script(hang_up_on_the_second)
    got = get(f"http://127.0.0.1:{server.port}/", "-n", 3)
    assert got.code == 0, got.out
    assert got["repeated"].startswith("2,")
    assert got["connections"].startswith("3 made, reused 2")
    assert len(server.requests) == 5


def test_what_is_not_safe_is_not_repeated(script: Scripts, get: Callable[..., Got]) -> None:
    server = script(hang_up_on_the_second)
    got = get(f"http://127.0.0.1:{server.port}/", "-n", 2, "-X", "POST")
    assert got.code == 1
    assert "1 x a reused connection ended without an answer" in got["error"]
    assert len(server.requests) == 2
    assert b"\r\nContent-Length: 0\r\n" in server.requests[0]


def test_a_fresh_connection_that_ends_is_not_repeated(script: Scripts, get: Callable[..., Got]) -> None:
    server = script(lambda script, sock, number: script.read(sock))
    got = get(f"http://127.0.0.1:{server.port}/", "-n", 1)
    assert got.code == 1
    assert "the connection broke: the server closed the connection without an answer" in got["error"]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "not HTTP/1.1, or cut short"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", "not HTTP/1.1, or cut short"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 21, "not HTTP/1.1, or cut short: more than 20 informational"),
    ],
    ids=["ssh", "truncated", "endless 1xx"],
)
def test_errors_have_names(script: Scripts, get: Callable[..., Got], answer: bytes, name: str) -> None:
    def handler(script: Script, sock: socket.socket, number: int) -> None:
        script.read(sock)
        sock.sendall(answer)

    got = get(f"http://127.0.0.1:{script(handler).port}/", "-n", 2)
    assert got.code == 1
    assert got["error"].startswith(f"2 x {name}")


def test_a_server_that_never_answers_times_out_by_name(script: Scripts, get: Callable[..., Got]) -> None:
    def handler(script: Script, sock: socket.socket, number: int) -> None:
        while script.read(sock):
            pass

    port = script(handler).port
    got = get(f"http://127.0.0.1:{port}/", "-n", 2, "-c", 2, "--limit", 1, "--timeout", 0.2)
    assert got.code == 1
    assert "1 x timed out waiting for the answer" in got.out
    assert "1 x timed out waiting for a connection" in got.out


def test_refused_connections_name_the_stage(get: Callable[..., Got]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    got = get(f"http://127.0.0.1:{port}/", "-n", 2)
    assert got.code == 1
    assert got["error"].startswith("2 x ConnectError at stage connect: ")


def test_statuses_are_counted_and_fail_only_if_asked(script: Scripts, get: Callable[..., Got]) -> None:
    server = script(answering(OK, b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"))
    url = f"http://127.0.0.1:{server.port}/"
    got = get(url, "-n", 3)
    assert got.code == 0
    assert got["status"] == "200: 1, 500: 2"
    got = get(url, "-n", 2, "--fail")
    assert got.code == 1
    assert got["error"].startswith("1 x status 500")


def test_a_forwarding_proxy_gets_absolute_urls_and_its_own_headers(script: Scripts, get: Callable[..., Got]) -> None:
    server = script(answering(OK))
    got = get(
        "http://origin.test/path", "-n", 2, "--proxy", f"http://user:secret@127.0.0.1:{server.port}", "-H", "A: b"
    )
    assert got.code == 0, got.out
    assert got["connections"].startswith("1 made, reused 1")
    first = server.requests[0]
    assert first.startswith(b"GET http://origin.test/path HTTP/1.1\r\n")
    assert b"\r\nHost: origin.test\r\n" in first
    assert b"\r\nProxy-Authorization: Basic " in first
    assert b"\r\nA: b\r\n" in first
    assert "secret" not in got.out + got.err


def test_trust_options(
    ca: trustme.CA, threaded_tls_server: Callable[..., object], get: Callable[..., Got], tmp_path: Path
) -> None:
    def handler(sock: object) -> None:
        while sock.recv(65536):  # type: ignore[attr-defined]
            sock.sendall(OK)  # type: ignore[attr-defined]

    url = f"https://localhost:{threaded_tls_server(handler).port}/"  # type: ignore[attr-defined]
    file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(file)
    assert get(url, "--direct", "--cacert", file).code == 0
    assert get(url, "--direct", "--insecure").code == 0
    refused = get(url, "--direct")
    assert refused.code == 1
    assert refused["error"].startswith("1 x CertificateError at stage tls")
    pinned = get(url, "--direct", "--pin", "00" * 32)
    assert pinned.code == 1
    got = re.search("got ([0-9a-f]{64})", pinned.out)
    assert got is not None
    assert get(url, "--direct", "--pin", got[1]).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://x/"],
        ["http://"],
        ["http://x/", "--unix", "/a", "--proxy", "http://p:1"],
        ["http://x/", "--direct", "--proxy", "http://p:1"],
        ["https://x/", "--insecure", "--pin", "00" * 32],
        ["https://x/", "--pin", "abc"],
        ["http://x/", "--pin", "00" * 32],
        ["https://x/", "--cacert", "no such file"],
        ["http://x/", "-H", "no colon"],
        ["http://x/", "-H", "a: b\r\nc: d"],
        ["http://x/", "-X", "BAD METHOD"],
        ["http://x/", "--proxy", "gopher://p"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error_without_a_traceback(
    get: Callable[..., Got], arguments: list[str]
) -> None:
    got = get(*arguments)
    assert got.code == 2
    assert got.err.startswith("trioconn get: ")
    assert "Traceback" not in got.err


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("-n", "0", "must be at least 1"),
        ("-c", "-1", "must be at least 1"),
        ("--timeout", "0", "must be more than 0 seconds"),
        ("--timeout", "nan", "must be more than 0 seconds"),
        ("--limit", "many", "invalid count value"),
    ],
)
def test_numbers_have_to_make_sense(
    option: str, value: str, why: str, get: Callable[..., Got], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        get("http://x/", option, value)
    assert caught.value.code == 2
    assert why in capsys.readouterr().err


def test_a_missing_extra_is_named_without_a_traceback(get: Callable[..., Got], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    got = get("http://x/", "--proxy", "socks5://p")
    assert got.code == 2
    assert re.fullmatch(r"trioconn get: .*pip install .?trioconn\[socks\].?\n", got.err)


def test_a_server_that_goes_on_with_another_protocol_is_an_error(script: Scripts, get: Callable[..., Got]) -> None:
    server = script(answering(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: odd\r\n\r\n"))
    got = get(f"http://127.0.0.1:{server.port}/", "-H", "Connection: Upgrade", "-H", "Upgrade: odd")
    assert got.code == 1
    assert "the server goes on with another protocol" in got["error"]


async def test_an_answer_before_the_request_was_sent_is_the_answer() -> None:
    """A server may end a connection with 408 in the moment in which it is used."""
    async with ScriptedConnector() as connector, await connector.connect("http://a.test") as lease:
        connector.peers[0].send_nowait(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        connector.peers[0].close_nowait()
        answer = await exchange(lease, Request.make("GET", "http://a.test"))
        assert (answer.status, answer.clean) == (408, False)


def test_an_interrupt_shows_what_was_done_before(script: Scripts, get: Callable[..., Got]) -> None:
    def handler(script: Script, sock: socket.socket, number: int) -> None:
        script.read(sock)
        sock.sendall(OK)
        script.read(sock)
        signal.raise_signal(signal.SIGINT)
        sock.recv(1)

    got = get(f"http://127.0.0.1:{script(handler).port}/", "-n", 3)
    assert got.code == 130
    assert re.match(r"1 in \d+\.\d\d s, \d+ per second, 2 bytes", got["answered"])
    assert got["connections"].startswith("1 made, reused 1")
    assert "Traceback" not in got.err


class Terminal(io.StringIO):
    """A terminal for stderr, which can be waited for: `seen` is set when `awaited` stands on it."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self._awaited = awaited
        self.seen = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._awaited in text:
            self.seen.set()
        return super().write(text)


def test_on_a_terminal_the_progress_is_shown_and_wiped_away(
    script: Scripts, get: Callable[..., Got], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Terminal("1/2")

    def handler(script: Script, sock: socket.socket, number: int) -> None:
        script.read(sock)
        sock.sendall(OK)
        script.read(sock)
        assert shown.seen.wait(10)  # the second answer is held back until the first one shows
        sock.sendall(OK)
        script.read(sock)

    monkeypatch.setattr(get_module, "_PROGRESS_INTERVAL", 0.01)
    monkeypatch.setattr(sys, "stderr", shown)
    got = get(f"http://127.0.0.1:{script(handler).port}/", "-n", 2)
    assert got.code == 0, got.out
    assert "\x1b[K" not in got.out
    wipe = "\r\x1b[K"
    first, *_, last = [text for text in shown.getvalue().split(wipe) if text]
    assert re.search(r"░{30}.* 0/2  0/s  \d open, \d waiting, 0 errors$", first)
    assert re.search(r"█{15}░{15}.* 1/2  \d+/s  1 open, 0 waiting, 0 errors$", last)
    assert shown.getvalue().endswith(wipe)


@pytest.mark.parametrize(
    ("octets", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5000 << 20, "4.9 GiB")],
)
def test_sizes_are_told_in_a_fitting_unit(octets: int, text: str) -> None:
    assert get_module._size(octets) == text


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 11)]
    assert [percentile(values, part) for part in (0.5, 0.9, 0.99, 1.0)] == [5, 9, 10, 10]
    assert percentile([7.0], 0.5) == 7
