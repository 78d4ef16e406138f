"""The system's resolver, with `socket.getaddrinfo` replaced: nothing here asks the network."""

from __future__ import annotations

import os
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trioconn._errors import ResolveError
from trioconn._establish import hosts_file
from trioconn._establish.dns_cache import DNSCache, ResolveResult
from trioconn._establish.resolve import Lookups
from trioconn._establish.system_resolver import THREADS, SystemResolver
from trioconn._names import parse_host

from .fakes import ANY, V4, V6, addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Info = tuple[Any, ...]
ADDRESSES: dict[int, list[Info]] = {
    V6: [(V6, 1, 6, "", ("2001:db8::1", 0, 0, 0))],
    V4: [(V4, 1, 6, "", ("192.0.2.1", 0))],
    ANY: [(V4, 1, 6, "", ("192.0.2.1", 0)), (V6, 1, 6, "", ("2001:db8::1", 0, 0, 0))],
}


class System:
    """Stands in for `socket.getaddrinfo`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.behave: Callable[[str, int, int], list[Info]] = lambda host, family, flags: ADDRESSES[family]

    def __call__(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Info]:
        if flags & socket.AI_NUMERICHOST:  # trio asks so first
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        self.asked.append((host, family, flags))
        return self.behave(host, family, flags)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> System:
    fake = System()
    monkeypatch.setattr(socket, "getaddrinfo", fake)
    monkeypatch.setattr(hosts_file, "default_path", lambda: str(tmp_path / "hosts"))
    return fake


def looking(nursery: trio.Nursery, **options: Any) -> Lookups:
    lookups = Lookups(SystemResolver(), cache=None, **options)
    lookups.start(nursery)
    return lookups


async def test_two_lookups_ipv6_first(system: System, nursery: trio.Nursery) -> None:
    lookups = looking(nursery)
    for _ in range(20):
        with lookups.open(parse_host("a.test")) as answers:
            assert {batch.family async for batch in answers} == {V4, V6}
    assert {asked[0] for asked in system.asked} == {"a.test"}
    assert sorted(family for _, family, _ in system.asked) == sorted([V4, V6] * 20)


@pytest.mark.parametrize("name", ["localhost", "printer", "printer.", "host.local", "x.localhost", "Named.Test"])
async def test_names_that_are_not_split(system: System, nursery: trio.Nursery, name: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("192.0.2.7 named.test  # pinned\n")
    assert await addresses(looking(nursery).open(parse_host(name))) == ["192.0.2.1", "2001:db8::1"]
    assert [family for _, family, _ in system.asked] == [ANY]


@pytest.mark.case("aiohttp#5357")
async def test_without_network_the_machine_still_knows_itself(system: System, nursery: trio.Nursery) -> None:
    def loopback_only(host: str, family: int, flags: int) -> list[Info]:
        if flags & socket.AI_ADDRCONFIG:
            raise socket.gaierror(socket.EAI_NONAME, "no interface")
        return ADDRESSES[family]

    system.behave = loopback_only
    assert await addresses(looking(nursery).open(parse_host("localhost"))) == ["192.0.2.1", "2001:db8::1"]
    assert len(system.asked) == 2


async def test_a_temporary_failure_is_not_asked_twice(system: System, nursery: trio.Nursery) -> None:
    def later(host: str, family: int, flags: int) -> list[Info]:
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    system.behave = later
    with pytest.raises(ResolveError, match="later") as caught:
        await addresses(looking(nursery).open(parse_host("localhost")))
    assert caught.value.errno == socket.EAI_AGAIN
    assert len(system.asked) == 1


async def test_scopes_are_kept(system: System) -> None:
    system.behave = lambda host, family, flags: [
        (V6, 1, 6, "", ("fe80::1", 0, 0, 3)),
        (V6, 1, 6, "", ("fe80::2%lo", 0, 0, 1)),
    ]
    assert await SystemResolver().resolve("a.test", family=V6) == [
        ResolveResult("fe80::1%3", V6),
        ResolveResult("fe80::2%lo", V6),
    ]


class Hook(trio.abc.HostnameResolver):
    def __init__(self) -> None:
        self.asked: list[tuple[Any, int]] = []

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        self.asked.append((host, family))
        await trio.lowlevel.checkpoint()
        return ADDRESSES[ANY]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_hook_of_trio_is_asked_once_and_its_order_kept(system: System, nursery: trio.Nursery) -> None:
    hook = Hook()
    lookups = looking(nursery)
    assert trio.socket.set_custom_hostname_resolver(hook) is None
    assert await addresses(lookups.open(parse_host("a.test"))) == ["192.0.2.1", "2001:db8::1"]
    assert hook.asked == [(b"a.test", ANY)]
    assert not system.asked
    assert trio.socket.set_custom_hostname_resolver(None) is hook  # asking for it left it in place
    await addresses(lookups.open(parse_host("a.test")))
    assert len(system.asked) == 2


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def hung(system: System, gate: threading.Event) -> None:
    def hang(host: str, family: int, flags: int) -> list[Info]:
        gate.wait(30)
        return ADDRESSES[family]

    system.behave = hang


@pytest.mark.case("anyio#1145")
async def test_hung_getaddrinfo_must_not_eat_trios_thread_limiter(
    system: System, nursery: trio.Nursery, gate: threading.Event, mock_clock: trio.testing.MockClock
) -> None:
    await hung(system, gate)
    ours = trio.to_thread.current_default_thread_limiter()
    lookups = looking(nursery, lookup_timeout=5)
    held = [lookups.open(parse_host(f"{number}.test")) for number in range(THREADS // 2)]
    await trio.testing.wait_all_tasks_blocked()
    assert ours.borrowed_tokens == 0
    late = lookups.open(parse_host("late.test"))
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(5)
    with pytest.raises(ResolveError, match=f"no answer within 5 s: all {THREADS} threads"):
        await addresses(late)
    for answers in held:
        with pytest.raises(ResolveError, match="no answer within 5 s"):
            await addresses(answers)
    assert not lookups.running
    assert await trio.to_thread.run_sync(lambda: 1) == 1


async def test_leaving_does_not_wait_for_the_thread(system: System, gate: threading.Event) -> None:
    await hung(system, gate)
    async with trio.open_nursery() as nursery:
        lookups = Lookups(SystemResolver(), cache=DNSCache())
        lookups.start(nursery)
        with lookups.open(parse_host("a.test")):
            await trio.testing.wait_all_tasks_blocked()
        lookups.close()
    assert not gate.is_set()


def test_hosts_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    hosts = hosts_file.HostsFile(path)
    assert hosts.addresses("a.test") == ()
    path.write_text("127.0.0.1 A.test a # x\n::1\ta.test.\nnonsense a.test\n\n#192.0.2.1 a.test\n127.0.0.1 a.test\n")
    assert hosts.addresses("a.TEST.") == ("127.0.0.1", "::1")
    assert hosts.addresses("x") == ()
    path.write_bytes(b"192.0.2.1 a.test \xff\n")
    assert hosts.addresses("a.test") == ("192.0.2.1",)
    path.write_text("#" * (hosts_file.MOST_BYTES + 1))
    assert hosts.addresses("a.test") == ()
    assert not hosts.readable
    path.unlink()
    assert hosts.addresses("a.test") == ()
    assert hosts.readable


def test_where_the_hosts_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_file, "sys", SimpleNamespace(platform="linux"))
    assert hosts_file.default_path() == "/etc/hosts"
    monkeypatch.setattr(hosts_file, "sys", SimpleNamespace(platform="win32"))
    below = ("System32", "drivers", "etc", "hosts")
    monkeypatch.setenv("SYSTEMROOT", r"D:\WINNT")
    assert hosts_file.default_path() == os.path.join(r"D:\WINNT", *below)
    monkeypatch.delenv("SYSTEMROOT")
    assert hosts_file.default_path() == os.path.join(r"C:\Windows", *below)


async def test_with_an_unreadably_long_hosts_file_nothing_is_split(
    system: System, nursery: trio.Nursery, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("#" * (hosts_file.MOST_BYTES + 1))
    await addresses(looking(nursery).open(parse_host("a.test")))
    assert [family for _, family, _ in system.asked] == [ANY]
