"""Shared lookups: who waits for what, who is disturbed by whom, what is kept."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trioconn._errors import ConnectorClosedError, ResolveError
from trioconn._establish.dns_cache import DNSCache, ResolveResult
from trioconn._establish.resolve import MOST_ABANDONED, MOST_ADDRESSES, Lookups, sanitised
from trioconn._names import parse_host

from .fakes import ANY, V4, V6, FakeResolver, Reports, addresses, results, texts

if TYPE_CHECKING:
    from trio.testing import MockClock

HOST = parse_host("a.test")


class Mute(Exception):
    """Raises when it is asked what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


def made(resolver: FakeResolver, nursery: trio.Nursery, **options: Any) -> Lookups:
    lookups = Lookups(resolver, cache=options.pop("cache", DNSCache()), **options)
    lookups.start(nursery)
    return lookups


async def test_one_batch_in_the_order_of_the_resolver(nursery: trio.Nursery) -> None:
    resolver = FakeResolver({("a.test", ANY): results("192.0.2.1", "2001:db8::1", "192.0.2.2")})
    async with made(resolver, nursery).open(HOST) as answers:
        assert answers.pending == {ANY}
        batch = await answers.receive()
        assert (batch.family, texts(batch.results)) == (ANY, ["192.0.2.1", "2001:db8::1", "192.0.2.2"])
        assert not answers.pending
        with pytest.raises(trio.EndOfChannel):
            await answers.receive()


async def test_each_family_as_it_comes(nursery: trio.Nursery) -> None:
    resolver = FakeResolver({("a.test", V6): results("2001:db8::1")}, splits=True)
    resolver.gates[V6] = trio.Event()
    async with made(resolver, nursery).open(HOST) as answers:
        assert (await answers.receive()).family == V4
        assert answers.pending == {V6}
        with pytest.raises(trio.WouldBlock):
            answers.receive_nowait()
        resolver.gates[V6].set()
        assert texts((await answers.receive()).results) == ["2001:db8::1"]
        with pytest.raises(trio.EndOfChannel):
            answers.receive_nowait()


async def test_ipv6_is_always_asked_first(nursery: trio.Nursery) -> None:
    resolver = FakeResolver(splits=True)
    lookups = made(resolver, nursery, cache=None)
    for _ in range(40):  # trio shuffles; 40 times the right order by chance happens once in 10^12
        await addresses(lookups.open(HOST))
    assert resolver.asked == [("a.test", V6), ("a.test", V4)] * 40


async def test_one_family_failing_is_an_empty_batch(nursery: trio.Nursery) -> None:
    resolver = FakeResolver({("a.test", V6): OSError("broken")}, splits=True)
    async with made(resolver, nursery).open(HOST) as answers:
        batches = {batch.family: texts(batch.results) async for batch in answers}
    assert batches == {V6: [], V4: ["192.0.2.1"]}


async def test_only_the_family_asked_for(nursery: trio.Nursery) -> None:
    resolver = FakeResolver(splits=True)
    assert await addresses(made(resolver, nursery).open(HOST, V4)) == ["192.0.2.1"]
    assert resolver.asked == [("a.test", V4)]


@pytest.mark.aiohttp("tcp_connector_dns_cache_not_expired")
@pytest.mark.aiohttp("tcp_connector_dns_cache_forever")
@pytest.mark.aiohttp("tcp_connector_resolve_host")
async def test_cached_answers_need_no_task(nursery: trio.Nursery) -> None:
    resolver = FakeResolver({("a.test", ANY): results("192.0.2.1", "192.0.2.2")})
    lookups = made(resolver, nursery)
    await addresses(lookups.open(HOST))
    with lookups.open(HOST) as answers:
        assert texts(answers.receive_nowait().results) == ["192.0.2.1", "192.0.2.2"]
        assert not lookups.running
    with lookups.open(HOST) as answers:
        assert texts(answers.receive_nowait().results) == ["192.0.2.2", "192.0.2.1"]
    assert len(resolver.asked) == 1


@pytest.mark.aiohttp("tcp_connector_use_dns_cache_disabled")
async def test_without_cache_each_asks(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    lookups = made(resolver, nursery, cache=None)
    for _ in range(3):
        await addresses(lookups.open(HOST))
    assert len(resolver.asked) == 3


@pytest.mark.case("aiohttp#1914")
async def test_old_addresses_are_not_used_for_ever(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    resolver = FakeResolver()
    lookups = made(resolver, nursery)
    await addresses(lookups.open(HOST))
    resolver.answers["a.test", ANY] = results("192.0.2.9")
    await trio.sleep(9)
    assert await addresses(lookups.open(HOST)) == ["192.0.2.1"]
    await trio.sleep(1)
    assert await addresses(lookups.open(HOST)) == ["192.0.2.9"]


@pytest.mark.aiohttp("tcp_connector_dns_throttle_requests")
@pytest.mark.aiohttp("multiple_dns_resolution_requests_success")
async def test_one_lookup_for_all_who_wait(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery)
    found: list[list[str]] = []

    async def ask() -> None:
        found.append(await addresses(lookups.open(HOST)))

    async with trio.open_nursery() as askers:
        for _ in range(10):
            askers.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert lookups.running == 1
        resolver.gates[ANY].set()
    assert found == [["192.0.2.1"]] * 10
    assert len(resolver.asked) == 1


@pytest.mark.case("aiohttp#3431")
@pytest.mark.case("aiohttp#2910")
@pytest.mark.aiohttp("multiple_dns_resolution_requests_first_cancelled")
async def test_first_caller_cancelled(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery)
    found: list[list[str]] = []
    first = trio.CancelScope()

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await addresses(lookups.open(HOST)))

    async with trio.open_nursery() as askers:
        askers.start_soon(ask, first)
        await trio.testing.wait_all_tasks_blocked()
        askers.start_soon(ask, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert first.cancelled_caught
        resolver.gates[ANY].set()
    assert found == [["192.0.2.1"]]
    assert len(resolver.asked) == 1


@pytest.mark.aiohttp("multiple_dns_resolution_requests_cancelled")
@pytest.mark.aiohttp("tcp_connector_cancel_dns_error_captured")
@pytest.mark.parametrize("answer", [results("192.0.2.1"), OSError("broken")])
async def test_a_lookup_that_nobody_waits_for_fills_the_cache(nursery: trio.Nursery, answer: Any) -> None:
    resolver = FakeResolver({("a.test", ANY): answer})
    resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery)
    with lookups.open(HOST):
        await trio.testing.wait_all_tasks_blocked()
    resolver.gates[ANY].set()
    await trio.testing.wait_all_tasks_blocked()
    with lookups.open(HOST) as answers:
        if isinstance(answer, OSError):
            assert answers.receive_nowait().results == []
            with pytest.raises(ResolveError, match="broken"):
                answers.receive_nowait()
        else:
            assert texts(answers.receive_nowait().results) == ["192.0.2.1"]
    assert len(resolver.asked) == 1


@pytest.mark.aiohttp("dns_error")
@pytest.mark.aiohttp("tcp_connector_dns_throttle_requests_exception_spread")
@pytest.mark.aiohttp("multiple_dns_resolution_requests_failure")
async def test_each_waiter_gets_an_error_of_its_own(nursery: trio.Nursery) -> None:
    original = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    lookups = made(FakeResolver({("a.test", ANY): original}), nursery)
    errors: list[ResolveError] = []

    async def ask() -> None:
        with pytest.raises(ResolveError, match=r"cannot resolve a\.test: Name or service not known") as caught:
            await addresses(lookups.open(HOST))
        errors.append(caught.value)

    async with trio.open_nursery() as askers:
        for _ in range(3):
            askers.start_soon(ask)
    assert len({id(error) for error in errors}) == 3
    assert {error.__cause__ for error in errors} == {original}
    assert {(error.errno, error.stage) for error in errors} == {(socket.EAI_NONAME, "resolve")}


async def test_both_families_failing_keep_both_causes(nursery: trio.Nursery) -> None:
    causes = OSError("six"), LookupError("four")
    resolver = FakeResolver({("a.test", V6): causes[0], ("a.test", V4): causes[1]}, splits=True)
    with pytest.raises(ResolveError, match=r"six.*LookupError: four") as caught:
        await addresses(made(resolver, nursery).open(HOST))
    assert pytest.RaisesGroup(
        pytest.RaisesExc(check=lambda exc: exc is causes[0]), pytest.RaisesExc(check=lambda exc: exc is causes[1])
    ).matches(caught.value.__cause__)


@pytest.mark.security(93)
@pytest.mark.parametrize(
    "answer",
    [
        OSError(), ValueError("what"), StopIteration(), StopAsyncIteration(), RuntimeError(), AssertionError(),
        ExceptionGroup("odd", [ValueError()]), trio.TooSlowError(), trio.EndOfChannel(), [], None, 5,
        [None, 5, "192.0.2.1"],
        results("a.test", "127.1", "", "::1%", "192.0.2.1%1", "fe80::1%a b", "192.0.2.1:80", "[::1]"),
        [ResolveResult("192.0.2.1", V6), ResolveResult("::1", V4), ResolveResult(b"192.0.2.1", V4)],  # type: ignore[arg-type]
    ],
)  # fmt: skip
async def test_odd_resolvers(nursery: trio.Nursery, answer: Any) -> None:
    resolver = FakeResolver({("a.test", ANY): answer})
    lookups = made(resolver, nursery)
    with pytest.raises(ResolveError, match=r"cannot resolve a\.test: \w+"):
        await addresses(lookups.open(HOST))
    assert await addresses(lookups.open(parse_host("b.test"))) == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ResolveError("the zone is signed, the answer is not"), "the zone is signed, the answer is not"),
        (OSError(5, "no cable\x1b[2J"), r"no cable\x1b[2J"),
        (ValueError("what"), "the resolver raised ValueError: what"),
        (ValueError(), "the resolver raised ValueError"),
        (Mute(), "the resolver raised Mute"),
    ],
    ids=["ours", "system", "foreign", "silent", "mute"],
)
async def test_what_a_resolver_says_is_passed_on(nursery: trio.Nursery, raised: Exception, told: str) -> None:
    with pytest.raises(ResolveError) as caught:
        await addresses(made(FakeResolver({("a.test", ANY): raised}), nursery).open(HOST))
    assert str(caught.value) == f"cannot resolve a.test: {told}"


@pytest.mark.security(93)
def test_what_is_used_of_an_answer() -> None:
    many = results(*(f"10.0.{number >> 8}.{number & 255}" for number in range(5000)))
    assert sanitised(many, ANY) == many[:MOST_ADDRESSES]
    assert texts(sanitised(results("::1", "192.0.2.1", "0:0::1", "192.0.2.1"), ANY)) == ["::1", "192.0.2.1"]
    assert texts(sanitised(results("::1", "192.0.2.1"), V4)) == ["192.0.2.1"]
    assert texts(sanitised(results("fe80::1%eth0"), V6)) == ["fe80::1%eth0"]
    assert [result.ttl for result in sanitised([ResolveResult("::1", V6, "5")], ANY)] == [None]  # type: ignore[arg-type]


@pytest.mark.aiohttp("resolver_not_called_with_address_is_ip")
@pytest.mark.parametrize(("text", "family"), [("127.0.0.1", V4), ("::1", V6), ("fe80::1%1", V6)])
async def test_literals_never_reach_the_resolver(nursery: trio.Nursery, text: str, family: int) -> None:
    resolver = FakeResolver(splits=True)
    lookups = made(resolver, nursery)
    assert await addresses(lookups.open(parse_host(text))) == [text]
    assert await addresses(lookups.open(parse_host(text), family)) == [text]
    with pytest.raises(ResolveError, match="family="):
        await addresses(lookups.open(parse_host(text), V4 + V6 - family))
    assert not resolver.asked


async def test_absolute_names_are_another_question(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    lookups = made(resolver, nursery)
    await addresses(lookups.open(HOST))
    await addresses(lookups.open(parse_host("A.test.")))
    assert resolver.asked == [("a.test", ANY), ("a.test.", ANY)]


async def test_a_resolver_that_hangs(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    resolver = FakeResolver()
    resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery, lookup_timeout=7)
    start = trio.current_time()
    with pytest.raises(ResolveError, match="no answer within 7 s"):
        await addresses(lookups.open(HOST))
    assert trio.current_time() - start == 7
    assert not lookups.running


async def test_a_failure_is_remembered_for_a_short_time(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    resolver = FakeResolver({("a.test", ANY): OSError("broken")})
    lookups = made(resolver, nursery)
    for _ in range(2):
        with pytest.raises(ResolveError, match="broken"):
            await addresses(lookups.open(HOST))
    assert len(resolver.asked) == 1
    del resolver.answers["a.test", ANY]
    await trio.sleep(1)
    assert await addresses(lookups.open(HOST)) == ["192.0.2.1"]


@pytest.mark.parametrize("slow", [V4, V6])
async def test_no_ipv6_is_remembered_as_long_as_ipv4(
    nursery: trio.Nursery, autojump_clock: MockClock, slow: int
) -> None:
    resolver = FakeResolver({("a.test", V6): []}, splits=True)
    resolver.gates[slow] = trio.Event()
    lookups = made(resolver, nursery)
    with lookups.open(HOST) as answers:
        await trio.testing.wait_all_tasks_blocked()
        resolver.gates[slow].set()
        assert len([batch async for batch in answers]) == 2
    await trio.sleep(9)
    with lookups.open(HOST) as answers:
        assert not answers.pending
    await trio.sleep(1)
    await addresses(lookups.open(HOST))
    assert len(resolver.asked) == 4


@pytest.mark.aiohttp("tcp_connector_clear_dns_cache")
async def test_clear(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    lookups = made(resolver, nursery)
    await addresses(lookups.open(HOST))
    lookups.clear("other.test")
    await addresses(lookups.open(HOST))
    assert len(resolver.asked) == 1
    lookups.clear("A.TEST")
    await addresses(lookups.open(HOST))
    assert len(resolver.asked) == 2
    lookups.clear()
    await addresses(lookups.open(HOST))
    assert len(resolver.asked) == 3


async def test_clear_during_a_lookup(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    gate = resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery)
    with lookups.open(HOST) as old:
        await trio.testing.wait_all_tasks_blocked()
        lookups.clear(HOST)
        with lookups.open(HOST) as new:  # asks anew
            await trio.testing.wait_all_tasks_blocked()
            assert len(resolver.asked) == 2
            gate.set()
            assert await addresses(old) == await addresses(new) == ["192.0.2.1"]


async def test_clear_without_cache_concerns_lookups_of_the_name(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    gate = resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery, cache=None)
    with lookups.open(HOST) as first:
        await trio.testing.wait_all_tasks_blocked()
        lookups.clear("other.test")
        with lookups.open(HOST) as second:  # joins
            await trio.testing.wait_all_tasks_blocked()
            assert len(resolver.asked) == 1
            lookups.clear("A.test")
            with lookups.open(HOST) as third:  # asks anew
                await trio.testing.wait_all_tasks_blocked()
                assert len(resolver.asked) == 2
                gate.set()
                for answers in (first, second, third):
                    assert await addresses(answers) == ["192.0.2.1"]


@pytest.mark.case("aiohttp#12497")
@pytest.mark.case("aiohttp#8967")
@pytest.mark.aiohttp("close_cancels_resolve_host")
@pytest.mark.aiohttp("tcp_connector_dns_throttle_requests_cancelled_when_close")
async def test_close_during_a_lookup() -> None:
    resolver = FakeResolver(splits=True)
    resolver.gates = {V4: trio.Event(), V6: trio.Event()}
    errors: list[ConnectorClosedError] = []

    async def ask() -> None:
        with pytest.raises(ConnectorClosedError) as caught:
            await addresses(lookups.open(HOST))
        errors.append(caught.value)

    async with trio.open_nursery() as askers:
        async with trio.open_nursery() as nursery:
            lookups = made(resolver, nursery)
            askers.start_soon(ask)
            askers.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            lookups.close()
        assert len(resolver.ended) == 2  # the nursery ended without being cancelled: no task is left
    assert len({id(error) for error in errors}) == 2
    with pytest.raises(ConnectorClosedError):
        lookups.open(HOST)


async def test_a_cancelled_nursery_tells_those_who_wait() -> None:
    resolver = FakeResolver()
    resolver.gates[ANY] = trio.Event()
    async with trio.open_nursery() as nursery:
        lookups = made(resolver, nursery)
        answers = lookups.open(HOST)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectorClosedError):
        await addresses(answers)


async def test_not_entered() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        Lookups(FakeResolver(), cache=None).open(HOST)


async def test_abandoned_lookups_are_bounded(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery)
    for number in range(3 * MOST_ABANDONED):
        with lookups.open(parse_host(f"{number}.test")):
            await trio.testing.wait_all_tasks_blocked()
    await trio.testing.wait_all_tasks_blocked()
    assert lookups.running == MOST_ABANDONED
    assert len(resolver.ended) == 2 * MOST_ABANDONED
    resolver.gates[ANY].set()


@pytest.mark.aiohttp("tcp_connector_dns_tracing")
@pytest.mark.aiohttp("tcp_connector_dns_tracing_throttle_requests")
async def test_events(nursery: trio.Nursery) -> None:
    resolver = FakeResolver()
    resolver.gates[ANY] = trio.Event()
    lookups = made(resolver, nursery)
    first, second, third = Reports(), Reports(), Reports()
    with lookups.open(HOST, report=first) as one, lookups.open(HOST, report=second) as two:
        resolver.gates[ANY].set()
        await addresses(one)
        await addresses(two)
    await addresses(lookups.open(HOST, report=third))
    assert first.seen == [
        ("CacheMiss", {"host": "a.test"}),
        ("LookupStarted", {"host": "a.test", "shared": False}),
        ("LookupFinished", {"host": "a.test", "addresses": ("192.0.2.1",), "error": None}),
    ]
    assert second.seen[1] == ("LookupStarted", {"host": "a.test", "shared": True})
    assert second.seen[2] == first.seen[2]
    assert third.seen == [("CacheHit", {"host": "a.test"})]


@pytest.mark.aiohttp("tcp_connector_dns_tracing_cache_disabled")
async def test_events_without_cache_and_of_failures(nursery: trio.Nursery) -> None:
    reports = Reports()
    lookups = made(FakeResolver({("a.test", ANY): OSError("broken")}), nursery, cache=None)
    with pytest.raises(ResolveError):
        await addresses(lookups.open(HOST, report=reports))
    with lookups.open(HOST, report=reports):
        pass
    assert reports.names == ["LookupStarted", "LookupFinished"] * 2
    assert reports.seen[1][1]["error"] == "cannot resolve a.test: the resolver raised OSError: broken"
    assert "left" in reports.seen[3][1]["error"]


@pytest.mark.case("aiohttp#10529")
@pytest.mark.aiohttp("connector_resolve_in_case_of_trace_cache_miss_exception")
@pytest.mark.parametrize("bad", ["CacheMiss", "CacheHit", "LookupStarted", "LookupFinished"])
async def test_a_hook_that_raises(nursery: trio.Nursery, bad: str) -> None:
    def report(kind: type, **fields: Any) -> None:
        if kind.__name__ == bad:
            raise LookupError(bad)

    lookups = made(FakeResolver(), nursery)
    if bad == "CacheHit":
        await addresses(lookups.open(HOST))
    with pytest.raises(LookupError, match=bad):
        await addresses(lookups.open(HOST, report=report))
    assert await addresses(lookups.open(HOST)) == ["192.0.2.1"]


@pytest.mark.case("aiohttp#4014")
@pytest.mark.parametrize("ttl", [None, 0, 1e-9, 5, math.inf])
async def test_time_passes_between_answer_and_use(
    nursery: trio.Nursery, autojump_clock: MockClock, ttl: float | None
) -> None:
    lookups = made(FakeResolver(), nursery, cache=DNSCache(ttl=ttl))
    for _ in range(2):
        with lookups.open(HOST) as answers:
            await trio.sleep(100)
            assert await addresses(answers) == ["192.0.2.1"]
            await trio.sleep(100)


async def test_a_resolver_of_nothing_but_cancellation_checkpoints(nursery: trio.Nursery) -> None:
    with lookups_open(nursery) as answers:
        with trio.CancelScope() as scope:
            scope.cancel()
            await answers.receive()
        assert scope.cancelled_caught
        with trio.testing.assert_checkpoints():
            await answers.aclose()


def lookups_open(nursery: trio.Nursery) -> Any:
    return made(FakeResolver(), nursery).open(HOST)
