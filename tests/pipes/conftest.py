"""Pipe servers for tests: in threads with blocking calls, on asyncio's proactor, in another process, and on trio.

Their calls are Python's own (`_winapi`), not those of the library under test. Nothing of this works off Windows; there
the tests that want it are skipped by their modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trioconn._establish import named_pipe

if sys.platform == "win32":
    import _winapi

    from trioconn._establish.windows_pipe_stream import PipeStream

    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.DisconnectNamedPipe.argtypes = [ctypes.c_void_p]
    kernel32.FlushFileBuffers.argtypes = [ctypes.c_void_p]

DUPLEX, OUTBOUND, OVERLAPPED = 3, 2, 0x40000000
MESSAGES, UNLIMITED = 4, 255

Handler = Callable[[int], object]


def create_instance(
    path: str,
    *,
    access: int = DUPLEX,
    overlapped: bool = False,
    messages: bool = False,
    most: int = UNLIMITED,
    quota: int = 4096,
) -> int:
    """A server's end: a handle, ready for one client. `quota` is how many bytes fit in, each way."""
    mode = access | (OVERLAPPED if overlapped else 0)
    return _winapi.CreateNamedPipe(path, mode, MESSAGES if messages else 0, most, quota, quota, 0, 0)


def disconnect(handle: int) -> None:
    """Throw the client out when he has read what he was sent: disconnecting alone throws that away, too."""
    kernel32.FlushFileBuffers(handle)
    assert kernel32.DisconnectNamedPipe(handle)


def echo(handle: int) -> None:
    """Send back what comes, until the client has gone."""
    while True:
        data, _ = _winapi.ReadFile(handle, 65536)
        _winapi.WriteFile(handle, data)


class ThreadedPipeServer:
    """Blocking calls in threads: each has one instance, and serves one client after the other with `handler`.

    `handler` may raise OSError to say that the client has gone. Clients must be closed before the server is.
    """

    def __init__(self, path: str, handler: Handler = echo, *, instances: int = 1, **options: Any) -> None:
        self.path = path
        self.accepted = 0
        self._handler = handler
        self._ended = False
        self._lock = threading.Lock()
        # All are there before the first client comes, else he might find none.
        handles = [create_instance(path, most=instances, **options) for _ in range(instances)]
        self._threads = [threading.Thread(target=self._run, args=(handle,), daemon=True) for handle in handles]
        for thread in self._threads:
            thread.start()

    def _run(self, handle: int) -> None:
        while not self._ended:
            with contextlib.suppress(OSError):  # he was quicker than this call, which is as good
                _winapi.ConnectNamedPipe(handle)
            if not self._ended:
                with self._lock:
                    self.accepted += 1
                with contextlib.suppress(OSError):
                    self._handler(handle)
                    kernel32.FlushFileBuffers(handle)  # see `disconnect`
            kernel32.DisconnectNamedPipe(handle)
        _winapi.CloseHandle(handle)

    def close(self) -> None:
        self._ended = True
        for thread in self._threads:
            while thread.is_alive():
                with contextlib.suppress(OSError):  # a visitor wakes one of them, no matter which
                    _winapi.CloseHandle(_winapi.CreateFile(self.path, 0xC0000000, 0, 0, 3, 0, 0))
                thread.join(timeout=0.05)


class AsyncioPipeServer:
    """asyncio's own pipe server, on its proactor, in a thread: sends back what comes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.ProactorEventLoop) as runner:  # type: ignore[attr-defined]
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        transports: set[asyncio.Transport] = set()

        class Echo(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport
                transports.add(transport)  # type: ignore[arg-type]

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)  # type: ignore[attr-defined]

            def connection_lost(self, exc: Exception | None) -> None:
                transports.discard(self.transport)  # type: ignore[arg-type]
                self.transport.close()

        [server] = await loop.start_serving_pipe(Echo, self._path)  # type: ignore[attr-defined]
        self._ready.set()
        await self._end.wait()
        server.close()
        for transport in list(transports):
            transport.close()
        for _ in range(3):  # what was closed is told so by callbacks
            await asyncio.sleep(0)

    def close(self) -> None:
        assert self._loop is not None
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()


class ProcessPipeServer:
    """The server of ``echo_process.py``."""

    def __init__(self, path: str) -> None:
        script = Path(__file__).with_name("echo_process.py")
        self.process = subprocess.Popen([sys.executable, str(script), path], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == b"ready"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


SERVERS: dict[str, Callable[..., Any]] = {
    "threads": lambda path: ThreadedPipeServer(path, instances=8),
    "asyncio": AsyncioPipeServer,
    "process": ProcessPipeServer,
}


@pytest.fixture
def path() -> str:
    """The path of a pipe that nobody else uses."""
    return rf"\\.\pipe\trioconn-{uuid.uuid4()}"


@pytest.fixture
def throw_out() -> Callable[[int], None]:
    """``throw_out(handle)``: see `disconnect`."""
    return disconnect


@pytest.fixture
def serve(path: str) -> Iterator[Callable[..., ThreadedPipeServer]]:
    """``serve(handler=echo, *, instances=1, …)``: a `ThreadedPipeServer` at `path`; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(handler: Handler = echo, **options: Any) -> ThreadedPipeServer:
            return stack.enter_context(contextlib.closing(ThreadedPipeServer(path, handler, **options)))

        yield start


@pytest.fixture(params=sorted(SERVERS))
def echo_path(request: pytest.FixtureRequest, path: str) -> Iterator[str]:
    """The path of an echo server, of each kind in turn."""
    with contextlib.closing(SERVERS[request.param](path)):
        yield path


@pytest.fixture
def echo_process(path: str) -> Iterator[ProcessPipeServer]:
    """An echo server in another process, at `path`."""
    with contextlib.closing(ProcessPipeServer(path)) as server:
        yield server


MakePair = Callable[..., Awaitable[tuple["PipeStream", "PipeStream"]]]


@pytest.fixture
async def make_pair(path: str) -> AsyncIterator[MakePair]:
    """``await make_pair(messages=False, quota=4096)``: the client's and the server's end of a new pipe, as streams."""
    made: list[PipeStream] = []

    async def make(**options: Any) -> tuple[PipeStream, PipeStream]:
        server = PipeStream(create_instance(path, overlapped=True, **options))
        made.append(server)
        client: PipeStream = await named_pipe.open_pipe(path)
        made.append(client)
        return client, server

    yield make
    for stream in made:
        stream.close_nowait()
