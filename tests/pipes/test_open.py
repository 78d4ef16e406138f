"""Opening a pipe: what is asked for, who owns the handle, waiting for a free instance, what goes wrong."""

from __future__ import annotations

import errno
import gc
import itertools
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioconn._errors as errors
from trioconn import events
from trioconn._establish.named_pipe import open_pipe

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="named pipes exist on Windows alone (or under Wine)")
if sys.platform == "win32":
    import _winapi

    from trioconn._establish import windows_calls as calls
    from trioconn._establish import windows_pipe

Serve = Any  # the fixture; see conftest.py
OUTBOUND = 2
REMOTE = r"\\server\pipe\name"


def new_instance(path: str, *, access: int = 3, most: int = 255) -> int:
    return _winapi.CreateNamedPipe(path, access, 0, most, 4096, 4096, 0, 0)


class Reports(list[tuple[type[events.Event], dict[str, Any]]]):
    def __call__(self, event: type[events.Event], **fields: Any) -> None:
        self.append((event, fields))


async def test_open_and_echo(path: str, serve: Serve) -> None:
    serve()
    async with await open_pipe(path) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


async def test_is_a_checkpoint(path: str, serve: Serve) -> None:
    serve()
    with trio.testing.assert_checkpoints():
        stream = await open_pipe(path)
    stream.close_nowait()


async def test_not_found(path: str) -> None:
    with pytest.raises(errors.NamedPipeConnectError, match="no server has created it") as caught:
        await open_pipe(path)
    assert caught.value.winerror == 2
    assert caught.value.errno == errno.ENOENT
    assert caught.value.stage == "connect"
    assert caught.value.hop == -1
    assert path in str(caught.value)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


async def test_access_denied(path: str) -> None:
    """The server only sends: whoever wants to write as well is refused."""
    handle = new_instance(path, access=OUTBOUND)
    try:
        with pytest.raises(errors.NamedPipeConnectError, match="does not let this user") as caught:
            await open_pipe(path)
    finally:
        _winapi.CloseHandle(handle)
    assert caught.value.winerror == 5
    assert caught.value.errno == errno.EACCES


async def test_asks_for_identification_only(path: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not the expected one can learn who the user is, and cannot act as him."""
    serve()
    asked = []
    create_file = calls._create_file

    def spy(*arguments: Any) -> Any:
        asked.append(arguments)
        return create_file(*arguments)

    monkeypatch.setattr(calls, "_create_file", spy)
    (await open_pipe(path)).close_nowait()
    [(name, access, shared, security, disposition, flags, template)] = asked
    assert (name, access, shared, security, disposition, template) == (path, 0xC0000000, 0, None, 3, None)
    assert flags & 0x001F0000 == 0x00100000 | 0x00010000  # SECURITY_SQOS_PRESENT, SECURITY_IDENTIFICATION
    assert flags & 0x40000000  # FILE_FLAG_OVERLAPPED


async def test_reports_success(path: str, serve: Serve) -> None:
    serve()
    reports = Reports()
    (await open_pipe(path, report=reports)).close_nowait()
    assert reports == [
        (events.AttemptStarted, {"index": 0, "address": path}),
        (events.AttemptProgressed, {"index": 0, "stage": "connect"}),
    ]


async def test_reports_failure(path: str) -> None:
    reports = Reports()
    with pytest.raises(errors.NamedPipeConnectError) as caught:
        await open_pipe(path, report=reports)
    assert reports == [
        (events.AttemptStarted, {"index": 0, "address": path}),
        (events.AttemptFailed, {"index": 0, "error": caught.value}),
    ]


# All instances busy


async def test_busy_waits_for_a_free_instance(path: str, mock_clock: MockClock) -> None:
    only = new_instance(path, most=2)
    opened = []

    async def open_second() -> None:
        opened.append(await open_pipe(path))

    first = await open_pipe(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_second)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked()
        assert not opened
        another = new_instance(path, most=2)
        mock_clock.jump(0.032)  # the longest pause
        await trio.testing.wait_all_tasks_blocked()
        assert len(opened) == 1
    first.close_nowait()
    opened[0].close_nowait()
    _winapi.CloseHandle(only)
    _winapi.CloseHandle(another)


@pytest.mark.parametrize("after", [0, 1, 5])
async def test_busy_until_the_callers_deadline(path: str, after: float, autojump_clock: MockClock) -> None:
    only = new_instance(path, most=1)
    first = await open_pipe(path)
    begun = trio.current_time()
    with trio.move_on_after(after) as scope:
        await open_pipe(path)
    assert scope.cancelled_caught
    assert trio.current_time() == begun + after
    first.close_nowait()
    _winapi.CloseHandle(only)


async def test_busy_and_then_gone(path: str, mock_clock: MockClock) -> None:
    only = new_instance(path, most=1)
    first = await open_pipe(path)
    caught = []

    async def open_second() -> None:
        with pytest.raises(errors.NamedPipeConnectError) as info:
            await open_pipe(path)
        caught.append(info.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_second)
        await trio.testing.wait_all_tasks_blocked()
        first.close_nowait()
        _winapi.CloseHandle(only)
        mock_clock.jump(0.032)
    assert caught[0].winerror == 2


async def test_busy_pauses_double_and_end_at_the_longest(
    path: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def busy(path: str) -> int:
        asked.append(trio.current_time())
        if len(asked) < 9:
            raise OSError(None, "busy", None, 231)
        raise OSError(None, "gone", None, 2)

    monkeypatch.setattr(calls, "open_pipe", busy)
    with pytest.raises(errors.NamedPipeConnectError):
        await open_pipe(path)
    pauses = [round(1000 * (later - earlier)) for earlier, later in itertools.pairwise(asked)]
    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]


async def test_busy_server_serves_all_in_the_end(path: str, serve: Serve) -> None:
    """One instance, a server thread that disconnects each client before it takes the next, and twenty clients."""
    server = serve(lambda handle: _winapi.WriteFile(handle, _winapi.ReadFile(handle, 100)[0]))

    async def client(number: int) -> None:
        async with await open_pipe(path) as stream:
            await stream.send_all(b"%d" % number)
            assert await stream.receive_some() == b"%d" % number

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(client, number)
    assert server.accepted == 20


# Who owns the handle


async def test_cancelled_before_it_begins(path: str, serve: Serve) -> None:
    server = serve()
    with trio.CancelScope() as scope:
        scope.cancel()
        await open_pipe(path)
    assert scope.cancelled_caught
    assert server.accepted == 0


async def test_not_a_handle_is_left_if_registering_fails(
    path: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sees the client go, and the error has the system's number."""
    gone = threading.Event()

    def handler(handle: int) -> None:
        try:
            _winapi.ReadFile(handle, 1)
        finally:
            gone.set()

    def fail(handle: int) -> None:
        raise OSError(None, "no more memory", None, 8)

    serve(handler)
    monkeypatch.setattr(trio.lowlevel, "register_with_iocp", fail)
    gc.disable()
    try:
        with pytest.raises(errors.NamedPipeConnectError) as caught:
            await open_pipe(path)
        assert caught.value.winerror == 8
        assert gone.wait(10)
    finally:
        gc.enable()


async def test_handles_do_not_pile_up(path: str, serve: Serve) -> None:
    """The server has one instance, and an end that is left open anywhere would occupy it for ever."""
    server = serve()
    gc.disable()
    try:
        for _ in range(20):
            with trio.fail_after(10):
                stream = await open_pipe(path)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            with pytest.raises(trio.WouldBlock):
                stream.receive_nowait()
            with trio.move_on_after(0):
                await stream.receive_some()
            stream.close_nowait()
    finally:
        gc.enable()
    assert server.accepted == 20


async def test_collected_unclosed_warns_and_closes(path: str, serve: Serve) -> None:
    gone = threading.Event()

    def handler(handle: int) -> None:
        try:
            _winapi.ReadFile(handle, 1)
        finally:
            gone.set()

    serve(handler)
    streams = [await open_pipe(path)]
    with pytest.warns(ResourceWarning, match="unclosed pipe"):
        streams.clear()
    assert gone.wait(10)


# Pipes of other machines: the opening is a thread's. The thread gets a pipe of this machine.


async def test_remote_opens_in_a_thread(path: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve()
    threads = []
    really_open = calls.open_pipe

    def open_slowly(asked: str) -> int:
        assert asked == REMOTE
        threads.append(threading.current_thread())
        return really_open(path)

    monkeypatch.setattr(calls, "open_pipe", open_slowly)
    borrowed = trio.to_thread.current_default_thread_limiter()
    async with await open_pipe(REMOTE) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
    assert threads != [threading.current_thread()]
    assert borrowed.borrowed_tokens == 0


async def test_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> int:
        raise OSError(None, "the network path was not found", None, 53)

    monkeypatch.setattr(calls, "open_pipe", fail)
    with pytest.raises(errors.NamedPipeConnectError, match="network path") as caught:
        await open_pipe(REMOTE)
    assert caught.value.winerror == 53


async def test_remote_opened_after_cancellation_is_closed(
    path: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller does not wait for the network, his thread closes what it gets in the end."""
    gone, go_on, begun = threading.Event(), threading.Event(), threading.Event()

    def handler(handle: int) -> None:
        try:
            _winapi.ReadFile(handle, 1)
        finally:
            gone.set()

    really_open = calls.open_pipe

    def open_slowly(asked: str) -> int:
        begun.set()
        assert go_on.wait(10)
        return really_open(path)

    serve(handler)
    monkeypatch.setattr(calls, "open_pipe", open_slowly)
    limiter = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_pipe, REMOTE)
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 0  # another limiter is used, so that a hung network starves nobody else
        assert begun.wait(10)
        nursery.cancel_scope.cancel()
    assert not gone.is_set()
    go_on.set()
    assert gone.wait(10)


async def test_remote_opened_and_cancelled_in_one_tick_is_closed(
    path: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has delivered, the task has not yet run when it is cancelled: the handle is nobody's otherwise."""
    gone = threading.Event()

    def handler(handle: int) -> None:
        try:
            _winapi.ReadFile(handle, 1)
        finally:
            gone.set()

    serve(handler)
    really_open = calls.open_pipe
    monkeypatch.setattr(calls, "open_pipe", lambda asked: really_open(path))
    taken: list[int | None] = []
    take = windows_pipe._Opening.take

    def spy(opening: Any) -> int | None:
        taken.append(take(opening))
        return taken[-1]

    def refuse(opening: Any) -> None:
        raise RuntimeError("stopped just before taking over")

    monkeypatch.setattr(windows_pipe._Opening, "take", spy)
    monkeypatch.setattr(windows_pipe, "_take_over", refuse)
    with pytest.raises(RuntimeError, match="stopped"):
        await open_pipe(REMOTE)
    assert len(taken) == 1
    assert taken[0] is not None
    assert gone.wait(10)
