"""The first hop to a Unix socket: what each answer of the system comes to."""

from __future__ import annotations

import errno
import itertools
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio
import trio.testing

from trioconn import UnixConnectError, events
from trioconn._establish import unix
from trioconn._establish.unix import connect_unix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trio.testing import MockClock

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The path of a socket that listens and whose backlog takes all who come."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(100)
        yield path


class Scripted(socket.socket):
    """A socket on another system, or in another mood of this one."""

    answer: ClassVar[Callable[[Scripted, str], int]]
    found_later = 0

    def connect_ex(self, path: Any) -> int:
        return type(self).answer(self, path)

    def really_connect(self, path: str) -> int:
        return super().connect_ex(path)

    def getsockopt(self, *args: Any) -> Any:
        return self.found_later if args == (socket.SOL_SOCKET, socket.SO_ERROR) else super().getsockopt(*args)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``system(answer, later=0)``: what a connect comes to, and what it is found to have come to later.

    In place of a stream there is the socket. Every socket must be closed at the end.
    """
    made: list[Scripted] = []

    def arrange(answer: Callable[[Scripted, str], int], later: int = 0) -> None:
        class OfThisTest(Scripted):
            found_later = later

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.append(self)

        OfThisTest.answer = answer
        names = ("AF_UNIX", "SOCK_STREAM", "SOL_SOCKET", "SO_ERROR")
        module = SimpleNamespace(socket=OfThisTest, **{name: getattr(socket, name) for name in names})
        monkeypatch.setattr(unix, "socket", module)
        monkeypatch.setattr(unix, "SocketStream", lambda sock: sock)

    yield arrange
    assert made
    assert all(sock.fileno() == -1 for sock in made)


def silent(event: type, **fields: object) -> None:
    """Nobody listens."""


async def fails(path: str) -> UnixConnectError:
    told: list[type] = []
    with trio.testing.assert_checkpoints(), pytest.raises(UnixConnectError) as caught:
        await connect_unix(path, report=lambda event, **fields: told.append(event))
    assert told == [events.AttemptStarted, events.AttemptFailed]
    assert caught.value.stage == "connect"
    return caught.value


async def test_connects(path: str) -> None:
    told: list[tuple[type, dict[str, object]]] = []
    with trio.testing.assert_checkpoints():
        stream = await connect_unix(path, report=lambda event, **fields: told.append((event, fields)))
    assert stream.probe()
    assert told == [
        (events.AttemptStarted, {"index": 0, "address": path}),
        (events.AttemptProgressed, {"index": 0, "stage": "connect"}),
    ]
    stream.close_nowait()


async def test_nobody_listens(path: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    error = await fails(str(tmp_path / "dead"))
    assert error.errno == errno.ECONNREFUSED
    assert "is the server running?" in str(error)


async def test_not_allowed(path: str, system: Callable[..., None]) -> None:
    """By script, because root is allowed everything."""
    system(lambda sock, path: errno.EACCES)
    error = await fails(path)
    assert error.errno == errno.EACCES
    assert "permission to write" in str(error)


async def connected(path: str) -> bool:
    """Whether connecting gives what is connected to `path`."""
    sock: Any = await connect_unix(path, report=silent)
    with sock:
        return sock.getpeername() == path and not sock.getblocking()


async def test_where_connecting_takes_time(path: str, system: Callable[..., None]) -> None:
    """Linux connects at once or not at all. Others may say "under way"; what came of it is found later."""

    def begin(sock: Scripted, path: str) -> int:
        return sock.really_connect(path) or errno.EINPROGRESS

    system(begin)
    assert await connected(path)
    system(begin, later=errno.ECONNREFUSED)
    assert (await fails(path)).errno == errno.ECONNREFUSED


async def test_interrupted(path: str, system: Callable[..., None], autojump_clock: MockClock) -> None:
    """A signal during the connect: it goes on by itself, and to ask again says that it stands already."""
    asked: list[int] = []

    def interrupted(sock: Scripted, path: str) -> int:
        asked.append(errno.EISCONN if asked else sock.really_connect(path) or errno.EINTR)
        return asked[-1]

    system(interrupted)
    assert await connected(path)
    assert asked == [errno.EINTR, errno.EISCONN]


async def test_a_full_backlog_is_asked_again(path: str, system: Callable[..., None], autojump_clock: MockClock) -> None:
    asked: list[float] = []

    def full(sock: Scripted, path: str) -> int:
        asked.append(trio.current_time())
        return errno.EAGAIN if len(asked) < 10 else sock.really_connect(path)

    system(full)
    assert await connected(path)
    pauses = [round(1000 * (later - earlier)) for earlier, later in itertools.pairwise(asked)]
    assert pauses == [1, 2, 4, 8, 16, 32, 50, 50, 50]


async def test_cancelled_before_a_full_backlog(
    path: str, system: Callable[..., None], autojump_clock: MockClock
) -> None:
    system(lambda sock, path: errno.EAGAIN)
    with trio.move_on_after(1) as scope:
        await connect_unix(path, report=silent)
    assert scope.cancelled_caught
