"""What several test directories want: one certificate authority, contexts for both ends, and real peers.

The TLS peer is a threaded one on the standard library's `ssl`, because trio's own TLS server hides what matters most
about a client: it sends its session tickets together with its first data, where others send them at once, so that a
connection in perfect health is readable while idle.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

if TYPE_CHECKING:
    from typing import Self

NAMES = ("localhost", "127.0.0.1", "::1", "example.test", "*.example.test")
Handler = Callable[[ssl.SSLSocket], object]
ContextMaker = Callable[..., ssl.SSLContext]

# For `nox -s mutants`: what is found is found, and need not be made shorter; the examples are the same for each mutant.
settings.register_profile("mutants", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])


@dataclass(frozen=True)
class Soak:
    """How long the tests marked ``soak`` run, and which of all their runs this is: the environment says.

    Attributes:
      seconds: for each of them; what is parametrized shares them. ``TRIOCONN_SOAK_SECONDS``, or 60.
      programs: how many random programs. ``TRIOCONN_SOAK_PROGRAMS``, or a hundred thousand.
      seed: the same one runs the same. ``TRIOCONN_SOAK_SEED``, or another each time.
    """

    seconds: float
    programs: int
    seed: int

    def turns(self, share: int = 1) -> Iterator[int]:
        """Numbers until the time is up, that of one among `share` parameters; each one is a seed."""
        end = time.monotonic() + self.seconds / share
        for number in count(self.seed * 10_000_000):
            yield number
            if time.monotonic() >= end:
                return

    def fuzz(self, check: Callable[..., object], *strategies: st.SearchStrategy[Any], share: int = 1) -> int:
        """Call `check` with values of the strategies until the time is up. Returns how often."""
        calls = 0

        def run(arguments: tuple[Any, ...]) -> None:
            nonlocal calls
            calls += 1
            check(*arguments)

        patient = settings(max_examples=500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
        for number in self.turns(share):
            hypothesis_seed(number)(patient(given(st.tuples(*strategies))(run)))()
        return calls


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> Soak:
    """What the environment says about long tests; see `Soak`. The seed is printed."""
    own = Soak(
        float(os.environ.get("TRIOCONN_SOAK_SECONDS", "60")),
        int(os.environ.get("TRIOCONN_SOAK_PROGRAMS", "100000")),
        int(os.environ.get("TRIOCONN_SOAK_SEED", random.SystemRandom().randrange(2**31))),
    )
    print(f"\n{request.node.name}: TRIOCONN_SOAK_SEED={own.seed}")
    return own


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """The certificate authority of the whole test session: making one takes longer than most tests."""
    return trustme.CA()


@pytest.fixture(scope="session")
def server_ssl(ca: trustme.CA) -> ContextMaker:
    """``server_ssl("a.test", …)``: a server context with a certificate for these names, by default `NAMES`.

    A new context each time, so that a test may change it; certificates are made once per set of names.
    """
    certificates: dict[tuple[str, ...], trustme.LeafCert] = {}

    def make(*names: str) -> ssl.SSLContext:
        names = names or NAMES
        if names not in certificates:
            certificates[names] = ca.issue_cert(*names)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificates[names].configure_cert(context)
        return context

    return make


@pytest.fixture(scope="session")
def make_client_ssl(ca: trustme.CA) -> Callable[[], ssl.SSLContext]:
    """``make_client_ssl()``: a new verifying client context that trusts `ca` and nobody else."""

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca.configure_trust(context)
        return context

    return make


@pytest.fixture
def client_ssl(make_client_ssl: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """A verifying client context that trusts `ca`, of this test alone."""
    return make_client_ssl()


def echo(connection: ssl.SSLSocket) -> None:
    """Send back whatever comes, until the peer ends."""
    while data := connection.recv(65536):
        connection.sendall(data)


class ThreadedTLSServer:
    """A TLS server in threads, on loopback: real tickets at once after the handshake, real close_notify.

    `handler` gets each connection after its handshake; when it returns, or raises an `OSError`, the connection is
    closed. Leaving the block ends every connection and joins every thread, so a test cannot leave one behind.

    Attributes:
      host, port: where it listens.
      accepted: how many TCP connections were accepted.
      handshakes: how many handshakes succeeded.
      resumed: how many of them resumed a session.
      errors: what went wrong in handshakes and handlers, in order.
    """

    def __init__(self, context: ssl.SSLContext, handler: Handler = echo, *, host: str = "127.0.0.1") -> None:
        self.host = host
        self.accepted = 0
        self.handshakes = 0
        self.resumed = 0
        self.errors: list[BaseException] = []
        self._context = context
        self._handler = handler
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            doomed = [self._listener, *self._open]
        for sock in doomed:
            # Closing a socket does not wake a thread that is inside a call on it; shutting it down does. Where a
            # listener cannot be shut down, a last connection wakes it.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            socket.create_connection(self.address, timeout=1).close()
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=10)
            assert not thread.is_alive(), "a handler of the TLS server did not end"

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._ended:
                    plain.close()
                    return
                self.accepted += 1
                self._open.add(plain)
            self._start(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        sock = plain
        try:
            sock = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                self._open.discard(plain)
                self._open.add(sock)
                ended = self._ended
            if ended:
                return
            sock.do_handshake()
            with self._lock:
                self.handshakes += 1
                self.resumed += bool(sock.session_reused)
            self._handler(sock)
            with contextlib.suppress(OSError, ValueError):
                sock.unwrap().close()
        except OSError as error:  # ssl.SSLError is one
            with self._lock:
                if not self._ended:
                    self.errors.append(error)
        finally:
            with self._lock:
                self._open -= {plain, sock}
            sock.close()
            plain.close()


@pytest.fixture
def threaded_tls_server(server_ssl: ContextMaker) -> Iterator[Callable[..., ThreadedTLSServer]]:
    """``threaded_tls_server(handler=echo, *, context=None, host="127.0.0.1")``: a `ThreadedTLSServer`, running.

    It ends with the test.
    """
    with contextlib.ExitStack() as stack:

        def start(
            handler: Handler = echo, *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
        ) -> ThreadedTLSServer:
            return stack.enter_context(ThreadedTLSServer(context or server_ssl(), handler, host=host))

        yield start


async def echo_stream(stream: trio.SocketStream) -> None:
    """Send back whatever comes, until the peer ends or breaks."""
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


@asynccontextmanager
async def open_tcp_server(
    handler: Callable[[trio.SocketStream], Awaitable[object]] = echo_stream, *, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A plain TCP server on loopback, in the test's own run; gives its port. Leaving the block ends it."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host=host))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.fixture
def tcp_server() -> Callable[..., AbstractAsyncContextManager[int]]:
    """``async with tcp_server(handler, host=…) as port``: see `open_tcp_server`."""
    return open_tcp_server


@pytest.fixture
def count_fds() -> Callable[[], int]:
    """``count_fds()``: how many descriptors the process has open. Skips the test where the system does not tell."""
    if sys.platform == "win32":
        return lambda: 0  # Windows does not tell; under Wine the folder exists, and lists Wine's own
    folder = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)
    if folder is None:
        pytest.skip("this system does not list a process's descriptors")
    return lambda: len(os.listdir(folder))


@pytest.fixture
def no_fd_leak(count_fds: Callable[[], int]) -> Iterator[None]:
    """The test must end with as many descriptors as it began with (the garbage collector does not help)."""
    before = count_fds()
    yield
    assert count_fds() == before, "descriptors leaked"
