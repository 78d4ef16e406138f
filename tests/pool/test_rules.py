"""Every rule and every preference of the pool by its own example, numbered as in `trioconn/_pool.py`.

Routes whose names begin with the same letter share an endpoint.
"""

from __future__ import annotations

import pytest

# ---- 1. Serve --------------------------------------------------------------------------------------------------------


def test_1_a_route_with_nothing_dials_and_success_serves_its_waiter(desk):
    d = desk(10)
    assert d.wanted("w", "A") == ["dial A/1"]
    assert d.dialed("A/1", "c") == ["grant w c"]
    assert d.records["c"].uses == 1


def test_1_the_newest_idle_connection_is_taken(desk):
    d = desk(10)
    for c in ("old", "mid", "new"):
        d.lease("A", c)
    for c in ("old", "mid", "new"):
        assert d.released(c) == []
    assert [d.take("A"), d.take("A"), d.take("A"), d.take("A")] == ["new", "mid", "old", None]


def test_1_wanted_takes_the_newest_too(desk):
    d = desk(10)
    d.lease("A", "first")
    d.lease("A", "second")
    d.released("second")
    d.released("first")
    assert d.wanted("w", "A") == ["grant w first"]


def test_1_newest_means_released_last_not_made_last(desk):
    d = desk(10)
    d.lease("A", "made first")
    d.lease("A", "made last")
    d.released("made last")
    d.released("made first")
    assert d.take("A") == "made first"


def test_1_only_connections_of_the_very_route_serve(desk):
    d = desk(10)
    d.keep("A", "c")
    assert d.take("Ab") is None
    assert d.wanted("w", "Ab") == ["dial Ab/1"]


def test_1_waiters_are_first_in_first_out(desk):
    d = desk(1)
    d.lease("A", "c")
    for w in ("w1", "w2", "w3"):
        assert d.wanted(w, "A") == []
    assert d.released("c") == ["grant w1 c"]
    assert d.released("c") == ["grant w2 c"]
    assert d.released("c") == ["grant w3 c"]
    assert d.released("c") == []
    assert d.records["c"].uses == 4


def test_1_a_release_serves_a_waiter_even_while_an_attempt_for_it_runs(desk):
    d = desk(2)
    d.lease("A", "c")
    assert d.wanted("w", "A") == ["dial A/2"]
    assert d.released("c") == ["grant w c"]


def test_1_expiry_is_tested_at_take_out_and_not_only_by_a_timer(desk):
    d = desk(1, keepalive_timeout=15)
    d.keep("A", "c")
    d.after(15)
    assert d.take("A") is None
    assert d.wanted("w", "A") == ["close c idle", "dial A/2"]


def test_1_just_before_expiry_it_is_handed_out(desk):
    d = desk(1, keepalive_timeout=15)
    d.keep("A", "c")
    assert d.after(14.999).take("A") == "c"


def test_1_keep_alive_starts_anew_with_each_release(desk):
    d = desk(1, keepalive_timeout=15)
    d.keep("A", "c")
    assert d.after(10).take("A") == "c"
    d.released("c")
    assert d.deadline_in() == 15
    assert d.after(14).take("A") == "c"


def test_1_an_expired_newest_does_not_hide_an_older_usable_one(desk):
    d = desk(2, keepalive_timeout=15)
    d.lease("A", "good")
    d.lease("A", "short")
    d.released("good")
    d.released("short", idle_for=1)
    assert d.after(2).take("A") == "good"
    assert d.expired() == ["close short idle"]
    assert d.released("good") == []
    assert d.take("A") == "good"


def test_1_lifetime_is_tested_at_take_out(desk):
    d = desk(1)
    d.keep("A", "c", expires=130.0)
    assert d.deadline_in() == 30
    d.after(30)
    assert d.take("A") is None
    assert d.wanted("w", "A") == ["close c age", "dial A/2"]


def test_1_lifetime_is_tested_at_release(desk):
    d = desk(1)
    d.lease("A", "c", expires=130.0)
    assert d.deadline_in() is None  # a leased connection is left alone
    assert d.after(30).released("c") == ["close c age"]


def test_1_an_old_connection_is_not_handed_to_a_waiter(desk):
    d = desk(1)
    d.lease("A", "c", expires=130.0)
    d.wanted("w", "A")
    assert d.after(31).released("c") == ["close c age", "dial A/2"]


def test_1_max_uses_is_tested_at_release(desk):
    d = desk(1, max_uses=2)
    d.lease("A", "c")
    d.wanted("w", "A")
    assert d.released("c") == ["grant w c"]
    assert d.released("c") == ["close c uses"]
    assert d.pool.open == 0


def test_1_force_close_closes_at_release(desk):
    d = desk(1, force_close=True)
    d.lease("A", "c")
    d.wanted("w", "A")
    assert d.released("c") == ["close c force_close", "dial A/2"]


@pytest.mark.parametrize("waits", [False, True])
def test_1_keep_alive_of_nothing_keeps_nothing(desk, waits):
    d = desk(1, keepalive_timeout=0)
    d.lease("A", "c")
    if waits:
        d.wanted("w", "A")
    assert d.released("c") == ["close c idle"] + ["dial A/2"] * waits


def test_1_idle_for_shortens_keep_alive_once(desk):
    d = desk(1, keepalive_timeout=15)
    d.lease("A", "c")
    assert d.released("c", idle_for=5) == []
    assert d.deadline_in() == 5
    assert d.take("A") == "c"
    assert d.released("c") == []
    assert d.deadline_in() == 15


def test_1_idle_for_never_lengthens(desk):
    d = desk(1, keepalive_timeout=15)
    d.lease("A", "c")
    d.released("c", idle_for=60)
    assert d.deadline_in() == 15


@pytest.mark.parametrize("idle_for", [0, -1])
def test_1_idle_for_nothing_closes(desk, idle_for):
    d = desk(1, keepalive_timeout=15)
    d.lease("A", "c")
    assert d.released("c", idle_for=idle_for) == ["close c idle"]


# ---- 2. Grow ---------------------------------------------------------------------------------------------------------


def test_2_one_attempt_per_waiter_while_there_is_room(desk):
    d = desk(2)
    assert d.wanted("w1", "A") == ["dial A/1"]
    assert d.wanted("w2", "A") == ["dial A/2"]
    assert d.wanted("w3", "A") == []
    assert (d.pool.open, d.pool.connecting, d.pool.waiting) == (2, 2, 3)


@pytest.mark.parametrize("limit", [None, 0])
def test_2_without_limit_everybody_dials(desk, limit):
    d = desk(limit)
    assert [d.wanted(f"w{n}", "A") for n in range(50)] == [[f"dial A/{n + 1}"] for n in range(50)]


def test_2_attempts_are_counted_and_not_paired(desk):
    d = desk(2)
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    assert d.dialed("A/2", "c") == ["grant w1 c"]  # the later attempt serves the earlier waiter


def test_2_a_running_attempt_that_nobody_needs_keeps_the_next_waiter_from_dialling(desk):
    d = desk(3)
    d.lease("A", "c")
    assert d.wanted("w", "A") == ["dial A/2"]
    assert d.released("c") == ["grant w c"]  # A/2 is surplus now
    assert d.wanted("next", "A") == []
    assert d.dialed("A/2", "c2") == ["grant next c2"]


def test_2_a_freed_slot_goes_to_the_hungry_route_with_fewest_open(desk):
    d = desk(4)
    d.lease("A", "a1")
    d.lease("A", "a2")
    d.lease("B", "b")
    d.lease("C", "c")
    d.wanted("wa", "A")
    d.wanted("wb", "B")
    assert d.dropped("c") == ["dial B/2"]  # though A came first, it holds two
    assert d.dropped("b") == ["dial A/3"]


def test_2_on_a_tie_the_route_that_is_hungry_longest(desk):
    d = desk(1)
    d.lease("X", "x")
    for route in ("A", "B", "C"):
        d.wanted(f"w{route}", route)
    d.gave_up("wA")
    d.wanted("wA again", "A")  # A was sated for a moment: it stands last
    assert d.dropped("x") == ["dial B/1"]


def test_2_a_dial_dates_hunger_anew(desk):
    d = desk(2)
    d.lease("X", "x")
    d.lease("Y", "y")
    for n in range(3):
        d.wanted(f"a{n}", "A")
    d.wanted("b", "B")
    assert d.dropped("x") == ["dial A/1"]
    d.dialed("A/1", "a")
    assert d.dropped("a") == ["dial B/1"]  # A fell back to nothing, but B has been there longer


def test_2_a_slot_freed_by_expiry_goes_to_the_hungry(desk):
    d = desk(2, keepalive_timeout=0.25)
    d.keep("A", "a", dial_time=0.4)
    d.lease("B", "b")
    assert d.wanted("w", "C") == []
    assert d.deadline_in() == 0.25
    assert d.after(0.25).expired() == ["close a idle", "dial C/1"]


# ---- 3. Attempts belong to routes ------------------------------------------------------------------------------------


def test_3_success_without_a_waiter_becomes_idle(desk):
    d = desk(2)
    d.lease("A", "c")
    d.wanted("w", "A")
    d.released("c")
    assert d.dialed("A/2", "c2") == []
    assert d.pool.idle == 1
    assert d.records["c2"].state == "idle"
    assert d.records["c2"].uses == 0


def test_3_failure_refuses_the_oldest_waiter(desk):
    d = desk(2)
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    assert d.failed("A/1") == ["refuse w1"]
    assert d.failed("A/2") == ["refuse w2"]
    assert d.pool.open == 0


def test_3_failures_out_of_order_refuse_the_oldest_too(desk):
    d = desk(2)
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    assert d.failed("A/2") == ["refuse w1"]
    assert d.failed("A/1") == ["dial A/3"]  # w2 came after A/1 began


def test_3_failure_refuses_only_who_was_there_when_it_began(desk):
    d = desk(2)
    d.lease("A", "c")
    d.wanted("w1", "A")
    d.released("c")  # serves w1; A/2 is surplus
    d.wanted("late", "A")
    assert d.failed("A/2") == ["dial A/3"]  # refuses nobody
    assert d.failed("A/3") == ["refuse late"]


def test_3_failure_frees_the_slot_for_others(desk):
    d = desk(1)
    d.wanted("wa", "A")
    d.wanted("wb", "B")
    assert d.failed("A/1") == ["refuse wa", "dial B/1"]


def test_3_surplus_attempts_run_on(desk):
    d = desk(2)
    d.lease("A", "a")
    d.wanted("w", "A")
    for _ in range(20):
        assert d.released("a") in ([], ["grant w a"])
        if d.records["a"].state == "idle":
            assert d.wanted("w", "A") == ["grant w a"]
    assert d.pool.connecting == 1


def test_3a_who_gives_up_aborts_the_oldest_surplus_attempt(desk):
    d = desk(3)
    for w in ("w1", "w2", "w3"):
        d.wanted(w, "A")
    assert d.gave_up("w2") == ["abort A/1"]
    assert d.gave_up("w1") == ["abort A/2"]
    assert d.gave_up("w3") == ["abort A/3"]


def test_3a_who_gives_up_aborts_nothing_that_is_needed(desk):
    d = desk(1)
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    assert d.gave_up("w1") == []
    assert d.dialed("A/1", "c") == ["grant w2 c"]


def test_3a_one_abort_for_one_who_gives_up(desk):
    d = desk(4)
    d.lease("A", "a")
    d.lease("A", "b")
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    d.released("a")
    d.released("b")  # two surplus attempts
    d.wanted("w3", "A")
    assert d.gave_up("w3") == ["abort A/3"]


def test_3a_an_attempt_of_prewarm_is_not_aborted(desk):
    d = desk(2)
    assert d.prewarmed("A", 1) == ["dial A/1"]
    assert d.wanted("w", "A") == []
    assert d.gave_up("w") == []


def test_3a_prewarm_first_in_line_is_passed_over(desk):
    d = desk(2)
    d.prewarmed("A", 1)
    d.wanted("w1", "A")
    assert d.wanted("w2", "A") == ["dial A/2"]
    assert d.gave_up("w2") == ["abort A/2"]


def test_3_an_aborted_attempt_takes_room_but_stills_no_hunger(desk):
    d = desk(2)
    d.wanted("w", "A")
    d.gave_up("w")
    assert d.pool.open == 1
    assert d.wanted("w again", "A") == ["dial A/2"]
    assert d.wanted("third", "A") == []
    assert d.failed("A/1") == ["dial A/3"]


def test_3_an_aborted_attempt_that_ends_refuses_nobody(desk):
    d = desk(1)
    d.wanted("w", "A")
    d.gave_up("w")
    d.wanted("w2", "A")
    assert d.failed("A/1") == ["dial A/2"]


def test_3_an_aborted_attempt_that_succeeds_serves_a_waiter(desk):
    d = desk(1)
    d.wanted("w", "A")
    assert d.gave_up("w") == ["abort A/1"]
    d.wanted("w2", "A")
    assert d.dialed("A/1", "c") == ["grant w2 c"]


def test_3_an_aborted_attempt_that_succeeds_unasked_becomes_idle(desk):
    d = desk(1)
    d.wanted("w", "A")
    d.gave_up("w")
    assert d.dialed("A/1", "c") == []
    assert d.take("A") == "c"


def surplus_attempt(d):
    """A: one leased, one surplus attempt A/2."""
    d.lease("A", "a")
    assert d.wanted("w", "A") == ["dial A/2"]
    assert d.released("a") == ["grant w a"]


def test_3b_a_surplus_attempt_is_aborted_for_a_route_with_nothing(desk):
    d = desk(2)
    surplus_attempt(d)
    assert d.wanted("wb", "B") == ["abort A/2"]
    assert d.wanted("wc", "C") == []  # one at a time
    assert d.failed("A/2") == ["dial B/1"]


def test_3b_one_at_a_time(desk):
    d = desk(4)
    d.lease("A", "a")
    d.lease("A", "b")
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    d.released("a")
    d.released("b")
    assert d.wanted("wb", "B") == ["abort A/3"]
    assert d.wanted("wc", "C") == []
    assert d.failed("A/3") == ["dial B/1", "abort A/4"]
    assert d.failed("A/4") == ["dial C/1"]


def test_3b_not_while_the_total_has_room(desk):
    d = desk(3)
    surplus_attempt(d)
    assert d.wanted("wb", "B") == ["dial B/1"]


def test_3b_not_while_anything_is_idle(desk):
    d = desk(3)
    surplus_attempt(d)
    d.keep("C", "c", dial_time=0.1)
    assert d.wanted("wb", "B") == []
    assert d.deadline_in() == 0.1  # c is what B will get


def test_3b_when_the_last_idle_one_is_taken_the_abort_is_due_at_once(desk):
    d = desk(3)
    surplus_attempt(d)
    d.keep("C", "c", dial_time=0.1)
    d.wanted("wb", "B")
    assert d.pool.unsettled is None
    assert d.take("C") == "c"
    assert d.pool.unsettled is not None
    assert d.deadline_in() == 0
    assert d.expired() == ["abort A/2"]
    assert d.deadline_in() is None


def test_3b_not_for_a_route_that_has_something(desk):
    d = desk(3)
    surplus_attempt(d)
    d.lease("B", "b")
    assert d.wanted("wb", "B") == []


def test_3b_the_oldest_surplus_attempt_of_all_routes(desk):
    d = desk(4)
    d.lease("A", "a")
    d.lease("B", "b")
    d.wanted("wb", "B")
    d.wanted("wa", "A")
    d.released("a")
    d.released("b")
    assert d.wanted("wc", "C") == ["abort B/2"]


def test_3b_a_waiter_of_its_own_shields_an_attempt(desk):
    d = desk(2)
    surplus_attempt(d)
    d.wanted("needs it", "A")
    assert d.wanted("wb", "B") == []


def test_3b_an_attempt_of_prewarm_too(desk):
    d = desk(1)
    d.prewarmed("A", 1)
    assert d.wanted("wb", "B") == ["abort A/1"]


def test_3b_within_a_full_endpoint(desk):
    d = desk(None, limit_per_host=2)
    surplus_attempt(d)
    assert d.wanted("other", "Ab") == ["abort A/2"]
    assert d.failed("A/2") == ["dial Ab/1"]


# ---- 4. Balanced turns -----------------------------------------------------------------------------------------------


def test_4a_a_freed_connection_goes_to_a_route_that_holds_two_less(desk):
    d = desk(2)
    d.lease("A", "a1", dial_time=1)
    d.lease("A", "a2", dial_time=1)
    d.wanted("wa", "A")
    d.wanted("wb", "B")
    assert d.released("a1") == ["close a1 evicted", "dial B/1"]
    assert d.released("a2") == ["grant wa a2"]  # they hold one each


def test_4a_not_to_one_that_holds_one_less(desk):
    d = desk(3)
    d.lease("A", "a1", dial_time=1)
    d.lease("A", "a2", dial_time=1)
    d.lease("B", "b", dial_time=1)
    d.wanted("wb", "B")
    d.wanted("wa", "A")
    assert d.released("a1") == ["grant wa a1"]


def test_4a_an_idle_connection_too(desk):
    d = desk(3)
    d.lease("A", "a1", dial_time=1)
    d.lease("A", "a2", dial_time=1)
    d.lease("A", "a3", dial_time=1)
    d.released("a1")
    assert d.wanted("wb", "B") == ["close a1 evicted", "dial B/1"]


def turn(d, *, uses=8, seconds=2.0):
    """A's only connection has had this much of its turn; dialling it took a second."""
    d.lease("A", "a", dial_time=1.0)
    d.use("a", uses - 1)
    d.after(seconds)


def test_4b_a_connection_that_had_its_turn_goes_to_a_route_with_nothing(desk):
    d = desk(1)
    turn(d)
    d.wanted("wb", "B")
    d.wanted("wa", "A")
    assert d.released("a") == ["close a evicted", "dial B/1"]


def test_4b_seven_uses_are_not_a_turn(desk):
    d = desk(1)
    turn(d, uses=7)
    d.wanted("wb", "B")
    d.wanted("wa", "A")
    assert d.released("a") == ["grant wa a"]
    assert d.released("a") == ["close a evicted", "dial B/1"]


def test_4b_less_than_twice_its_dial_is_not_a_turn(desk):
    d = desk(1)
    turn(d, seconds=1.9)
    d.wanted("wb", "B")
    d.wanted("wa", "A")
    assert d.released("a") == ["grant wa a"]


def test_4b_not_if_its_own_waiter_came_first(desk):
    d = desk(1)
    turn(d)
    d.wanted("wa", "A")
    d.wanted("wb", "B")
    assert d.released("a") == ["grant wa a"]
    assert d.released("a") == ["close a evicted", "dial B/1"]


def test_4b_not_for_a_route_that_holds_something(desk):
    d = desk(2)
    turn(d)
    d.lease("B", "b")
    d.wanted("wb", "B")
    d.wanted("wa", "A")
    assert d.released("a") == ["grant wa a"]


def test_4b_without_waiters_of_its_own_it_is_closed_at_release(desk):
    d = desk(1)
    turn(d)
    d.wanted("wb", "B")
    assert d.released("a") == ["close a evicted", "dial B/1"]


def test_4b_an_idle_connection_ends_its_turn_in_time(desk):
    d = desk(1)
    turn(d, seconds=1.75)
    d.wanted("wb", "B")
    assert d.released("a") == []
    assert d.deadline_in() == 0.25  # by 4c it would be 0.5
    assert d.after(0.125).expired() == []
    assert d.after(0.125).expired() == ["close a evicted", "dial B/1"]


def test_4b_the_slot_is_given_to_the_route_for_which_it_was_closed(desk):
    """A falls to nothing by the close, as B does; the Dial must still be B's."""
    d = desk(1)
    turn(d)
    d.wanted("wb", "B")
    for n in range(5):
        d.wanted(f"wa{n}", "A")
    assert d.released("a") == ["close a evicted", "dial B/1"]
    assert d.dialed("B/1", "b") == ["grant wb b"]


def test_4c_an_idle_connection_is_kept_as_long_as_its_dial_took(desk):
    d = desk(1)
    d.keep("A", "a", dial_time=0.2)
    assert d.wanted("w", "B") == []
    assert d.deadline_in() == 0.2
    assert d.after(0.19).expired() == []
    assert d.after(0.01).expired() == ["close a evicted", "dial B/1"]


def test_4c_at_most_half_a_second(desk):
    d = desk(1)
    d.keep("A", "a", dial_time=30)
    d.wanted("w", "B")
    assert d.deadline_in() == 0.5


def test_4c_counts_from_when_it_became_idle_not_from_when_somebody_wanted(desk):
    d = desk(1)
    d.keep("A", "a", dial_time=0.2)
    assert d.after(0.2).wanted("w", "B") == ["close a evicted", "dial B/1"]


def test_4c_is_no_reason_to_close_a_connection_with_waiters(desk):
    d = desk(1)
    d.lease("A", "a", dial_time=0)
    d.wanted("wb", "B")
    d.wanted("wa", "A")
    assert d.released("a") == ["grant wa a"]


def test_4_its_own_route_may_take_an_idle_connection_before_its_time_is_over(desk):
    d = desk(1)
    d.keep("A", "a", dial_time=0.2)
    d.wanted("w", "B")
    assert d.after(0.1).take("A") == "a"
    assert d.released("a") == []
    assert d.deadline_in() == 0.2


def test_4_of_the_idle_ones_only_the_longest_idle_is_looked_at(desk):
    d = desk(3)
    d.lease("A", "quick", dial_time=0.01)
    d.lease("B", "slow", dial_time=0.5)
    d.lease("C", "c")
    d.released("slow")
    d.released("quick")
    d.wanted("w", "D")
    assert d.deadline_in() == 0.5
    assert d.after(0.1).expired() == []
    assert d.after(0.4).expired() == ["close slow evicted", "dial D/1"]


def test_4_when_the_longest_idle_is_taken_the_next_is_looked_at(desk):
    d = desk(3)
    d.lease("A", "quick", dial_time=0.01)
    d.lease("B", "slow", dial_time=0.5)
    d.lease("C", "c")
    d.released("slow")
    d.released("quick")
    d.wanted("w", "D")
    d.after(0.1)
    assert d.take("B") == "slow"
    assert d.deadline_in() == 0
    assert d.expired() == ["close quick evicted", "dial D/1"]


def test_4_the_longest_idle_is_evicted_not_the_least_used(desk):
    d = desk(2)
    d.keep("A", "a")
    d.keep("B", "b")
    d.after(1)
    assert d.wanted("w", "C") == ["close a evicted", "dial C/1"]


def test_4_a_fresh_connection_serves_its_own_oldest_waiter_first(desk):
    d = desk(2)
    d.lease("A", "a1", dial_time=1)
    d.wanted("wa", "A")
    d.wanted("wb", "B")
    assert d.dialed("A/2", "a2") == ["grant wa a2"]  # though A holds two and B nothing


def test_4_the_hungriest_is_asked_and_nobody_else(desk):
    """C is hungry longest, but its waiter came after A's own; D, whose waiter came before, is not looked at."""
    d = desk(1)
    turn(d)
    d.wanted("c early", "C")
    d.wanted("d", "D")
    d.wanted("a", "A")
    d.wanted("c late", "C")
    d.gave_up("c early")
    assert d.released("a") == ["grant a a"]
    d.gave_up("c late")
    d.wanted("a again", "A")
    assert d.released("a") == ["close a evicted", "dial D/1"]


def test_4_taking_an_older_one_from_behind_an_expired_one_leaves_orders_too(desk):
    d = desk(4, keepalive_timeout=15)
    d.lease("A", "slow", dial_time=0.5)
    d.lease("B", "quick", dial_time=0.015625)
    d.lease("A", "short", dial_time=0.5)
    d.lease("C", "c")
    d.released("slow")
    d.released("quick")
    d.released("short", idle_for=0.25)
    d.wanted("wc", "C")
    assert d.after(0.25).take("A") == "slow"  # passes over `short`, whose time is over
    assert d.pool.unsettled
    assert d.expired() == ["close short idle", "dial C/2"]


# ---- 5. Two levels ---------------------------------------------------------------------------------------------------


def test_5_the_endpoint_bounds_its_routes_together(desk):
    d = desk(None, limit_per_host=2)
    assert d.wanted("w1", "A") == ["dial A/1"]
    assert d.wanted("w2", "Ab") == ["dial Ab/1"]
    assert d.wanted("w3", "Ac") == []
    assert d.wanted("w4", "B") == ["dial B/1"]
    assert d.failed("A/1") == ["refuse w1", "dial Ac/1"]


def test_5_a_hungry_route_of_a_full_endpoint_does_not_stand_in_others_way(desk):
    d = desk(3, limit_per_host=1)
    d.lease("A", "a")
    d.wanted("stuck", "Ab")
    d.lease("B", "b")
    d.lease("C", "c")
    d.wanted("next", "D")
    assert d.dropped("b") == ["dial D/1"]


def test_5_if_only_the_endpoint_is_full_its_own_longest_idle_is_closed(desk):
    d = desk(10, limit_per_host=2)
    d.keep("X", "x")
    d.lease("A", "a1", dial_time=0.1)
    d.lease("Ab", "a2", dial_time=0.1)
    d.released("a2")
    d.released("a1")
    assert d.wanted("w", "Ac") == []
    assert d.deadline_in() == 0.1
    assert d.after(0.1).expired() == ["close a2 evicted", "dial Ac/1"]


def test_5_if_only_the_endpoint_is_full_a_freed_connection_goes_to_its_own_routes(desk):
    d = desk(10, limit_per_host=2)
    d.lease("A", "a1", dial_time=1)
    d.lease("A", "a2", dial_time=1)
    d.wanted("wa", "A")
    d.wanted("wb", "Ab")
    assert d.released("a1") == ["close a1 evicted", "dial Ab/1"]


def test_5_if_only_an_endpoint_is_full_others_connections_are_left_alone(desk):
    d = desk(10, limit_per_host=1)
    d.lease("A", "a")
    d.keep("B", "b")
    d.wanted("w", "Ab")
    assert d.after(100).expired() == []
    assert d.pool.idle == 1


def test_5_if_the_total_is_full_routes_of_full_endpoints_get_no_foreign_connection(desk):
    d = desk(2, limit_per_host=1)
    d.lease("A", "a", dial_time=1)
    d.lease("B", "b", dial_time=1)
    d.wanted("stuck", "Ab")
    assert d.released("b") == []
    assert d.after(10).expired() == []
    assert d.wanted("w", "C") == ["close b evicted", "dial C/1"]


def test_5_if_the_total_is_full_a_freed_connection_may_go_to_its_own_full_endpoint(desk):
    d = desk(2, limit_per_host=1)
    turn(d)
    d.lease("B", "b")
    d.wanted("w", "Ab")
    assert d.released("a") == ["close a evicted", "dial Ab/1"]


def test_5_of_both_kinds_of_candidates_the_hungriest(desk):
    d = desk(4, limit_per_host=2)
    d.lease("A", "a1", dial_time=1)
    d.lease("A", "a2", dial_time=1)
    d.lease("B", "b1", dial_time=1)
    d.lease("C", "c1", dial_time=1)
    d.wanted("wb", "B")  # holds one, endpoint with room
    d.wanted("wab", "Ab")  # holds nothing, A's own endpoint
    assert d.released("a1") == ["close a1 evicted", "dial Ab/1"]


def test_5_both_full_an_endpoint_still_closes_its_own_idle_for_its_own_route(desk):
    d = desk(2, limit_per_host=1)
    d.keep("A", "a", dial_time=0.1)
    d.lease("B", "b", dial_time=0.1)
    assert d.after(0.1).wanted("w", "Ab") == ["close a evicted", "dial Ab/1"]


# ---- 6. Failing routes come last -------------------------------------------------------------------------------------


def failing(d, route, waiters):
    """`route` has failed once and has one attempt running; this many still wait. Needs one free slot."""
    d.wanted(f"{route} first", route)
    for n in range(waiters):
        d.wanted(f"{route} {n}", route)
    return d.failed(f"{route}/1")


def test_6_a_failing_route_with_an_attempt_running_sorts_behind_all(desk):
    d = desk(4)
    for c in ("x1", "x2", "x3"):
        d.lease("X", c)
    assert failing(d, "A", 3) == ["refuse A first", "dial A/2"]
    d.wanted("wx", "X")
    assert d.dropped("x1") == ["dial X/4"]  # X holds two more than A


def test_6_it_takes_nothing_from_anyone(desk):
    d = desk(4)
    for c in ("x1", "x2", "x3"):
        d.lease("X", c)
    failing(d, "A", 3)
    assert d.released("x1") == []  # by 4a it would be closed
    assert d.after(60).expired() == []
    assert d.deadline_in() is None


def test_6_free_room_it_may_use(desk):
    d = desk(2)
    d.lease("X", "x")
    assert failing(d, "A", 3) == ["refuse A first", "dial A/2"]
    assert d.dropped("x") == ["dial A/3"]


def test_6_without_an_attempt_running_it_is_as_hungry_as_others(desk):
    d = desk(2)
    d.lease("X", "x", dial_time=0.1)
    d.released("x")
    d.after(1)
    assert failing(d, "A", 1)[0] == "refuse A first"
    assert d.failed("A/2")[0] == "refuse A 0"
    assert d.pool.waiting == 0


def test_6_a_success_ends_it(desk):
    d = desk(4)
    for c in ("x1", "x2"):
        d.lease("X", c)
    d.wanted("w0", "A")
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    d.wanted("w3", "A")
    assert d.failed("A/1") == ["refuse w0", "dial A/3"]
    assert d.dialed("A/2", "a") == ["grant w1 a"]
    d.wanted("wx", "X")
    assert d.dropped("a") == ["dial A/4"]  # X holds two, A one


def test_6_a_second_failure_refuses_all_that_were_there_when_it_began(desk):
    d = desk(1)
    for n in range(4):
        d.wanted(f"w{n}", "A")
    assert d.failed("A/1") == ["refuse w0", "dial A/2"]
    d.wanted("late", "A")
    assert d.failed("A/2") == ["refuse w1", "refuse w2", "refuse w3", "dial A/3"]
    assert d.failed("A/3") == ["refuse late"]


def test_6_two_attempts_that_began_together_refuse_one_each(desk):
    d = desk(2)
    for n in range(4):
        d.wanted(f"w{n}", "A")
    assert d.failed("A/1") == ["refuse w0", "dial A/3"]
    assert d.failed("A/2") == ["refuse w1", "dial A/4"]


def test_6_an_aborted_attempt_is_no_failure(desk):
    d = desk(1)
    d.wanted("w0", "A")
    d.gave_up("w0")
    for n in range(1, 4):
        d.wanted(f"w{n}", "A")
    assert d.failed("A/1") == ["dial A/2"]
    assert d.failed("A/2") == ["refuse w1", "dial A/3"]


# ---- 7. Prewarm, bounced ---------------------------------------------------------------------------------------------


def test_7_prewarm_dials_until_the_route_holds_that_many(desk):
    d = desk(10)
    d.lease("A", "leased")
    d.keep("A", "idle")
    d.wanted("w", "A")
    assert d.take("A") is None
    assert d.prewarmed("A", 5) == ["dial A/3", "dial A/4", "dial A/5"]
    assert d.prewarmed("A", 5) == []
    assert d.attempts["A/3"].prewarm
    assert not d.attempts["A/1"].prewarm


def test_7_prewarm_uses_free_room_only(desk):
    d = desk(3, limit_per_host=2)
    d.keep("B", "b")
    assert d.prewarmed("A", 5) == ["dial A/1", "dial A/2"]
    assert d.after(100).prewarmed("C", 1) == []
    assert d.pool.open == 3


def test_7_room_that_has_just_come_goes_to_the_hungry_first(desk):
    d = desk(1, keepalive_timeout=0.3)
    d.keep("A", "a", dial_time=0.4)
    d.wanted("w", "B")
    d.after(0.3)
    assert d.prewarmed("A", 1) == ["close a idle", "dial B/1"]


def test_7_prewarmed_connections_become_idle(desk):
    d = desk(2)
    d.prewarmed("A", 2)
    assert d.dialed("A/1", "c1") == []
    assert d.dialed("A/2", "c2") == []
    assert d.pool.idle == 2


def test_7_a_waiter_is_served_by_an_attempt_of_prewarm(desk):
    d = desk(2)
    d.prewarmed("A", 1)
    assert d.wanted("w", "A") == []
    assert d.dialed("A/1", "c") == ["grant w c"]


def test_7_a_failure_of_prewarm_refuses_nobody(desk):
    d = desk(3)
    d.wanted("w", "A")
    d.prewarmed("A", 2)
    assert d.failed("A/2") == []
    assert d.failed("A/1") == ["refuse w"]


def test_7_a_waiter_who_relied_on_prewarm_gets_an_attempt_of_its_own(desk):
    d = desk(1)
    d.prewarmed("A", 1)
    d.wanted("w", "A")
    assert d.failed("A/1") == ["dial A/2"]


def test_7_prewarming_nothing_leaves_nothing(desk):
    d = desk(1)
    assert d.prewarmed("A", 0) == []
    assert d.pool.endpoints() == {}


def test_7_a_bounced_waiter_goes_to_the_head_of_its_queue(desk):
    d = desk(1)
    d.keep("A", "c")
    assert d.wanted("w1", "A") == ["grant w1 c"]
    d.wanted("w2", "A")
    assert d.bounced("w1", "c") == ["dial A/2"]
    assert d.dialed("A/2", "c2") == ["grant w1 c2"]
    assert d.released("c2") == ["grant w2 c2"]


def test_7_a_bounced_waiter_takes_the_next_idle_connection_of_its_route(desk):
    d = desk(3)
    d.lease("A", "c1")
    d.lease("A", "c2")
    d.released("c1")
    d.released("c2")
    assert d.wanted("w", "A") == ["grant w c2"]
    assert d.bounced("w", "c2") == ["grant w c1"]
    assert d.bounced("w", "c1") == ["dial A/3"]


def test_7_a_bounced_waiter_keeps_its_age(desk):
    """It counts as having waited all the time."""
    d = desk(1)
    d.lease("A", "a", dial_time=1.0)
    d.wanted("wa", "A")
    d.after(2)
    assert d.released("a") == ["grant wa a"]
    d.wanted("wb", "B")
    assert d.after(2).bounced("wa", "a") == ["dial B/1"]
    assert d.pool.oldest_wait(d.now) == 4


@pytest.mark.parametrize("queued", [True, False])
def test_7_its_age_is_its_own_and_not_that_of_an_earlier_lease(desk, queued):
    d = desk(1)
    d.lease("A", "a")
    d.after(2).released("a")
    if queued:
        d.wanted("w", "A")
    else:
        d.take("A")
    d.after(1).bounced("w", "a")
    assert d.pool.oldest_wait(d.now) == (1 if queued else 0)


def test_7_a_bounced_connection_frees_its_slot_for_others(desk):
    d = desk(1)
    d.keep("A", "c")
    d.wanted("w1", "A")
    d.wanted("w2", "B")
    assert d.bounced("w1", "c") == ["dial B/1"]
    assert d.failed("B/1") == ["refuse w2", "dial A/2"]


# ---- 8. Closed -------------------------------------------------------------------------------------------------------


def test_8_close_refuses_waiters_aborts_attempts_closes_idle(desk):
    d = desk(3)
    d.lease("A", "leased")
    d.keep("B", "idle", dial_time=1)
    d.wanted("w1", "C")
    d.wanted("w2", "D")
    d.wanted("w3", "D")
    assert d.closed() == ["refuse w1", "refuse w2", "refuse w3", "abort C/1", "close idle closed"]
    assert d.pool.is_closed
    assert (d.pool.open, d.pool.leased, d.pool.connecting, d.pool.waiting) == (2, 1, 1, 0)
    assert d.deadline_in() is None


def test_8_later_results_and_releases_are_closed(desk):
    d = desk(3)
    d.lease("A", "leased")
    d.lease("A", "dropped")
    d.wanted("w", "C")
    d.closed()
    assert d.dialed("C/1", "late") == ["close late closed"]
    assert d.released("leased") == ["close leased closed"]
    assert d.dropped("dropped") == []
    assert (d.pool.open, d.pool.endpoints()) == (0, {})


def test_8_failures_after_close_give_nothing(desk):
    d = desk(3)
    d.wanted("w", "C")
    d.closed()
    assert d.failed("C/1") == []
    assert d.pool.open == 0


def test_8_who_comes_later_is_refused(desk):
    d = desk(3)
    d.keep("A", "a")
    d.wanted("w0", "A")
    d.closed()
    assert d.wanted("w", "A") == ["refuse w"]
    assert d.bounced("w0", "a") == ["refuse w0"]
    assert d.prewarmed("A", 3) == []
    assert d.take("A") is None
    assert d.closed() == []


# ---- What cannot be --------------------------------------------------------------------------------------------------


def test_impossible_facts_are_told_at_once(desk):
    d = desk(5)
    d.wanted("w", "A")
    with pytest.raises(RuntimeError, match="waits already: 'w'"):
        d.wanted("w", "B")
    with pytest.raises(RuntimeError, match="gave up, but does not wait: 'nobody'"):
        d.gave_up("nobody")
    d.dialed("A/1", "c")
    for again in (lambda: d.dialed("A/1", "c"), lambda: d.failed("A/1")):
        with pytest.raises(RuntimeError, match=r"not under way: <Attempt .* at 'A': ended>"):
            again()
    with pytest.raises(RuntimeError, match="gave up, but does not wait"):
        d.gave_up("w")
    d.released("c")
    with pytest.raises(RuntimeError, match="released, but not leased: <Record 'c' of 'A': idle, 1 uses>"):
        d.released("c")
    with pytest.raises(RuntimeError, match="bounced, but not leased"):
        d.bounced("w", "c")
    d.dropped("c")
    with pytest.raises(RuntimeError, match="dropped, but not open here"):
        d.dropped("c")
    with pytest.raises(RuntimeError, match="released, but not leased"):
        d.released("c")
    assert (d.pool.open, d.pool.endpoints()) == (0, {})


def test_a_waiter_cannot_bounce_while_it_waits(desk):
    d = desk(5)
    d.lease("A", "c")
    d.wanted("w", "A")
    with pytest.raises(RuntimeError, match="waits already"):
        d.bounced("w", "c")
    assert d.pool.leased == 1


def test_attempts_and_connections_of_another_pool_are_refused(desk):
    ours, other = desk(5), desk(5)
    other.wanted("w", "A")
    other.lease("B", "c")
    with pytest.raises(RuntimeError, match="not an attempt of this pool"):
        ours.pool.dialed(other.attempts["A/1"], "c", 0.0)
    with pytest.raises(RuntimeError, match="not open here"):
        ours.pool.dropped(other.records["c"], 0.0)
    assert ours.pool.open == 0


# ---- Questions -------------------------------------------------------------------------------------------------------


def test_counts(desk):
    d = desk(4)
    d.lease("A", "a")
    d.lease("A", "idle", dial_time=9)
    d.lease("Ab", "ab")
    d.released("idle")
    d.wanted("w1", "B")
    d.after(0.25)
    d.wanted("w2", "B")
    d.after(0.125)
    pool = d.pool
    assert (pool.open, pool.leased, pool.idle, pool.connecting, pool.waiting) == (4, 2, 1, 1, 2)
    assert pool.oldest_wait(d.now) == 0.375
    assert [pool.open_of(route) for route in ("A", "Ab", "B", "nowhere")] == [2, 1, 1, 0]
    assert [r.connection for r in pool.leases()] == ["a", "ab"]


@pytest.mark.parametrize("limit_per_host", [None, 10])
def test_counts_per_endpoint(desk, limit_per_host):
    d = desk(5, limit_per_host=limit_per_host)
    d.lease("A", "a")
    d.lease("Ab", "ab", dial_time=1)
    d.released("ab")
    d.wanted("w1", "B")
    d.wanted("w2", "B")
    d.gave_up("w2")
    counts = d.pool.endpoints()
    assert counts["A"] == (2, 1, 1, 0, 0)
    assert counts["B"] == (2, 0, 0, 2, 1)  # an aborted attempt connects until it has ended
    assert counts["B"].waiting == 1
    assert [r.connection for r in d.pool.leases()] == ["a"]
    assert d.pool.open_of("Ab") == 1
    assert (d.pool.open, d.pool.leased, d.pool.idle, d.pool.connecting, d.pool.waiting) == (4, 1, 1, 2, 1)


def test_oldest_wait_per_endpoint(desk):
    """Of several routes to one endpoint the longest wait counts."""
    d = desk(2)
    d.lease("A", "a")
    d.lease("B", "b")
    d.wanted("w1", "Bb")
    d.after(2).wanted("w2", "B")
    d.wanted("w3", "A")
    d.after(1)
    assert d.pool.oldest_waits(d.now) == {"A": 1, "B": 3}
    d.gave_up("w1")
    assert d.pool.oldest_waits(d.now) == {"A": 1, "B": 1}
    d.gave_up("w2")
    d.gave_up("w3")
    assert d.pool.oldest_waits(d.now) == {}


def test_nothing_is_remembered_of_hosts_that_are_gone(desk):
    d = desk(5, limit_per_host=2)
    for n in range(100):
        route = f"{chr(200 + n)}"
        d.keep(route, f"c{n}")
        d.dropped(f"c{n}")
        d.wanted("w", route)
        d.gave_up("w")
        d.failed(f"{route}/2")
    pool = d.pool
    assert (pool.endpoints(), pool._homes, pool._places, pool._records, pool._queued) == ({}, {}, {}, {}, {})
    assert not pool._touched
    assert pool._ripening.first() is None


def test_early_dues_are_all_kept_however_often_they_are_filed(desk):
    """Lifetimes are filed apart from keep-alive; weeding that file out must forget no connection."""
    d = desk(None)
    for n in range(3):
        d.lease("A", f"c{n}", expires=1000.0 + n)
    for _ in range(300):
        for c in ("c0", "c1", "c2"):
            d.released(c, idle_for=500)
            d.take("A")
            d.released(c)
            d.take("A")
    assert len(d.pool._early) < 100
    for c in ("c2", "c0", "c1"):
        d.released(c)
    d.now = 1000.0
    assert d.deadline_in() == 0
    assert d.expired() == ["close c0 age"]
    d.now = 1002.5
    assert sorted(d.expired()) == ["close c1 age", "close c2 age"]


# ---- Bugs that others had --------------------------------------------------------------------------------------------


@pytest.mark.case("httpcore#1093")
def test_a_waiter_cancelled_after_it_was_granted_leaves_no_slot_behind(desk):
    d = desk(1)
    d.lease("A", "a")
    d.wanted("wb", "B")
    assert d.dropped("a") == ["dial B/1"]
    assert d.gave_up("wb") == ["abort B/1"]
    assert d.failed("B/1") == []
    assert d.wanted("next", "A") == ["dial A/2"]


@pytest.mark.case("httpcore#785")
def test_a_hundred_waiters_cancelled_at_once_leave_nothing(desk):
    d = desk(10)
    for n in range(100):
        d.wanted(f"w{n}", "A")
    d.dialed("A/1", "c")
    d.released("c")  # to w1
    for n in range(2, 100):
        d.gave_up(f"w{n}")
    d.dropped("c")
    for n in range(2, 11):
        d.failed(f"A/{n}")
    assert (d.pool.open, d.pool.leased, d.pool.waiting) == (0, 0, 0)
    assert d.wanted("next", "A") == ["dial A/11"]


@pytest.mark.case("httpcore#550")
def test_a_waiter_that_gives_up_at_once_leaves_no_entry(desk):
    d = desk(1)
    for n in range(3):
        d.wanted(f"w{n}", "A")
        d.gave_up(f"w{n}")
        d.failed(f"A/{n + 1}")
    assert (d.pool.open, d.pool.endpoints()) == (0, {})


@pytest.mark.case("aiohttp#9670")
@pytest.mark.parametrize("order", ["gives up, then released", "released, then gives up"])
def test_one_times_out_as_the_slot_frees_and_the_next_gets_it(desk, order):
    d = desk(1)
    d.lease("A", "c")
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    if order == "gives up, then released":
        assert d.gave_up("w1") == []
        assert d.released("c") == ["grant w2 c"]
    else:
        assert d.released("c") == ["grant w1 c"]
        assert d.released("c") == ["grant w2 c"]  # w1 gives back what it was granted
    assert d.pool.open == 1


@pytest.mark.case("aiohttp#2937")
def test_a_connection_is_handed_over_and_not_announced(desk):
    """Between grant and resumption it is nobody else's: a third cannot take it, and giving it back serves the next."""
    d = desk(1)
    d.lease("A", "c")
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    d.released("c")
    assert d.take("A") is None
    assert d.records["c"].state == "leased"
    assert d.dropped("c") == ["dial A/2"]


@pytest.mark.case("anyio#1145")
def test_the_head_of_the_queue_is_cancelled_and_the_second_goes_on(desk):
    d = desk(1)
    d.lease("A", "c")
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    d.gave_up("w1")
    assert d.released("c") == ["grant w2 c"]


@pytest.mark.case("aiohttp#835")
def test_connect_errors_eat_no_slots(desk):
    d = desk(1)
    for n in range(3):
        d.wanted(f"w{n}", "dead")
        assert d.failed(f"dead/{n + 1}") == [f"refuse w{n}"]
    assert d.wanted("w", "live") == ["dial live/1"]


@pytest.mark.case("aiohttp#2189")
def test_two_wait_for_a_dead_host_and_both_are_told(desk):
    d = desk(1)
    d.wanted("w1", "A")
    d.wanted("w2", "A")
    assert d.failed("A/1") == ["refuse w1", "dial A/2"]
    assert d.failed("A/2") == ["refuse w2"]


@pytest.mark.case("aiohttp#4562")
def test_three_wait_and_two_are_released_back_to_back(desk):
    d = desk(2)
    d.lease("A", "c1")
    d.lease("A", "c2")
    for n in range(3):
        d.wanted(f"w{n}", "A")
    assert d.released("c1") == ["grant w0 c1"]
    assert d.released("c2") == ["grant w1 c2"]
    assert d.wanted("w3", "A") == []
    assert d.released("c1") == ["grant w2 c1"]
    assert d.released("c2") == ["grant w3 c2"]


@pytest.mark.case("aiohttp#4936")
def test_a_slot_is_reserved_with_the_order_to_dial(desk):
    d = desk(5)
    dials = [order for n in range(50) for order in d.wanted(f"w{n}", "A")]
    assert len(dials) == 5
    assert d.pool.open == 5


@pytest.mark.case("go#32336")
def test_another_takes_the_connection_between_success_and_use(desk):
    """The limit is kept by counts that change with the facts, whatever happens between."""
    d = desk(1, limit_per_host=1)
    for n in range(100):
        d.wanted(f"w{n}", "A")
    assert d.dialed("A/1", "c") == ["grant w0 c"]
    for n in range(1, 100):
        assert d.released("c") == [f"grant w{n} c"]
    assert d.released("c") == []


@pytest.mark.case("go#33850")
def test_cancelled_waiters_are_forgotten_at_once(desk):
    d = desk(1)
    d.lease("A", "c")
    for n in range(10_000):
        d.wanted(f"w{n}", "A")
    for n in range(10_000):
        d.gave_up(f"w{n}")
    assert d.pool.waiting == 0
    assert d.pool.oldest_wait(d.now) == 0
    assert not d.pool._queued


@pytest.mark.case("httpcore#1110")
def test_what_was_granted_is_not_evicted(desk):
    d = desk(1)
    d.keep("A", "c")
    assert d.wanted("w", "A") == ["grant w c"]
    assert d.after(100).wanted("wb", "B") == []
    assert d.expired() == []
    assert d.records["c"].state == "leased"


@pytest.mark.case("httpcore#1000")
def test_leased_connections_do_not_crowd_out_idle_ones(desk):
    d = desk(3)
    d.lease("A", "a1")
    d.lease("A", "a2")
    d.keep("A", "a3")
    assert d.after(100).expired() == []
    assert d.pool.idle == 1


@pytest.mark.case("urllib3#644")
def test_errors_do_not_drain_the_pool(desk):
    d = desk(2)
    for n in range(3):
        d.lease("A", f"c{n}")
        d.dropped(f"c{n}")
    for n in range(3):
        d.wanted(f"w{n}", "A")
        d.failed(f"A/{n + 4}")
    d.lease("A", "good")
    assert d.pool.open == 1


@pytest.mark.case("undici#5662")
def test_who_gives_up_during_a_dial_is_gone_at_once(desk):
    d = desk(1)
    d.wanted("w", "A")
    assert d.gave_up("w") == ["abort A/1"]
    assert d.pool.waiting == 0


@pytest.mark.case("undici#5845")
def test_a_lease_that_is_closed_leaves_neither_connection_nor_dial(desk):
    d = desk(10, keepalive_timeout=15)
    d.lease("A", "c")
    assert d.dropped("c") == []
    assert (d.pool.open, d.deadline_in()) == (0, None)


@pytest.mark.case("undici#5845")
def test_a_connection_that_nobody_ever_used_expires_too(desk):
    d = desk(10, keepalive_timeout=15)
    d.lease("A", "c")
    d.wanted("w", "A")
    d.released("c")
    d.dialed("A/2", "unused")
    assert d.after(15).expired() == ["close unused idle"]


@pytest.mark.case("reqwest#2424")
def test_many_hosts_share_one_limit_and_the_longest_idle_goes(desk):
    d = desk(1)
    for n, route in enumerate("ABCDEF"):
        d.after(1)
        orders = d.wanted(f"w{n}", route)
        assert orders == ([f"close c{n - 1} evicted"] if n else []) + [f"dial {route}/1"]
        d.dialed(f"{route}/1", f"c{n}")
        d.released(f"c{n}")
        assert d.pool.open == 1


@pytest.mark.case("hyper#4134")
def test_a_connection_freed_while_a_dial_hangs_serves_and_the_dial_runs_on(desk):
    d = desk(2)
    d.lease("A", "c")
    assert d.wanted("w", "A") == ["dial A/2"]
    assert d.released("c") == ["grant w c"]
    assert d.pool.connecting == 1


@pytest.mark.case("urllib3#3184")
def test_the_idle_limit_holds_without_a_timer(desk):
    d = desk(1, keepalive_timeout=15)
    d.keep("A", "c")
    assert d.after(3600).take("A") is None
