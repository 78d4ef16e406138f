"""The table of the DNS cache. The clock is a number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioconn._establish.dns_cache import DNSCache

from .fakes import ANY, V4, V6, results, texts

A = ("a.test", ANY)


def got(cache: DNSCache, now: float = 0.0, question: tuple[str, int] = A) -> list[str]:
    entry = cache.get(question, now)
    assert entry is not None
    return texts(entry.results)


@pytest.mark.aiohttp("next_addrs_basic")
@pytest.mark.aiohttp("next_addrs")
def test_each_get_turns_by_one() -> None:
    cache = DNSCache()
    cache.put(A, results("192.0.2.1", "192.0.2.2", "192.0.2.3"), 0)
    assert [got(cache)[0][-1] for _ in range(4)] == ["1", "2", "3", "1"]
    assert got(cache) == ["192.0.2.2", "192.0.2.3", "192.0.2.1"]


@pytest.mark.aiohttp("next_addrs_single")
def test_one_address_turns_into_itself() -> None:
    cache = DNSCache()
    cache.put(A, results("192.0.2.1"), 0)
    assert got(cache) == got(cache) == ["192.0.2.1"]


def test_turning_keeps_the_order_of_families() -> None:
    cache = DNSCache()
    cache.put(A, results("2001:db8::1", "192.0.2.1", "192.0.2.2", "2001:db8::2"), 0)
    assert got(cache) == ["2001:db8::1", "192.0.2.1", "192.0.2.2", "2001:db8::2"]
    assert got(cache) == ["2001:db8::2", "192.0.2.2", "192.0.2.1", "2001:db8::1"]


def test_the_same_servers_go_on_turning_after_expiry_of_a_refreshed_entry() -> None:
    cache = DNSCache(ttl=10)
    cache.put(A, results("192.0.2.1", "192.0.2.2"), 0)
    got(cache)
    cache.put(A, results("192.0.2.1", "192.0.2.2"), 5)
    assert got(cache, 5) == ["192.0.2.2", "192.0.2.1"]


@pytest.mark.case("aiohttp#7014")
@pytest.mark.aiohttp("never_expire")
@pytest.mark.aiohttp("always_expire")
@pytest.mark.aiohttp("not_expired_ttl_None")
@pytest.mark.parametrize(
    ("ttl", "kept_until", "gone_at"),
    [(None, 1e12, None), (math.inf, 1e12, None), (0, None, 0), (0.0, None, 0), (1e-9, 0, 1e-9), (10, 9.999, 10)],
)
def test_ttl_of_the_table(ttl: float | None, kept_until: float | None, gone_at: float | None) -> None:
    cache = DNSCache(ttl=ttl)
    cache.put(A, results("192.0.2.1"), 0)
    if kept_until is not None:
        assert cache.get(A, kept_until) is not None
    if gone_at is not None:
        assert cache.get(A, gone_at) is None
        assert len(cache) == 0


@pytest.mark.aiohttp("expired_ttl")
@pytest.mark.aiohttp("not_expired_ttl")
def test_ttl_counts_from_insertion_not_from_use() -> None:
    cache = DNSCache(ttl=10)
    cache.put(A, results("192.0.2.1"), 100)
    assert cache.get(A, 109) is not None
    assert cache.get(A, 110) is None


@pytest.mark.parametrize(
    ("ttl", "kept_until"),
    [
        (0.5, 0.4),
        (30, 29.9),
        (2**31, 86399.0),
        (1e300, 86399.0),
        (math.inf, 86399.0),
        (0, None),
        (-1, None),
        (math.nan, None),
    ],
)
def test_ttl_of_records(ttl: float, kept_until: float | None) -> None:
    cache = DNSCache(ttl=None)
    cache.put(A, results("192.0.2.1", ttl=ttl), 0)
    if kept_until is None:
        assert cache.get(A, 0) is None
    else:
        assert cache.get(A, kept_until) is not None
        assert cache.get(A, kept_until + 1) is None


def test_shortest_record_decides_and_zero_means_never_even_for_records() -> None:
    cache = DNSCache()
    cache.put(A, results("192.0.2.1", ttl=50) + results("192.0.2.2", ttl=5), 0)
    assert cache.get(A, 5) is None
    never = DNSCache(ttl=0)
    never.put(A, results("192.0.2.1", ttl=50), 0)
    assert len(never) == 0


def test_negative_answers_are_kept_for_a_short_time() -> None:
    cache = DNSCache(ttl=None)
    cache.put_negative(A, "no such name", -2, 0)
    entry = cache.get(A, 0.9)
    assert entry is not None
    assert (entry.results, entry.error, entry.errno) == ((), "no such name", -2)
    assert cache.get(A, 1.0) is None
    cache.put_negative(A, "no such name", -2, 0, until=30)
    assert cache.get(A, 29) is not None
    short = DNSCache(ttl=0.5)
    short.put_negative(A, "", None, 0)
    assert short.get(A, 0.5) is None


@pytest.mark.case("aiohttp#12106")
@pytest.mark.security(89)
@pytest.mark.aiohttp("max_size_eviction")
def test_five_thousand_names() -> None:
    cache = DNSCache(max_size=500)
    for number in range(5000):
        cache.put((f"{number}.test", V4), results("192.0.2.1"), 0)
        assert len(cache) <= 500
    assert cache.get(("4499.test", V4), 0) is None
    assert cache.get(("4500.test", V4), 0) is not None


@pytest.mark.aiohttp("lru_eviction")
@pytest.mark.aiohttp("lru_eviction_add")
def test_least_recently_used_goes_first() -> None:
    cache = DNSCache(max_size=3)
    for name in "abc":
        cache.put((name, V4), results("192.0.2.1"), 0)
    cache.get(("a", V4), 0)  # a use …
    cache.put(("b", V4), results("192.0.2.2"), 0)  # … and a new answer
    cache.peek(("c", V4), 0)  # not a use
    cache.put(("d", V4), results("192.0.2.1"), 0)
    assert [name for name in "abcd" if cache.peek((name, V4), 0)] == ["a", "b", "d"]


@pytest.mark.security(89)
def test_expired_entries_do_not_count() -> None:
    cache = DNSCache(max_size=2)
    cache.put(("old", V4), results("192.0.2.1"), 0)
    cache.put(("short", V4), results("192.0.2.1", ttl=1), 0)
    cache.put(("new", V4), results("192.0.2.1"), 5)
    assert cache.peek(("old", V4), 5) is not None
    assert cache.peek(("new", V4), 5) is not None


def test_size_zero_keeps_nothing() -> None:
    cache = DNSCache(max_size=0)
    cache.put(A, results("192.0.2.1"), 0)
    assert cache.get(A, 0) is None


@pytest.mark.aiohttp("clear")
@pytest.mark.aiohttp("remove")
def test_clear() -> None:
    cache = DNSCache()
    for question in (("a.test", V4), ("a.test", V6), ("a.test.", ANY), ("b.test", V4)):
        cache.put(question, results("192.0.2.1"), 0)
    cache.clear("unknown.test")
    assert len(cache) == 4
    cache.clear("a.test")
    assert len(cache) == 1
    cache.clear()
    assert len(cache) == 0


@pytest.mark.security(93)
def test_key_is_the_question() -> None:
    cache = DNSCache()
    cache.put(("a.test", V4), results("192.0.2.1"), 0)
    for other in (("a.test.", V4), ("a.test", V6), ("a.test", ANY), ("b.test", V4)):
        assert cache.get(other, 0) is None


@pytest.mark.parametrize("bad", [{"ttl": -1}, {"ttl": math.nan}, {"max_size": -1}, {"negative_ttl": -1}])
def test_bad_options(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DNSCache(**bad)  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"]), unique=True), st.integers(1, 9))
def test_turning_loses_nothing(some: list[str], times: int) -> None:
    cache = DNSCache()
    cache.put(A, results(*some), 0)
    turned = [got(cache) for _ in range(times)][-1]
    assert sorted(turned) == sorted(some)
    assert [":" in address for address in turned] == [":" in address for address in some]


def test_a_negative_ttl_may_be_zero_or_a_fraction() -> None:
    never = DNSCache(negative_ttl=0)
    never.put_negative(A, "no such name", -2, 0)
    assert len(never) == 0
    short = DNSCache(negative_ttl=0.5)
    short.put_negative(A, "no such name", -2, 0)
    assert short.get(A, 0.25) is not None
    assert short.get(A, 0.5) is None


def test_clear_of_an_absolute_name() -> None:
    cache = DNSCache()
    cache.put(("a.test", V4), results("192.0.2.1"), 0)
    cache.put(("a.test.", V4), results("192.0.2.1"), 0)
    cache.clear("a.test.")
    assert len(cache) == 0


def test_what_is_handed_out_tells_until_when_and_how_often() -> None:
    cache = DNSCache(ttl=10)
    cache.put(A, results("192.0.2.1", "192.0.2.2"), 0)
    cache.get(A, 1)
    entry = cache.get(A, 2)
    assert entry is not None
    assert (entry.expires, entry.turns) == (10, 1)


def test_what_ends_at_this_moment_is_not_kept_and_makes_room_for_others() -> None:
    cache = DNSCache(max_size=2)
    cache.put(("a", V4), results("192.0.2.1"), 0)
    cache.put(("b", V4), results("192.0.2.1", ttl=0), 0)
    assert len(cache) == 1
    cache.put(("c", V4), results("192.0.2.1", ttl=5), 0)
    cache.put(("d", V4), results("192.0.2.1"), 5)
    assert [name for name in "abcd" if cache.peek((name, V4), 5)] == ["a", "d"]
