"""Servers that play back what a test wrote, and an nginx."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import trustme


class Script:
    """An HTTP server in a thread: each connection is given to `handler`, with how many came before it.

    Attributes:
      port: where it listens on 127.0.0.1.
      requests: the raw requests that came, in order.
    """

    def __init__(self, handler: Callable[[Script, socket.socket, int], object]) -> None:
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._start(self._accept)

    def _start(self, f: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=f, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            self._start(self._serve, sock, number)
            number += 1

    def _serve(self, sock: socket.socket, number: int) -> None:
        with sock, contextlib.suppress(OSError):
            self._handler(self, sock, number)

    def read(self, sock: socket.socket) -> bytes:
        """The next request, up to the end of its head; nothing if the client has ended."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            more = sock.recv(65536)
            if not more:
                return b""
            data += more
        self.requests.append(data)
        return data

    def close(self) -> None:
        for sock in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """``script(handler)``: a running `Script`, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(handler: Callable[[Script, socket.socket, int], object]) -> Script:
            server = Script(handler)
            stack.callback(server.close)
            return server

        yield start


class Nginx:
    """An nginx of the test's own, over https and on a Unix socket with TLS. Its certificate is for localhost.

    Attributes:
      port: of https on 127.0.0.1.
      path: of the Unix socket.
      ca: the file with the authority's certificate.
    """

    def __init__(self, folder: Path, ca: trustme.CA) -> None:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("nginx is not installed")
        self._program = program
        self._folder = folder
        self.path = str(folder / "socket")
        self.ca = str(folder / "ca.pem")
        ca.cert_pem.write_to_path(self.ca)
        certificate = ca.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        (folder / "file").write_bytes(b"x" * 1000)
        tls = f"ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;"
        here = "".join(
            f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"""
            daemon off; master_process on; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 256; }}
            http {{
                access_log off; {here}
                keepalive_requests 1000000; keepalive_timeout 60s;
                server {{
                    listen 127.0.0.1:{self.port} ssl; listen unix:{self.path} ssl; {tls}
                    root {folder};
                }}
            }}
            """
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with contextlib.suppress(FileNotFoundError):  # nginx that was killed leaves it, and then cannot bind
            os.unlink(self.path)
        self._process = subprocess.Popen(
            [self._program, "-p", str(self._folder), "-c", "nginx.conf"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.path)
                return
            time.sleep(0.02)
        log = self._folder / "error.log"
        pytest.fail("nginx did not start: " + (log.read_text()[-2000:] if log.exists() else "it wrote no log"))

    def stop(self) -> None:
        """End it as a system would, with its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)
            self._process = None


@pytest.fixture
def nginx(ca: trustme.CA) -> Iterator[Nginx]:
    """A running nginx."""
    import tempfile

    # Not pytest's own folder: with its name a Unix socket's path may be too long.
    with tempfile.TemporaryDirectory(prefix="tc-nginx-") as folder:
        server = Nginx(Path(folder), ca)
        os.chmod(folder, 0o755)  # its worker runs as somebody else if we are root
        server.start()
        try:
            yield server
        finally:
            server.stop()
