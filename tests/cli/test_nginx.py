"""``get`` against a real nginx, over https with a private authority and over a Unix socket with TLS."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

from trioconn._cli import main

if TYPE_CHECKING:
    from conftest import Nginx

pytestmark = pytest.mark.real


def options(nginx: Nginx, way: str) -> list[str]:
    common = ["get", "--direct", "--cacert", nginx.ca, "-c", "50", "--limit", "10"]
    if way == "unix":
        return [*common, "--unix", nginx.path, "https://localhost/file"]
    return [*common, f"https://localhost:{nginx.port}/file"]


def made(out: str) -> int:
    found = re.search(r"^connections +(\d+) made", out, re.MULTILINE)
    assert found, out
    return int(found[1])


@pytest.mark.parametrize("way", ["https", "unix"])
def test_5000_requests_of_50_clients_use_10_connections(
    nginx: Nginx, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options(nginx, way), "-n", "5000"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^answered +5000 in ", out, re.MULTILINE), out
    assert re.search(r"^status +200: 5000$", out, re.MULTILINE), out
    assert re.search(r"^errors +none$", out, re.MULTILINE), out
    assert made(out) == 10
    assert "4.8 MiB" in out  # 5000 times 1000 bytes


@pytest.mark.parametrize("way", ["https", "unix"])
def test_a_restart_in_the_middle_gives_named_errors_and_the_pool_recovers(
    nginx: Nginx, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = threading.Event()
    restarted: list[float] = []

    def restart() -> None:
        began.wait(10)
        time.sleep(0.7)
        nginx.stop()
        time.sleep(0.05)  # down for a moment, in which connecting is refused
        nginx.start()
        restarted.append(time.monotonic())

    thread = threading.Thread(target=restart)
    thread.start()
    began.set()
    try:
        code = main([*options(nginx, way), "-n", "8000", "--timeout", "20"])
        ended = time.monotonic()
    finally:
        thread.join(20)  # it must not meet the end of the fixture
    out = capsys.readouterr().out
    assert restarted and restarted[0] < ended, "the restart came too late to meet a request"
    answered = int(re.search(r"^answered +(\d+) in", out, re.MULTILINE)[1])  # type: ignore[index]
    errors = re.findall(r"^error +(\d+) x ([^:]+):", out, re.MULTILINE)
    assert answered + sum(int(number) for number, _ in errors) == 8000, "each request ended, one way or the other"
    assert code == (1 if errors else 0)
    allowed = {
        "UnixConnectError at stage connect",
        "ConnectError at stage connect",
        "TLSError at stage tls",
        "the connection broke",
        "a reused connection ended without an answer",
        "not HTTP/1.1, or cut short",
    }
    assert {name for _, name in errors} <= allowed, "no error without a name, and none that timed out"
    assert answered > 1000 and made(out) >= 20, "requests were answered before and after"
