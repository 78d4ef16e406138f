"""What Python's servers cannot be made to do: renegotiations and key updates, by OpenSSL's own test server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from trioconn._establish.sockets import RECEIVE_SIZE, SocketStream
from trioconn._establish.tls import TLSStream

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed"),
]


class Program:
    """``openssl s_server``: prints what it receives, sends what it is given, and obeys single letters."""

    def __init__(self, pem: str, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            ["openssl", "s_server", "-accept", f"127.0.0.1:{self.port}", "-cert", pem, "-key", pem, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = b""
        self.wait_for(b"ACCEPT")

    def wait_for(self, text: bytes) -> None:
        while text not in self.output:
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, self.output
            self.output += data

    def type(self, line: bytes) -> None:
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def program(authority, tmp_path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start(*options: str) -> Program:
        pem = tmp_path / "server.pem"
        authority.ca.issue_cert("a.test").private_key_and_cert_chain_pem.write_to_path(pem)
        programs.append(Program(os.fspath(pem), *options))
        return programs[-1]

    yield start
    for each in programs:
        each.close()


async def connect(authority, program: Program) -> TLSStream:
    sock = socket.create_connection(("127.0.0.1", program.port))
    tls = TLSStream(SocketStream(sock), authority.client(), server_hostname="a.test")
    await tls.do_handshake()
    return tls


KINDS = {
    "renegotiation": (["-tls1_2"], b"r"),
    "key update, answer wanted": (["-tls1_3"], b"K"),
    "key update": (["-tls1_3"], b"k"),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_in_the_middle_of_use(authority, program, kind) -> None:
    options, letter = KINDS[kind]
    server = program(*options)
    tls = await connect(authority, server)
    await tls.send_all(b"first\n")
    await trio.to_thread.run_sync(server.wait_for, b"first")
    async with trio.open_nursery() as nursery:
        received = b""

        @nursery.start_soon
        async def receive() -> None:
            nonlocal received
            while not received.endswith(b"done\n"):
                received += await tls.receive_some()

        await trio.testing.wait_all_tasks_blocked()
        server.type(letter)
        for number in range(20):
            await tls.send_all(b"line %d\n" % number)
        await trio.to_thread.run_sync(server.wait_for, b"line 19")
        server.type(b"done")
    assert received == b"done\n"
    tls.close_nowait()


@pytest.mark.parametrize("kind", KINDS)
async def test_while_idle(authority, program, kind) -> None:
    """A key update is answered with the next data. A renegotiation wants an answer now: that is not clean."""
    options, letter = KINDS[kind]
    server = program(*options)
    tls = await connect(authority, server)
    await tls.send_all(b"first\n")
    await trio.to_thread.run_sync(server.wait_for, b"first")
    while not tls.transport_stream.probe():
        assert tls.probe()  # tickets
    server.type(letter)
    await trio.lowlevel.wait_readable(tls.fileno())
    assert tls.probe() == (kind != "renegotiation")
    # It is not broken either: used again, it answers first.
    await tls.send_all(b"second\n")
    received = b""
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            await trio.to_thread.run_sync(server.wait_for, b"second")
            server.type(b"done")

        while not received.endswith(b"done\n"):
            received += await tls.receive_some()
    tls.close_nowait()


async def test_no_data_in_the_middle_of_a_renegotiation(authority, program) -> None:
    """What cannot wait takes nothing then, and is not broken by it: the data go with a call that can."""
    server = program("-tls1_2")
    tls = await connect(authority, server)
    await tls.send_all(b"first\n")
    await trio.to_thread.run_sync(server.wait_for, b"first")
    server.type(b"r")
    await trio.lowlevel.wait_readable(tls.fileno())
    assert not tls.probe()
    assert tls.send_nowait(b"second\n") == 0
    await tls.send_all(b"third\n")
    await trio.to_thread.run_sync(server.wait_for, b"third")
    assert b"second" not in server.output
    tls.close_nowait()


async def test_a_key_update_that_came_with_the_last_data(authority, program) -> None:
    """It lies in our buffer when the data have been read, and is no reason for anything."""
    server = program("-tls1_3")
    tls = await connect(authority, server)
    await tls.send_all(b"first\n")
    await trio.to_thread.run_sync(server.wait_for, b"first")
    while not tls.transport_stream.probe():
        assert tls.probe()  # tickets
    server.type(b"done")
    await trio.lowlevel.wait_readable(tls.fileno())
    data = await tls.transport_stream.socket.recv(RECEIVE_SIZE, socket.MSG_PEEK)
    server.type(b"k")
    while await tls.transport_stream.socket.recv(RECEIVE_SIZE, socket.MSG_PEEK) == data:
        await trio.lowlevel.checkpoint()
    assert await tls.receive_some(5) == b"done\n"
    assert not tls._engine.is_quiet
    assert tls.probe()
    assert tls._engine.is_quiet
    tls.close_nowait()
