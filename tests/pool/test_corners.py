"""Corners of the rules that mutated pools got past the other tests in. See docs/mutation.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trioconn._pool_state import Ranking

MakeDesk = Callable[..., Any]


def test_uses_are_counted_of_older_connections_too(desk: MakeDesk) -> None:
    pool = desk(5)
    pool.lease("A", "old")
    pool.lease("A", "new")
    pool.released("old")
    pool.released("new", idle_for=0.125)
    pool.after(0.25)  # and no timer has come by
    assert pool.take("A") == "old"
    assert pool.records["old"].uses == 2


def test_who_bounces_twice_keeps_the_place_of_its_first_wait(desk: MakeDesk) -> None:
    pool = desk(5)
    pool.lease("A", "c1")
    pool.lease("A", "c2")
    pool.released("c1")
    pool.released("c2")
    assert pool.wanted("w1", "A") == ["grant w1 c2"]
    assert pool.bounced("w1", "c2") == ["grant w1 c1"]
    assert pool.wanted("w2", "A") == ["dial A/3"]
    assert pool.bounced("w1", "c1") == ["dial A/4"]
    # It had come before that attempt began, so its failure is the first's.
    assert pool.failed("A/3") == ["refuse w1"]


def test_a_full_endpoint_without_hunger_of_its_own(desk: MakeDesk) -> None:
    pool = desk(2, limit_per_host=1)
    pool.lease("A", "c1", dial_time=0.25)
    pool.lease("B", "c2", dial_time=0.25)
    assert pool.wanted("w", "C") == []
    assert pool.released("c1") == []
    assert pool.after(0.25).expired() == ["close c1 evicted", "dial C/1"]


def test_a_freed_connection_goes_to_the_hungrier_of_its_endpoint_and_of_the_others(desk: MakeDesk) -> None:
    pool = desk(3, limit_per_host=2)
    pool.lease("A1", "c1")
    pool.lease("A2", "c2")
    pool.lease("B", "c3")
    pool.use("c1", 8)
    assert pool.wanted("own", "A2") == []
    assert pool.wanted("other", "C") == []  # with nothing open, so hungrier
    assert pool.released("c1") == ["close c1 evicted", "dial C/1"]


def test_a_freed_connection_goes_to_its_own_endpoint_if_that_is_hungrier(desk: MakeDesk) -> None:
    pool = desk(3, limit_per_host=2)
    pool.lease("A1", "c1")
    pool.lease("A1", "c2")
    pool.lease("B", "c3")
    assert pool.wanted("own", "A2") == []
    assert pool.wanted("other", "C") == []  # as hungry, and later
    assert pool.released("c1") == ["close c1 evicted", "dial A2/1"]


def test_two_more_count_for_a_route_that_has_some_as_well(desk: MakeDesk) -> None:
    pool = desk(4)
    for connection in ("c1", "c2", "c3"):
        pool.lease("A", connection, dial_time=1)
    pool.lease("B", "c4", dial_time=1)
    assert pool.wanted("w", "B") == []
    assert pool.released("c1") == ["close c1 evicted", "dial B/2"]


def test_a_turn_lasts_twice_as_long_as_the_dial_took(desk: MakeDesk) -> None:
    for dial_time, waiting, over in ((0.25, 0.5, True), (0.25, 0.375, False), (4.0, 8.0, True), (4.0, 7.0, False)):
        pool = desk(1)
        pool.lease("A", "c", dial_time=dial_time)
        pool.use("c", 8)
        assert pool.wanted("w", "B") == []
        assert pool.after(waiting).released("c") == (["close c evicted", "dial B/1"] if over else [])


def test_idle_connections_leave_the_row_wherever_they_stand(desk: MakeDesk) -> None:
    for idle_for in (None, 10):
        for dead in ("c1", "c2", "c3"):
            pool = desk(5)
            left = [connection for connection in ("c3", "c2", "c1") if connection != dead]
            for connection in ("c1", "c2", "c3"):
                pool.lease("A", connection)
            for connection in ("c1", "c2", "c3"):
                pool.released(connection, idle_for=idle_for)
            assert pool.dropped(dead) == []
            assert [pool.take("A"), pool.take("A"), pool.take("A")] == [*left, None]


def test_a_lifetime_that_ends_at_the_moment_of_the_release_is_over(desk: MakeDesk) -> None:
    pool = desk(5)
    pool.lease("A", "c", expires=pool.now + 1)
    assert pool.after(1).released("c") == ["close c age"]


def test_a_full_endpoint_has_surplus_attempts_aborted_time_and_again(desk: MakeDesk) -> None:
    pool = desk(None, limit_per_host=2)
    pool.lease("A1", "c1")
    for number in (2, 3, 4):
        assert pool.wanted(f"w{number}", "A1") == [f"dial A1/{number}"]
        assert pool.released("c1") == [f"grant w{number} c1"]  # now that attempt is surplus
        assert pool.wanted(f"x{number}", "A2") == [f"abort A1/{number}"]
        assert pool.failed(f"A1/{number}") == [f"dial A2/{number - 1}"]
        assert pool.dialed(f"A2/{number - 1}", f"d{number}") == [f"grant x{number} d{number}"]
        assert pool.dropped(f"d{number}") == []


def test_a_grant_of_what_was_idle_has_consequences_for_others(desk: MakeDesk) -> None:
    pool = desk(3)
    pool.keep("A", "c1", dial_time=4)
    pool.lease("B", "c2")
    assert pool.wanted("w2", "B") == ["dial B/2"]
    assert pool.released("c2") == ["grant w2 c2"]
    assert pool.wanted("w", "C") == []  # c1 may still be kept a moment, and while something is idle nothing is aborted
    assert pool.wanted("x", "A") == ["grant x c1", "abort B/2"]


def test_the_newest_that_is_left_after_a_hand_out_can_leave_as_well(desk: MakeDesk) -> None:
    pool = desk(5)
    pool.lease("A", "c1")
    pool.lease("A", "c2")
    pool.released("c1")
    pool.released("c2")
    assert pool.take("A") == "c2"
    assert pool.dropped("c1") == []
    assert pool.take("A") is None


def test_all_that_is_due_at_one_moment_is_done_in_it(desk: MakeDesk) -> None:
    pool = desk(2)
    pool.lease("A", "c1", dial_time=0.25)
    pool.lease("B", "c2", dial_time=0.25)
    pool.released("c1")
    pool.released("c2")
    assert pool.wanted("w", "C") == pool.wanted("x", "D") == []
    assert pool.after(0.25).expired() == ["close c1 evicted", "dial C/1", "close c2 evicted", "dial D/1"]


def test_all_that_is_due_at_one_moment_is_done_at_each_endpoint(desk: MakeDesk) -> None:
    pool = desk(None, limit_per_host=1)
    pool.lease("A1", "c1", dial_time=0.25)
    pool.lease("B1", "c2", dial_time=0.25)
    pool.released("c1")
    pool.released("c2")
    assert pool.wanted("w", "A2") == pool.wanted("x", "B2") == []
    assert sorted(pool.after(0.25).expired()) == sorted([
        "close c1 evicted", "dial A2/1", "close c2 evicted", "dial B2/1",
    ])  # fmt: skip


def test_who_joins_the_hungry_is_told_what_is_due_at_that_moment(desk: MakeDesk) -> None:
    pool = desk(1, keepalive_timeout=0.25)
    pool.keep("A", "c", dial_time=4)
    assert pool.after(0.125).wanted("w", "B") == []
    assert pool.after(0.125).wanted("x", "B") == ["close c idle", "dial B/1"]


def test_a_route_whose_attempts_suffice_again_is_hungry_no_longer(desk: MakeDesk) -> None:
    pool = desk(3)
    pool.keep("B", "b", dial_time=4)
    pool.lease("A", "a")
    assert pool.wanted("w", "A") == ["dial A/2"]
    assert pool.wanted("x", "A") == []
    assert pool.deadline_in() == 0.5  # then b is closed for the other one
    assert pool.released("a") == ["grant w a"]
    assert pool.deadline_in() is None


def test_an_idle_connection_leaves_from_the_middle_and_then_its_older_neighbour(desk: MakeDesk) -> None:
    pool = desk(5)
    for connection in ("c1", "c2", "c3"):
        pool.lease("A", connection)
    for connection in ("c1", "c2", "c3"):
        pool.released(connection)
    assert pool.dropped("c2") == pool.dropped("c1") == []
    assert pool.take("A") == "c3"


def test_short_keep_alives_outlast_hundreds_of_others(desk: MakeDesk) -> None:
    """What is due early is written down apart, and that list is weeded when most of it is history."""
    pool = desk(5, keepalive_timeout=15)
    pool.lease("A", "c1")
    pool.lease("B", "c2")
    pool.keep("C", "c3")  # has been idle for longer, and may be for longer
    pool.released("c1", idle_for=5)
    for number in range(300):
        pool.released("c2", idle_for=6 + number / 64)
        assert pool.deadline_in() == 5
        assert pool.take("B") == "c2"
    pool.released("c2", idle_for=7)
    assert pool.after(5).expired() == ["close c1 idle"]
    assert pool.deadline_in() == 2
    assert pool.after(2).expired() == ["close c2 idle"]


def test_the_oldest_wait_of_an_endpoint_is_that_of_any_of_its_routes(desk: MakeDesk) -> None:
    pool = desk(1)
    pool.lease("X", "c")
    pool.wanted("w", "A1")
    pool.after(0.25).wanted("x", "A2")
    assert pool.after(0.25).pool.oldest_waits(pool.now) == {"A": 0.5}


def test_releases_with_a_short_keep_alive_do_not_disturb_the_order_of_arrival(desk: MakeDesk) -> None:
    pool = desk(1)
    pool.keep("A", "c", dial_time=4)
    assert pool.wanted("w", "B") == []
    for seconds in (3, 4, 5):
        assert pool.take("A") == "c"
        assert pool.released("c", idle_for=seconds) == []
    assert pool.wanted("x", "C") == []
    assert pool.after(0.5).expired() == ["close c evicted", "dial B/1"]


def test_an_early_end_that_was_struck_out_may_be_set_again(desk: MakeDesk) -> None:
    pool = desk(3, keepalive_timeout=15)
    pool.keep("B", "d")
    pool.lease("A", "c")
    pool.released("c", idle_for=5)
    assert pool.take("A") == "c"
    assert pool.deadline_in() == 15  # d's; that of c does not count now
    pool.after(1).released("c", idle_for=4)
    assert pool.deadline_in() == 4


def test_an_attempt_that_is_wanted_again_is_no_surplus(desk: MakeDesk) -> None:
    pool = desk(None, limit_per_host=2)
    pool.lease("A1", "c1")
    assert pool.wanted("w", "A1") == ["dial A1/2"]
    assert pool.released("c1") == ["grant w c1"]
    assert pool.wanted("x", "A1") == []
    assert pool.wanted("y", "A2") == []


def test_when_nobody_is_hungry_any_more_the_short_way_is_open_again(desk: MakeDesk) -> None:
    pool = desk(1)
    pool.lease("A", "c")
    for waiter, route in (("w", "B"), ("x", "C"), ("y", "B")):
        pool.wanted(waiter, route)
    assert pool.pool._hungry == 2
    for waiter in ("w", "x", "y"):
        pool.gave_up(waiter)
    assert pool.pool._hungry == 0


def test_an_attempt_says_how_far_it_has_come(desk: MakeDesk) -> None:
    pool = desk(1)
    pool.wanted("w", "A")
    attempt = pool.attempts["A/1"]
    assert repr(attempt) == f"<Attempt {attempt.number} at 'A': running>"
    assert pool.gave_up("w") == ["abort A/1"]
    assert repr(attempt) == f"<Attempt {attempt.number} at 'A': aborted>"
    pool.failed("A/1")
    assert repr(attempt) == f"<Attempt {attempt.number} at 'A': ended>"


def test_a_route_that_failed_and_has_no_attempt_left_keeps_its_turn(desk: MakeDesk) -> None:
    """It comes last (rule 6) only while another attempt of it is under way."""
    pool = desk(1)
    assert pool.wanted("w1", "A") == ["dial A/1"]
    pool.wanted("w2", "A")
    pool.wanted("x", "B")
    assert pool.failed("A/1") == ["refuse w1", "dial B/1"]
    pool.wanted("y", "C")
    assert pool.dialed("B/1", "b") == ["grant x b"]
    assert pool.released("b") == ["close b evicted", "dial A/2"]


def test_a_ranking_outlasts_hundreds_of_changes() -> None:
    """Outdated entries are passed over, and now and then thrown away."""
    ranking: Ranking[str, float] = Ranking()
    ranking.put("a", 0.0)  # in front of all that is outdated
    for number in range(300):
        ranking.put("b", 1000.0 - number)
        ranking.put("c", 1000.0 - number)  # an equal key: whoever came first
        assert ranking.first() == "a"
        assert len(ranking._heap) <= 2 * 3 + 32
    ranking.remove("a")
    assert ranking.first() == "b"
    ranking.put("b", 2000.0)
    assert (ranking.first(), ranking.key("b"), ranking.key("c")) == ("c", 2000.0, 701.0)
