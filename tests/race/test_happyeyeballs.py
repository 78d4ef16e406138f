"""The port of aiohappyeyeballs: each fact that its 51 tests pin has a test here, named after its test.

What of these facts cannot apply is listed, with the reasons, in `NOT_APPLICABLE`.
"""

from __future__ import annotations

import errno
import gc
import math
import socket
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trioconn.happyeyeballs
from trioconn._establish.race import Attempt, Candidates, Outcome, race
from trioconn.happyeyeballs import (
    AddrInfoType,
    addr_to_addr_infos,
    pop_addr_infos_interleave,
    remove_addr_infos,
    start_connection,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_APPLICABLE = {
    "test_single_addr_success_passing_loop": "trio has no loop objects: there is nothing to pass",
    "test_staggered_cpython.py::test_loop_argument": "the same",
    "test_staggered.py::test_multiple_winners_with_eager_task_factory": (
        "trio never runs a task before its creator's next checkpoint; the fact itself is in test_multiple_winners"
    ),
    "test_staggered_cpython_eager_task_factory.py (2)": (
        "the same; the facts themselves are in test_staggered_race_with_a_delay and test_staggered_race_without_a_delay"
    ),
    "test_single_addr_info_close_errors (2)": (
        "they pin that an error of close() replaces the error of connect() and turns a cancellation into an OSError. A "
        "cancellation that is turned into something else breaks the cancel scope that asked for it; the opposite is "
        "shown in test_single_addr_info_close_errors and test_close_error_does_not_replace_a_cancellation"
    ),
    "conftest.py": "leftover threads and timers: a nursery leaves none; every test here asserts closed sockets instead",
}

STREAM, TCP = socket.SOCK_STREAM, socket.IPPROTO_TCP


def v6(host: str, port: int = 80) -> AddrInfoType:
    return (socket.AF_INET6, STREAM, TCP, "", (host, port, 0, 0))


def v4(host: str, port: int = 80) -> AddrInfoType:
    return (socket.AF_INET, STREAM, TCP, "", (host, port))


A6, B6, C6, A4, B4 = v6("dead:beef::"), v6("dead:aaaa::"), v6("dead:bbbb::"), v4("192.0.2.1"), v4("192.0.2.2")
LOCAL6, LOCAL4 = v6("::1", 0), v4("127.0.0.1", 0)


class FakeSocket(trio.socket.SocketType):
    """Connects as the script says: trio's own tests use such sockets, as no real one fails at a set moment."""

    def __init__(self, script: Script, family: int) -> None:
        self.script = script
        self._family = family
        self.closed = False
        self.bound: Any = None

    async def bind(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()
        if address[0] in self.script.bind_errors:
            raise self.script.bind_errors[address[0]]
        self.bound = address

    async def connect(self, address: Any) -> None:
        assert not self.closed
        self.script.connects.append(address[0])
        self.script.times.append(trio.current_time() - self.script.origin)
        behaviour = self.script.connect_results.get(address[0])
        if isinstance(behaviour, float | int):
            await trio.sleep(behaviour)
        elif isinstance(behaviour, trio.Event):
            await behaviour.wait()
        else:
            await trio.lowlevel.checkpoint()
        if isinstance(behaviour, BaseException):
            raise behaviour

    def close(self) -> None:
        self.closed = True
        if self.script.close_error is not None:
            raise self.script.close_error


@dataclass
class Script(trio.abc.SocketFactory):
    """What sockets do; by host. A number: seconds until connected; an event: what is waited for; an exception."""

    connect_results: dict[str, float | trio.Event | BaseException] = field(default_factory=dict)
    bind_errors: dict[str, OSError] = field(default_factory=dict)
    socket_errors: dict[int, BaseException] = field(default_factory=dict)  # by family
    close_error: OSError | None = None
    sockets: list[FakeSocket] = field(default_factory=list)
    connects: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    origin: float = field(default_factory=trio.current_time)

    def socket(self, family: int = 0, type: int = 0, proto: int = 0) -> FakeSocket:
        if family in self.socket_errors:
            raise self.socket_errors[family]
        self.sockets.append(FakeSocket(self, family))
        return self.sockets[-1]

    async def run(self, *infos: AddrInfoType, **options: Any) -> FakeSocket:
        before = list(infos)
        trio.socket.set_custom_socket_factory(self)
        winner = None
        try:
            winner = await start_connection(before, **options)
            assert isinstance(winner, FakeSocket)
            return winner
        finally:
            assert before == list(infos)
            assert [sock for sock in self.sockets if not sock.closed] == ([] if winner is None else [winner])


def err(number: int = 0, text: str = "fail") -> OSError:
    return OSError(number, text) if number else OSError(text)


def hosts(*infos: AddrInfoType) -> list[str]:
    return [info[4][0] for info in infos]


# tests/test_impl.py


async def test_empty_addr_infos() -> None:
    with pytest.raises(ValueError, match="addr_infos must not be empty"):
        await start_connection([])


async def test_single_addr_info_errors() -> None:
    script = Script(socket_errors={socket.AF_INET: (original := err(5))})
    with pytest.raises(OSError, match="fail") as caught:
        await script.run(A4)
    assert caught.value is original
    assert script.connects == []


async def test_single_addr_success() -> None:
    script = Script()
    assert await script.run(A4) is script.sockets[0]


async def test_single_addr_socket_factory() -> None:
    script = Script()
    infos = []

    def factory(info: AddrInfoType) -> FakeSocket:
        infos.append(info)
        return script.socket(*info[:3])

    assert await script.run(A4, socket_factory=factory) is script.sockets[0]
    assert infos == [A4]


async def test_multiple_addr_success_second_one() -> None:
    script = Script({"192.0.2.2": err()})
    await script.run(A4, B4)
    assert script.connects == hosts(A4)
    script = Script({"192.0.2.1": err()})
    await script.run(A4, B4)
    assert script.connects == hosts(A4, B4)


async def test_multiple_winners_cleaned_up(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    gate = trio.Event()
    infos = [A6, B6, A4, B4]
    script = Script(dict.fromkeys(hosts(*infos), gate))

    async def open_gate() -> None:
        await trio.sleep(1)
        gate.set()

    nursery.start_soon(open_gate)
    assert await script.run(*infos, happy_eyeballs_delay=0.3, interleave=0) is script.sockets[0]
    assert len(script.sockets) == 4
    assert all(sock.closed for sock in script.sockets[1:])


async def test_multiple_addr_success_second_one_happy_eyeballs(autojump_clock: MockClock) -> None:
    script = Script({"192.0.2.1": err()})
    await script.run(A4, B4, happy_eyeballs_delay=0.3)
    assert script.connects == hosts(A4, B4)
    assert script.times == [0, 0]


async def test_happy_eyeballs_socket_factory() -> None:
    script = Script()
    calls = []

    def factory(info: AddrInfoType) -> FakeSocket:
        calls.append(info)
        if len(calls) == 2:
            raise err()
        return script.socket(*info[:3])

    assert await script.run(A4, B4, happy_eyeballs_delay=0.3, socket_factory=factory) is script.sockets[0]
    calls.clear()
    script.connect_results = {"192.0.2.1": err(1)}
    script.sockets.clear()
    with pytest.raises(OSError, match=r"Multiple exceptions: .*1.*, fail"):
        await script.run(A4, B4, happy_eyeballs_delay=0.3, socket_factory=factory)


async def test_multiple_addr_all_fail_happy_eyeballs() -> None:
    script = Script(socket_errors={socket.AF_INET: err(0, "err1"), socket.AF_INET6: err(0, "err2")})
    with pytest.raises(OSError, match="err1") as caught:
        await script.run(A4, A6, happy_eyeballs_delay=0.3)
    assert isinstance(caught.value.__cause__, ExceptionGroup)


async def test_ipv6_and_ipv4_happy_eyeballs_ipv6_fails() -> None:
    script = Script(socket_errors={socket.AF_INET6: err()})
    assert (await script.run(A6, A4, happy_eyeballs_delay=0.3))._family == socket.AF_INET


async def test_ipv6_and_ipv4_happy_eyeballs_ipv4_fails() -> None:
    script = Script(socket_errors={socket.AF_INET: err()})
    assert (await script.run(A6, A4, happy_eyeballs_delay=0.3))._family == socket.AF_INET6


async def test_ipv6_and_ipv4_happy_eyeballs_first_ipv6_fails() -> None:
    script = Script({"dead:beef::": err()})
    await script.run(A6, B6, A4, happy_eyeballs_delay=0.3)
    assert script.connects == hosts(A6, A4)


async def test_ipv64_happy_eyeballs_interleave_2_first_ipv6_fails() -> None:
    script = Script({"dead:beef::": err()})
    await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2)
    assert script.connects == hosts(A6, B6)


async def test_ipv6_only_happy_eyeballs_first_ipv6_fails() -> None:
    script = Script({"dead:beef::": err()})
    await script.run(A6, B6, happy_eyeballs_delay=0.3)
    assert script.connects == hosts(A6, B6)


async def test_ipv64_laddr_eyeballs_interleave_2_first_ipv6_fails() -> None:
    script = Script({"dead:beef::": err()})
    sock = await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2, local_addr_infos=[LOCAL6])
    assert script.connects == hosts(A6, B6)
    assert sock.bound == LOCAL6[4]


async def test_ipv64_laddr_both__eyeballs_first_ipv6_fails() -> None:
    script = Script({"dead:beef::": err()})
    sock = await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, local_addr_infos=[LOCAL6, LOCAL4])
    assert script.connects == hosts(A6, A4)
    assert sock.bound == LOCAL4[4]


async def test_ipv64_laddr_bind_fails_eyeballs_first_ipv6_fails() -> None:
    script = Script({"dead:beef::": err(0, "ipv6 fail")}, bind_errors={"127.0.0.1": err(4, "bind fail")})
    with pytest.raises(OSError, match="ipv6 fail"):
        await script.run(A6, A4, happy_eyeballs_delay=0.3, local_addr_infos=[LOCAL6, LOCAL4])
    assert script.connects == hosts(A6)


async def test_ipv64_laddr_bind_fails_eyeballs_interleave_first__ipv6_fails() -> None:
    script = Script({"dead:beef::": err()}, bind_errors={"127.0.0.1": err(4, "bind fail")})
    sock = await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2, local_addr_infos=[LOCAL6, LOCAL4])
    assert script.connects == hosts(A6, B6)
    assert sock._family == socket.AF_INET6


async def test_ipv64_laddr_socket_fails() -> None:
    script = Script(socket_errors={socket.AF_INET6: ZeroDivisionError("odd")})
    with pytest.raises(ZeroDivisionError):
        await script.run(A6, A4, local_addr_infos=[LOCAL6, LOCAL4])
    assert script.connects == []


async def test_ipv64_laddr_socket_blocking_fails() -> None:
    """A factory's stdlib socket is made non-blocking; what goes wrong there comes out, and the socket is closed."""
    made = []

    class Odd(socket.socket):
        pass

    def factory(info: AddrInfoType) -> socket.socket:
        made.append(Odd(info[0], info[1]))
        return made[-1]

    with pytest.raises(TypeError):
        await start_connection([A4, B4], local_addr_infos=[LOCAL4], socket_factory=factory)
    assert [sock.fileno() for sock in made] == [-1]


async def test_ipv64_laddr_eyeballs_ipv4_only_tried() -> None:
    script = Script()
    await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, local_addr_infos=[LOCAL4])
    assert script.connects == hosts(A4)


async def test_ipv64_laddr_bind_fails_all_eyeballs_interleave_first__ipv6_fails() -> None:
    script = Script(bind_errors={"::1": err(4, "bind fail"), "127.0.0.1": err(4, "bind fail")})
    with pytest.raises(OSError, match="Multiple exceptions") as caught:
        await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2, local_addr_infos=[LOCAL6, LOCAL4])
    assert script.connects == []
    assert caught.value.errno == 4
    assert "while attempting to bind on address ('::1', 0, 0, 0): bind fail" in str(caught.value)


async def test_all_same_exception_and_same_errno() -> None:
    errors = [err(5, "all fail") for _ in range(3)]
    script = Script(dict(zip(hosts(A6, B6, A4), errors, strict=True)))
    with pytest.raises(OSError, match="all fail") as caught:
        await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2)
    assert caught.value is errors[0]
    assert caught.value.errno == 5
    assert script.connects == hosts(A6, B6, A4)


async def test_all_same_exception_and_with_different_errno() -> None:
    errors = [err(number, "all fail") for number in (1, 2, 3)]
    script = Script(dict(zip(hosts(A6, B6, A4), errors, strict=True)))
    with pytest.raises(OSError, match="Multiple exceptions: ") as caught:
        await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2)
    assert caught.value.errno is None
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert list(caught.value.__cause__.exceptions) == errors


async def test_uvloop_runtime_error() -> None:
    script = Script({host: RuntimeError("all fail") for host in hosts(A6, B6, A4)})
    with pytest.raises(RuntimeError, match="all fail"):
        await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2)
    assert script.connects == hosts(A6, B6, A4)


async def test_uvloop_different_runtime_error() -> None:
    script = Script(dict(zip(hosts(A6, B6, A4), map(RuntimeError, "123"), strict=True)))
    with pytest.raises(RuntimeError, match="Multiple exceptions: 1, 2, 3") as caught:
        await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2)
    assert type(caught.value) is RuntimeError


async def test_uvloop_mixing_os_and_runtime_error() -> None:
    errors = [RuntimeError("1"), err(2, "two"), err(3, "three")]
    script = Script(dict(zip(hosts(A6, B6, A4), errors, strict=True)))
    with pytest.raises(OSError, match="Multiple exceptions: 1, ") as caught:
        await script.run(A6, B6, A4, happy_eyeballs_delay=0.3, interleave=2)
    assert caught.value.errno is None


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt()])
@pytest.mark.parametrize("delay", [None, 0.3])
async def test_handling_system_exit(error: BaseException, delay: float | None) -> None:
    script = Script({"dead:beef::": error})
    with pytest.raises(type(error)):
        await script.run(A6, B6, A4, happy_eyeballs_delay=delay, interleave=2)
    assert script.connects == hosts(A6)


@pytest.mark.parametrize("delay", [None, 0.3])
async def test_cancellation_is_not_swallowed(delay: float | None, nursery: trio.Nursery) -> None:
    script = Script(dict.fromkeys(hosts(A6, B6, A4), math.inf))
    with trio.CancelScope() as scope:

        async def cancel() -> None:
            await wait_all_tasks_blocked()
            scope.cancel()

        nursery.start_soon(cancel)
        await script.run(A6, B6, A4, happy_eyeballs_delay=delay, interleave=2)
    assert scope.cancelled_caught
    assert script.connects == hosts(A6)


@pytest.mark.parametrize("delay", [None, 0.3])
async def test_single_addr_info_close_errors(delay: float | None) -> None:
    """See `NOT_APPLICABLE`: the error of connect() stands."""
    script = Script({"192.0.2.1": err(5, "connect")}, close_error=err(6, "during close"))
    with pytest.raises(OSError, match="connect") as caught:
        await script.run(A4, happy_eyeballs_delay=delay)
    assert caught.value.errno == 5


async def test_close_error_does_not_replace_a_cancellation(autojump_clock: MockClock) -> None:
    script = Script({"192.0.2.1": math.inf}, close_error=err(6, "during close"))
    with trio.move_on_after(1) as scope:
        await script.run(A4)
    assert scope.cancelled_caught


async def test_close_error_of_a_loser(autojump_clock: MockClock) -> None:
    script = Script({"192.0.2.1": math.inf}, close_error=err(6, "during close"))
    await script.run(A4, B4, happy_eyeballs_delay=0.3)


@pytest.mark.parametrize(
    ("infos", "count", "order"),
    [
        ([A6, B6, A4, B4], 1, [A6, A4, B6, B4]),
        ([A6, B6, C6, A4], 1, [A6, A4, B6, C6]),
        ([A4, A6, B6], 1, [A4, A6, B6]),
        ([A6, B6, C6], 1, [A6, B6, C6]),
        ([A6, B6, C6, A4, B4], 1, [A6, A4, B6, B4, C6]),
        ([A6, B6, C6, A4, B4], 2, [A6, B6, A4, C6, B4]),
        ([A6, B6, C6, A4, B4], 3, [A6, B6, C6, A4, B4]),
        ([A6, B6, A4, B4], 0, [A6, B6, A4, B4]),
        ([A6, B6, A4, B4], -1, [A6, A4, B6, B4]),
        ([A6, B6, A4, B4], None, [A6, A4, B6, B4]),
        ([A6, B6, C6, A4], 2, [A6, B6, A4, C6]),
    ],
)
async def test_interleave_addrinfos(infos: list[AddrInfoType], count: int | None, order: list[AddrInfoType]) -> None:
    """Also test_interleave_addrinfos_first_address_family_count. The empty list is test_empty_addr_infos."""
    script = Script({host: err(5) for host in hosts(*infos)})
    with pytest.raises(OSError, match="fail"):
        await script.run(*infos, happy_eyeballs_delay=0.3, interleave=count)
    assert script.connects == hosts(*order)


async def test_interleave_without_a_delay() -> None:
    script = Script({host: err(5) for host in hosts(A6, B6, A4)})
    with pytest.raises(OSError, match="fail"):
        await script.run(A6, B6, A4)
    with pytest.raises(OSError, match="fail"):
        await script.run(A6, B6, A4, interleave=1)
    assert script.connects == hosts(A6, B6, A4) + hosts(A6, A4, B6)


# tests/test_utils.py


@pytest.mark.parametrize(
    ("count", "left"), [(1, [C6, B4]), (2, [C6]), (3, []), (None, [C6, B4]), (0, [A6, C6, A4, B4])]
)
def test_pop_addr_infos_interleave(count: int | None, left: list[AddrInfoType]) -> None:
    infos = [A6, C6, A4, B4]
    if count == 2:
        infos.insert(0, B6)
    pop_addr_infos_interleave(infos, count)
    assert infos == left


def test_pop_addr_infos_interleave_with_duplicates() -> None:
    infos = [A6, A6, A6, A4, A4]
    pop_addr_infos_interleave(infos, 2)
    assert infos == [A6]


def test_remove_addr_infos() -> None:
    infos = [A6, A4, B6, A4]
    remove_addr_infos(infos, A6[4])
    assert infos == [A4, B6, A4]
    remove_addr_infos(infos, A4[4])
    assert infos == [B6]
    remove_addr_infos(infos, B6[4])
    assert infos == []


def test_remove_addr_infos_slow_path() -> None:
    infos = [A6, A4]
    remove_addr_infos(infos, ("dead:beef:0000:0000:0000:0000:0000:0000", 80, 0, 0))
    assert infos == [A4]
    for absent in [("192.0.2.1", 81), ("192.0.2.9", 80), ("192.0.2.1", 80, 0, 0), ("a.test", 80)]:
        with pytest.raises(ValueError, match=r"not found|does not appear"):
            remove_addr_infos(infos, absent)
        assert infos == [A4]


def test_addr_to_addr_infos() -> None:
    assert addr_to_addr_infos(None) is None
    assert addr_to_addr_infos(("1.2.3.4", 43)) == [v4("1.2.3.4", 43)]
    assert addr_to_addr_infos(("1.2.3.4", 43, 1, 2)) == [v4("1.2.3.4", 43)]
    assert addr_to_addr_infos(("dead:aaaa::", 43)) == [v6("dead:aaaa::", 43)]
    assert addr_to_addr_infos(("dead:aaaa::", 43, 7)) == [(socket.AF_INET6, STREAM, TCP, "", ("dead:aaaa::", 43, 7, 0))]
    assert addr_to_addr_infos(("dead:aaaa::", 43, 7, 9)) == [
        (socket.AF_INET6, STREAM, TCP, "", ("dead:aaaa::", 43, 7, 9))
    ]
    assert addr_to_addr_infos(("localhost", 5)) == [v4("localhost", 5)]


# tests/test_staggered.py, tests/test_staggered_cpython.py, tests/test_staggered_cpython_eager_task_factory.py


async def staggered(
    delay: float | None, *attempts: Callable[[], Any], discarded: list[Any] | None = None
) -> Outcome[int, Any]:
    async def attempt(number: int, me: Attempt) -> Any:
        return await attempts[number]()

    return await race(
        Candidates(range(len(attempts))),
        attempt,
        delay=delay,
        discard=[].append if discarded is None else discarded.append,
    )


def lasts(seconds: float, result: object) -> Callable[[], Any]:
    async def attempt() -> object:
        await trio.sleep(seconds)
        if isinstance(result, BaseException):
            raise result
        return result

    return attempt


async def test_one_winners() -> None:
    outcome = await staggered(None, *[lasts(0, number) for number in range(4)])
    assert outcome.won is not None
    assert outcome.won.index == 0
    assert outcome.started == 1


async def test_multiple_winners(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    gate = trio.Event()

    async def attempt() -> str:
        await gate.wait()
        return "won"

    async def open_gate() -> None:
        await trio.sleep(1)
        gate.set()

    nursery.start_soon(open_gate)
    discarded: list[Any] = []
    outcome = await staggered(0.01, *[attempt] * 4, discarded=discarded)
    assert outcome.won is not None
    assert outcome.won.index == 0
    assert outcome.failures == []
    assert discarded == ["won"] * 3


async def test_staggered_race_empty() -> None:
    assert await staggered(None) == Outcome(None, [], 0)


async def test_staggered_race_one_successful(autojump_clock: MockClock) -> None:
    outcome = await staggered(10, lasts(1, "a"))
    assert outcome.won is not None
    assert (outcome.won.index, outcome.won.result, outcome.failures) == (0, "a", [])


async def test_staggered_race_first_error_second_successful(autojump_clock: MockClock) -> None:
    outcome = await staggered(None, lasts(0, err()), lasts(0, "b"))
    assert outcome.won is not None
    assert (outcome.won.index, outcome.won.result) == (1, "b")
    assert [failure.index for failure in outcome.failures] == [0]


async def test_staggered_race_first_timeout_second_successful(autojump_clock: MockClock) -> None:
    outcome = await staggered(0.1, lasts(10, "a"), lasts(0, "b"))
    assert outcome.won is not None
    assert outcome.won.index == 1
    assert outcome.failures == []  # the loser was cancelled: that is no failure
    assert trio.current_time() < 1


@pytest.mark.parametrize("delay", [None, 0.01, 0.1, 1])
async def test_staggered_race_none_successful(autojump_clock: MockClock, delay: float | None) -> None:
    outcome = await staggered(delay, lasts(0, err(1)), lasts(0, err(2)))
    assert outcome.won is None
    assert [failure.index for failure in outcome.failures] == [0, 1]


async def test_staggered_race_long_delay_early_failure(autojump_clock: MockClock) -> None:
    outcome = await staggered(10, lasts(1, err()), lasts(0, "b"))
    assert outcome.won is not None
    assert outcome.won.index == 1
    assert trio.current_time() == 1


async def test_staggered_race_with_a_delay(autojump_clock: MockClock) -> None:
    outcome = await staggered(0.25, lasts(2, "slow"), lasts(0.3, "b"), lasts(0, err()))
    assert outcome.won is not None
    assert outcome.won.index == 1
    assert [failure.index for failure in outcome.failures] == [2]


async def test_staggered_race_without_a_delay(autojump_clock: MockClock) -> None:
    outcome = await staggered(None, lasts(2, "slow"), lasts(1, "b"), lasts(0, err()))
    assert outcome.won is not None
    assert outcome.won.index == 0
    assert outcome.started == 1


# tests/test_init.py


def test_import() -> None:
    assert set(trioconn.happyeyeballs.__all__) == {
        "AddrInfoType",
        "SocketFactoryType",
        "addr_to_addr_infos",
        "pop_addr_infos_interleave",
        "remove_addr_infos",
        "start_connection",
    }
    assert all(hasattr(trioconn.happyeyeballs, name) for name in trioconn.happyeyeballs.__all__)


# What those tests do not pin


async def test_moments(autojump_clock: MockClock) -> None:
    script = Script(dict.fromkeys(hosts(A6, A4), math.inf) | {"dead:aaaa::": 1.0})
    await script.run(A6, B6, A4, happy_eyeballs_delay=0.3)
    assert script.connects == hosts(A6, A4, B6)
    assert script.times == pytest.approx([0, 0.3, 0.6])


async def test_delay_zero_is_serial_and_tiny_ones_are_bounded(autojump_clock: MockClock) -> None:
    script = Script({"192.0.2.1": 60.0})
    await script.run(A4, B4, happy_eyeballs_delay=0)
    assert script.connects == hosts(A4)
    script = Script({"192.0.2.1": 60.0})
    await script.run(A4, B4, happy_eyeballs_delay=1e-9)
    assert script.times == pytest.approx([0, 0.01])


async def test_long_lists_are_tried_to_the_end(autojump_clock: MockClock) -> None:
    infos = [v4(f"192.0.2.{n}") for n in range(60)]
    script = Script(dict.fromkeys(hosts(*infos[:30]), math.inf) | {host: err(1) for host in hosts(*infos[30:59])})
    await script.run(*infos, happy_eyeballs_delay=0.01)
    assert len(script.connects) == 60


async def test_all_attempts_stay_in_flight(autojump_clock: MockClock) -> None:
    infos = [v4(f"192.0.2.{n}") for n in range(30)]
    script = Script(dict.fromkeys(hosts(*infos), math.inf) | {"192.0.2.0": 1.0})
    assert await script.run(*infos, happy_eyeballs_delay=0.01) is script.sockets[0]


@pytest.mark.case("aiohappyeyeballs#93")
@pytest.mark.parametrize("delay", [None, 0.3])
async def test_odd_errors_come_out(delay: float | None) -> None:
    """The original raises IndexError in place of this OverflowError."""
    script = Script({"192.0.2.1": OverflowError("port must be 0-65535")})
    with pytest.raises(OverflowError):
        await script.run(A4, B4, happy_eyeballs_delay=delay)


@pytest.mark.case("aiohappyeyeballs#93")
@pytest.mark.parametrize("delay", [None, 0.3])
async def test_a_factory_that_raises_runtime_error_fails_its_attempt(delay: float | None) -> None:
    def factory(info: AddrInfoType) -> FakeSocket:
        raise RuntimeError(info[4][0])

    with pytest.raises(RuntimeError, match=r"Multiple exceptions: 192\.0\.2\.1, 192\.0\.2\.2"):
        await start_connection([A4, B4], happy_eyeballs_delay=delay, socket_factory=factory)


async def test_common_errno_makes_the_subclass() -> None:
    errors = [err(errno.ECONNREFUSED, f"refused {n}") for n in range(2)]
    script = Script(dict(zip(hosts(A6, A4), errors, strict=True)))
    with pytest.raises(ConnectionRefusedError) as caught:
        await script.run(A6, A4, happy_eyeballs_delay=0.3)
    assert caught.value.errno == errno.ECONNREFUSED
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert list(caught.value.__cause__.exceptions) == errors


@pytest.mark.parametrize("local", [[], [LOCAL6]])
async def test_no_local_address_of_the_family(local: list[AddrInfoType]) -> None:
    script = Script()
    with pytest.raises(OSError, match=r"no matching local address with family=.* found") as caught:
        await script.run(A4, local_addr_infos=local)
    assert caught.value.errno is None
    assert script.connects == []


async def test_binds_that_failed_before_another_worked_do_not_count() -> None:
    script = Script(
        {"192.0.2.1": err(errno.ECONNREFUSED, "refused")},
        bind_errors={"127.0.0.1": err(errno.EADDRNOTAVAIL, "no"), "127.0.0.2": err(errno.EADDRINUSE, "no")},
    )
    with pytest.raises(ConnectionRefusedError, match="refused") as caught:
        await script.run(A4, local_addr_infos=[LOCAL4, v4("127.0.0.2", 0), v4("127.0.0.3", 0)])
    assert caught.value.__cause__ is None


async def test_every_bind_error_counts_if_none_worked() -> None:
    script = Script(bind_errors={"127.0.0.1": err(1, "One"), "127.0.0.2": err(2, "Two")})
    with pytest.raises(OSError, match="Multiple exceptions") as caught:
        await script.run(A4, local_addr_infos=[LOCAL4, v4("127.0.0.2", 0)])
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert [error.errno for error in caught.value.__cause__.exceptions if isinstance(error, OSError)] == [1, 2]
    assert ": one" in str(caught.value)


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class WeakError(OSError):
    """Unlike its base, it can be watched by a weak reference."""


@pytest.mark.case("anyio#809")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("delay", [None, 0.3])
@pytest.mark.parametrize("where", ["bind", "connect"])
@pytest.mark.usefixtures("no_gc")
async def test_errors_leave_no_cycle(count: int, delay: float | None, where: str) -> None:
    class Fresh(FakeSocket):
        async def bind(self, address: Any) -> None:
            await trio.lowlevel.checkpoint()
            if where == "bind":
                raise WeakError(errno.EADDRNOTAVAIL, f"no {address[0]}")

        async def connect(self, address: Any) -> None:
            await trio.lowlevel.checkpoint()
            raise WeakError(errno.ECONNREFUSED, f"refused {address[0]}")

    watched: list[weakref.ref[BaseException]] = []
    try:
        await start_connection(
            [A6, B6, A4][:count],
            happy_eyeballs_delay=delay,
            local_addr_infos=[LOCAL6, v6("::2"), LOCAL4, v4("127.0.0.2")],
            socket_factory=lambda info: Fresh(Script(), info[0]),
        )
    except OSError as error:
        todo: list[BaseException | None] = [error]
        while todo:
            each = todo.pop()
            if isinstance(each, WeakError):
                watched.append(weakref.ref(each))
            if isinstance(each, BaseExceptionGroup):
                todo += each.exceptions
            elif each is not None:
                todo.append(each.__cause__)
        del each
    assert len(watched) == count * (2 if where == "bind" else 1)
    assert [reference() for reference in watched] == [None] * len(watched)


# Real sockets


async def test_real_sockets() -> None:
    async with (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] as listener:
        port = listener.socket.getsockname()[1]
        for factory in (None, lambda info: socket.socket(*info[:3])):
            sock = await start_connection(
                [v6("::1", port), v4("127.0.0.1", port)],
                happy_eyeballs_delay=0.25,
                local_addr_infos=[LOCAL6, v4("127.0.0.3", 0)],
                socket_factory=factory,
            )
            async with await listener.accept() as peer:
                assert peer.socket.getpeername()[0] == "127.0.0.3"
                with sock:
                    await sock.send(b"hello")
                    assert await peer.receive_some(5) == b"hello"


async def test_real_refused() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(ConnectionRefusedError) as caught:
            await start_connection([v4("127.0.0.1", port), v4("127.0.0.2", port)], happy_eyeballs_delay=0.25)
    assert caught.value.errno == errno.ECONNREFUSED
