"""Servers in processes of their own, children of the benchmark's: an echo in plain Python, and nginx with TLS."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trustme

# As little as possible: what is measured are clients.
ECHO = """
import select, socket
listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
print(listener.getsockname()[1], flush=True)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
socks = {}
while True:
    for fd, _ in poll.poll():
        if fd == listener.fileno():
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            socks[sock.fileno()] = sock
            poll.register(sock, select.EPOLLIN)
            continue
        try:
            data = socks[fd].recv(65536)
            if data:
                socks[fd].send(data)
                continue
        except OSError:
            pass
        poll.unregister(fd)
        socks.pop(fd).close()
"""

# The kernel is asked for sockets, not the pools, and by a third process, which costs neither side anything.
WITNESS = """
import sys, threading, time
port = "%04X" % int(sys.argv[1])
most = 0
threading.Thread(target=lambda: (sys.stdin.read(), print(most, flush=True), __import__("os")._exit(0))).start()
while True:
    now = 0
    with open("/proc/net/tcp") as table:
        for line in table:
            _, _, remote, state = line.split(None, 4)[:4]
            now += state == "01" and remote.endswith(port)
    most = max(most, now)
    time.sleep(0.003)
"""

NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 2000; }}
http {{
  access_log off; default_type text/plain; keepalive_requests 1000000; keepalive_timeout 600;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; ssl_session_cache shared:SSL:10m;
  server {{ listen 127.0.0.1:{port} ssl backlog=1000; server_name a.test b.test;
    location / {{ add_header X-Connection $connection; return 200 "{body}"; }} }}
  server {{ listen 127.0.0.1:{port} ssl; server_name old.test; ssl_protocols TLSv1.2;
    location / {{ add_header X-Connection $connection; return 200 "{body}"; }} }}
}}
"""


@contextlib.contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """The port of an echo server."""
    with child(sys.executable, "-c", ECHO) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def most_sockets(port: int) -> Iterator[list[int]]:
    """Counts connections to `port`; after the block the list holds the most that were there at any one time."""
    most: list[int] = []
    with child(sys.executable, "-c", WITNESS, str(port)) as process:
        try:
            yield most
        finally:
            out, _ = process.communicate("", timeout=10)
            most.append(int(out))


def has_nginx() -> bool:
    """Whether nginx is installed."""
    return shutil.which("nginx") is not None


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, str]]:
    """Port of an nginx for a.test, b.test and old.test (TLS 1.2 only), and the file of its authority."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    cert = authority.issue_cert("a.test", "b.test", "old.test", key_type=trustme.KeyType.ECDSA)
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in cert.cert_chain_pems))
    cert.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, body="x" * 100))
    with subprocess.Popen(
        ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait_for(port)
            yield port, str(folder / "ca.pem")
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError("nginx does not answer")
