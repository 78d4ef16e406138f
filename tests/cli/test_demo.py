"""The demo: what it says is checked by itself, and here that it says it, and that a false claim would be seen."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from trioconn._cli import demo as demo_module
from trioconn._cli import demo_screen, demo_servers, demo_traces, main

TITLES = [
    "A connection is made once, and used again",
    "A limit of 2 per host, and 10 who want in",
    "A dead address loses the race",
    "A server closes a connection that lies idle",
    "A certificate for somebody else",
    "The same over a Unix socket",
    "Leaving the block leaves nothing",
    "What it counted",
]


def settled(text: str) -> str:
    """`text` without what differs from run to run: ports, times, addresses."""
    text = re.sub(r":\d{4,5}", ":PORT", text)
    text = re.sub(r"began at +\d+ ms", "began at T ms", text)
    return re.sub(r"\d+ open before, \d+ after", "N open before, N after", text)


def test_demo_shows_what_it_promises_and_always_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    screens = []
    for _ in range(2):
        assert main(["demo"]) == 0
        out, err = capfd.readouterr()
        assert not err
        screens.append(settled(out))
    assert screens[0] == screens[1]
    lines = screens[0].splitlines()
    assert [line for line in lines if line in TITLES] == TITLES
    assert "\x1b" not in screens[0], "colour is for terminals"
    assert len(lines) <= 60
    assert re.fullmatch(r"All \d+ claims were checked, and hold\.", lines[-2])


def test_a_false_claim_is_shown_and_changes_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "_LIMIT", 3)  # the connector gets another limit than its servers' scene expects

    class Wrong(demo_module.TCPConnector):
        def __init__(self, **options: object) -> None:
            super().__init__(**{**options, "limit_per_host": 1})

    monkeypatch.setattr(demo_module, "TCPConnector", Wrong)
    monkeypatch.setattr(
        demo_module, "_PATIENCE", 3
    )  # with one connection per host, the race's second lease never comes
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "✗ never more than 1 connections open" in out
    assert "did not hold" in out


def test_a_missing_extra_is_named() -> None:
    script = "import sys; sys.modules['trustme'] = None; from trioconn._cli import main; sys.exit(main(['demo']))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert 'pip install "trioconn[demo]"' in run.stderr
    assert "Traceback" not in run.stderr


def python(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_runs_as_a_module_and_a_reader_may_have_seen_enough() -> None:
    with python("-m", "trioconn", "demo") as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.readline()
        run.stdout.close()  # as `| head -1` does
        assert run.stderr.read() == ""
        assert run.wait(60) != 0


@pytest.mark.parametrize("command", ["demo", "get", "trace", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"trioconn {command}" in capsys.readouterr().out


def test_no_arguments_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def few_sockets(refuse: str) -> SimpleNamespace:
    """The module `socket` of a system with one loopback address and no Unix sockets: listening on `refuse` fails."""

    def create_server(address: tuple[str, int], **options: Any) -> socket.socket:
        if re.match(refuse, address[0]):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return socket.create_server(address, **options)

    names = {name: getattr(socket, name) for name in dir(socket) if name != "AF_UNIX"}
    return SimpleNamespace(**{**names, "create_server": create_server})


@pytest.fixture
def poor_system(monkeypatch: pytest.MonkeyPatch) -> None:
    few = few_sockets(r"::1|127\.0\.0\.2")
    monkeypatch.setattr(demo_servers, "socket", few)
    monkeypatch.setattr(demo_traces, "socket", few)
    monkeypatch.setattr(demo_screen.os.path, "isdir", lambda path: False)


@pytest.mark.usefixtures("poor_system")
def test_where_a_system_lacks_something_less_is_shown_and_nothing_is_false(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    out, err = capfd.readouterr()
    assert not err
    assert "left out: loopback has only one address here" in out
    assert "left out: this system has no Unix sockets" in out
    assert "descriptor" not in out and "✗" not in out


@pytest.mark.usefixtures("poor_system")
def test_where_a_system_lacks_something_there_are_fewer_traces(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--trace"]) == 0
    titles = [line for line in capfd.readouterr().out.splitlines() if line.startswith("A ")]
    assert titles == ["A wrong certificate", "A refusing proxy", "A chain of proxies that works"]


def test_descriptors_are_counted_where_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_screen.os.path, "isdir", lambda path: path == "/dev/fd")
    monkeypatch.setattr(demo_screen.os, "listdir", lambda path: {"/dev/fd": ["0", "1", "2"]}[path])
    assert demo_screen.open_descriptors() == 3


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_dead_address_is_made_on_linux_only(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_traces, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(demo_traces, "socket", None)  # not even looked at
    with contextlib.ExitStack() as stack:
        assert demo_traces._dead_listener(stack) is None


def test_a_queue_that_does_not_fill_is_no_dead_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(socket.socket):
        def connect(self, address: object) -> None:
            """As if the system took every connection."""

    monkeypatch.setattr(demo_traces, "socket", SimpleNamespace(**{**vars(socket), "socket": Endless}))
    with contextlib.ExitStack() as stack:
        assert not demo_traces._fill(stack, 1)


def test_a_scene_that_breaks_is_a_false_claim_and_the_next_ones_are_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def hang_up(stream: trio.abc.Stream, chattered: trio.Event) -> None:
        await stream.receive_some()

    monkeypatch.setattr(demo_servers, "_converse", hang_up)
    assert main(["demo"]) == 1
    out = capfd.readouterr().out
    assert "✗ this ended in BrokenResourceError: the server hung up" in out
    assert [line for line in out.splitlines() if line in TITLES] == TITLES


def test_a_certificate_that_is_taken_wrongly_is_a_false_claim(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    honest = demo_servers._context
    monkeypatch.setattr(demo_servers, "_context", lambda authority, *names: honest(authority, *demo_servers.NAMES))
    assert main(["demo"]) == 1
    out = capfd.readouterr().out
    assert "✗ the certificate should have been refused" in out
    assert out.count("✗") == 1 and "1 of " in out.splitlines()[-1]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def say(port: int, data: bytes) -> tuple[trio.SocketStream, bytes]:
    """A connection on which `data` was sent, and the first that came back."""
    stream = await trio.open_tcp_stream(demo_servers.HOST, port)
    if data:
        await stream.send_all(data)
    else:
        await stream.send_eof()
    return stream, bytes(await stream.receive_some())


@pytest.mark.parametrize(
    ("which", "said", "answer"),
    [
        ("proxy", b"", b""),
        ("proxy", b"GET / HTTP/1.1\r\n\r\n", b""),
        ("proxy", b"CONNECT shop.test:none HTTP/1.1\r\n\r\n", b"HTTP/1.1 502 "),
        ("proxy", b"CONNECT shop.test:PLAIN HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 "),
        ("refusing", b"CONNECT shop.test:PLAIN HTTP/1.1\r\n\r\n", b"HTTP/1.1 407 "),
        ("plain", b"hello\n", b"ok hello\n"),
    ],
)
async def test_no_client_can_break_the_demos_servers(
    which: str, said: bytes, answer: bytes, authority: trustme.CA
) -> None:
    async with demo_servers.servers(authority) as where:
        said = said.replace(b"PLAIN", str(where.plain).encode())
        for _ in range(2):  # the server has outlived the first
            stream, got = await say(getattr(where, which), said)
            assert got.startswith(answer) and (answer or not got)
            # What it sends on, or still waits for, meets a reset.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            stream.socket.close()
            await trio.testing.wait_all_tasks_blocked()
