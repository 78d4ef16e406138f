"""The race itself: no sockets, scripted attempts, virtual time, and the exact moment of everything."""

from __future__ import annotations

import errno
import gc
import math
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trioconn._establish.race import Attempt, Candidates, Outcome, bounded, race

NEVER = math.inf


@dataclass
class Script:
    """What an attempt does: after each of `progress` seconds it gets on, after `lasts` it wins or raises `error`."""

    name: str
    lasts: float = NEVER
    error: BaseException | None = None
    progress: tuple[float, ...] = ()
    stubborn: bool = False  # finishes even when cancelled


@dataclass
class Track:
    """Runs scripts, writes down what happened when, and knows which results are open."""

    started: list[tuple[str, float]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    most_open: int = 0
    origin: float = field(default_factory=trio.current_time)

    def now(self) -> float:
        return round(trio.current_time() - self.origin, 9)

    async def attempt(self, script: Script, me: Attempt) -> str:
        self.started.append((script.name, self.now()))
        self.open.add(script.name)
        self.most_open = max(self.most_open, len(self.open))
        born = trio.current_time()
        try:
            for moment in script.progress:
                await trio.sleep_until(born + moment)
                me.progressed()
            with trio.CancelScope(shield=script.stubborn):
                await trio.sleep_until(born + script.lasts)
            if script.error is not None:
                raise script.error
        except BaseException:
            self.open.discard(script.name)
            self.ended.append(script.name)
            raise
        return script.name

    def discard(self, result: str) -> None:
        assert result in self.open
        self.open.discard(result)
        self.discarded.append(result)

    async def run(self, *scripts: Script, delay: float | None = 0.25, **options: Any) -> Outcome[Script, str]:
        candidates = options.pop("candidates", None) or Candidates(scripts)
        outcome = await race(candidates, self.attempt, delay=delay, discard=self.discard, **options)
        assert self.open == ({outcome.won.result} if outcome.won else set())
        return outcome


def refused(name: str, lasts: float = 0, **more: Any) -> Script:
    return Script(name, lasts, ConnectionRefusedError(errno.ECONNREFUSED, f"{name} refused"), **more)


def won(outcome: Outcome[Script, str]) -> str | None:
    return outcome.won.result if outcome.won else None


# When the next one starts


@pytest.mark.parametrize(
    ("scripts", "delay", "winner", "starts", "end"),
    [
        pytest.param([Script("a", 0.1), Script("b", 0)], 0.25, "a", [("a", 0)], 0.1, id="the first is fast enough"),
        pytest.param([Script("a"), Script("b", 0.1)], 0.25, "b", [("a", 0), ("b", 0.25)], 0.35, id="the first hangs"),
        pytest.param([refused("a", 0.1), Script("b", 0.1)], 0.25, "b", [("a", 0), ("b", 0.1)], 0.2, id="fails early"),
        pytest.param(
            [Script("a", 0.4), Script("b", 0.3)], 0.25, "a", [("a", 0), ("b", 0.25)], 0.4, id="the older may still win"
        ),
        pytest.param(
            [refused("a", 0.3), Script("b"), Script("c", 0)],
            0.25,
            "c",
            [("a", 0), ("b", 0.25), ("c", 0.5)],
            0.5,
            id="the failure of an older one starts nothing",
        ),
        pytest.param(
            [Script("a"), refused("b", 0.1), Script("c", 0)],
            0.25,
            "c",
            [("a", 0), ("b", 0.25), ("c", 0.35)],
            0.35,
            id="the failure of the latest starts the next",
        ),
        pytest.param(
            [refused("a", 7), Script("b", 9), Script("c", 0)],
            None,
            "b",
            [("a", 0), ("b", 7)],
            16,
            id="without a delay one after the other",
        ),
        pytest.param([refused(name) for name in "abc"], 0.25, None, [(name, 0) for name in "abc"], 0, id="all fail"),
    ],
)
async def test_staggering(
    autojump_clock: MockClock,
    scripts: list[Script],
    delay: float | None,
    winner: str | None,
    starts: list[tuple[str, float]],
    end: float,
) -> None:
    track = Track()
    outcome = await track.run(*scripts, delay=delay)
    assert won(outcome) == winner
    assert track.started == starts
    assert track.now() == pytest.approx(end)
    assert outcome.started == len(starts)


async def test_progress_makes_the_delay_run_again(autojump_clock: MockClock) -> None:
    """TCP stood after 10 ms: the next one waits 250 ms from then on."""
    track = Track()
    await track.run(Script("mute", progress=(0.01,)), Script("b", 0))
    assert track.started == [("mute", 0), ("b", 0.26)]


async def test_progress_of_a_slow_path_gets_two_round_trips(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(Script("slow", 0.55, progress=(0.2,)), Script("b", 0))
    assert won(outcome) == "slow"
    assert track.started == [("slow", 0)]

    track = Track()
    await track.run(Script("mute", progress=(0.2,)), Script("b", 0))
    assert track.started == [("mute", 0), ("b", 0.6)]


async def test_progress_is_measured_once_and_bounded(autojump_clock: MockClock) -> None:
    """The first packet was lost: its 1.5 s are no reason to wait for three more."""
    track = Track()
    await track.run(Script("mute", progress=(1.5,)), Script("b"), Script("c", 0))
    assert track.started == [("mute", 0), ("b", 0.25), ("c", 0.5)]  # c was due before the progress

    track = Track()
    await track.run(Script("mute", progress=(1.5, 1.6)), Script("b", 0), delay=1.9)
    assert track.started == [("mute", 0), ("b", 3.6)]

    track = Track()
    await track.run(Script("mute", progress=(0.2, 0.5)), Script("b", 0))
    assert track.started == [("mute", 0), ("b", 0.9)]


async def test_progress_of_an_older_attempt_holds_the_next_back(autojump_clock: MockClock) -> None:
    track = Track()
    await track.run(Script("a", progress=(0.3,)), Script("b"), Script("c", 0))
    assert track.started == [("a", 0), ("b", 0.25), ("c", 0.9)]


async def test_progress_of_an_older_attempt_does_not_outweigh_a_failure(autojump_clock: MockClock) -> None:
    track = Track()
    await track.run(Script("a", progress=(0.3,)), refused("b", 0.1), Script("c", 0))
    assert track.started == [("a", 0), ("b", 0.25), ("c", 0.35)]


async def test_progress_that_ends_in_a_failure_holds_nothing_back(autojump_clock: MockClock) -> None:
    track = Track()
    await track.run(refused("a", 0.6, progress=(0.3,)), Script("b"), Script("c", 0))
    assert track.started == [("a", 0), ("b", 0.25), ("c", 0.6)]


def test_delays_are_bounded() -> None:
    assert bounded(0.25) == 0.25
    assert bounded(0) == 0.01
    assert bounded(0.001) == 0.01
    assert bounded(60) == 2.0
    assert bounded(None) is None
    assert bounded(math.inf) is None


async def test_the_bound_is_on_the_delay_not_on_the_start(autojump_clock: MockClock) -> None:
    """Eleven refused ones take no time: otherwise nobody's lists of dead addresses would."""
    track = Track()
    outcome = await track.run(*[refused(f"dead {n}") for n in range(10)], Script("good", 0))
    assert won(outcome) == "good"
    assert track.now() == 0


# Who wins


@pytest.mark.parametrize("turn", range(20))
async def test_two_attempts_win_in_one_tick(autojump_clock: MockClock, nursery: trio.Nursery, turn: int) -> None:
    """Trio shuffles the tasks of a tick; the earlier started one wins all the same, the other is closed."""
    gate = trio.Event()
    discarded: list[str] = []

    async def attempt(name: str, me: Attempt) -> str:
        await gate.wait()
        return name

    async def open_gate() -> None:
        await trio.sleep(0.6)
        gate.set()

    nursery.start_soon(open_gate)
    outcome = await race(Candidates("abcd"), attempt, delay=0.25, discard=discarded.append)
    assert outcome.won is not None
    assert outcome.won.result == "a"
    assert discarded == ["b", "c"]


async def test_a_loser_that_succeeds_late_is_discarded(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(Script("a"), Script("b", 0.3, stubborn=True), Script("c", 0))
    assert won(outcome) == "b"
    assert track.discarded == ["c"]
    assert track.now() == pytest.approx(0.55)


async def test_losers_are_cancelled_and_awaited(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(Script("a"), Script("b"), Script("c", 0.1))
    assert won(outcome) == "c"
    assert sorted(track.ended) == ["a", "b"]
    assert outcome.failures == []
    assert outcome.started == 3


@pytest.mark.parametrize("cancel_first", [False, True])
async def test_race_won_then_outer_cancel(autojump_clock: MockClock, cancel_first: bool) -> None:
    """The winner has ended, the caller is cancelled before it sees it: the result is returned or discarded."""
    discarded: list[str] = []
    returned: Outcome[str, str] | None = None

    async def attempt(name: str, me: Attempt) -> str:
        if name == "mute":
            await trio.sleep_forever()
        if cancel_first:
            scope.cancel()
        return name

    with trio.CancelScope() as scope:
        returned = await race(Candidates(["mute", "winner"]), attempt, delay=0.25, discard=discarded.append)
        scope.cancel()  # now it is the caller's
    if cancel_first:
        assert scope.cancelled_caught
        assert returned is None
        assert discarded == ["winner"]
    else:
        assert returned is not None
        assert returned.won is not None
        assert discarded == []


async def test_outer_cancellation_comes_out_bare_and_leaves_nothing(autojump_clock: MockClock) -> None:
    track = Track()
    with trio.move_on_after(0.6) as scope:
        with pytest.raises(trio.Cancelled) as caught:
            await track.run(*[Script(name) for name in "abcdef"])
        raise caught.value
    assert scope.cancelled_caught
    assert track.open == set()
    assert [name for name, _ in track.started] == ["a", "b", "c"]
    assert track.now() == pytest.approx(0.6)


async def test_cancelled_before_it_begins(autojump_clock: MockClock) -> None:
    track = Track()
    for scripts in ([Script("a", 0)], [Script("a", 0), Script("b", 0)]):
        with trio.CancelScope() as scope:
            scope.cancel()
            await track.run(*scripts)
        assert scope.cancelled_caught
        assert track.open == set()


# What is no failure


@pytest.mark.case("aiohappyeyeballs#93")
@pytest.mark.parametrize("delay", [0.25, None])
async def test_a_bug_in_an_attempt_comes_out_as_it_is(autojump_clock: MockClock, delay: float | None) -> None:
    track = Track()
    with pytest.raises(ZeroDivisionError):
        await track.run(refused("a"), Script("b", 0.1, ZeroDivisionError()), Script("c", 0.2), delay=delay)
    assert track.open == set()


async def test_a_bug_closes_a_result_that_was_won_in_the_same_tick(autojump_clock: MockClock) -> None:
    track = Track()
    with pytest.raises(ZeroDivisionError):
        await track.run(
            Script("a"), Script("bug", 0.25, ZeroDivisionError(), stubborn=True), Script("c", 0, stubborn=True)
        )
    assert track.open == set()


async def test_nothing_is_started_after_a_bug(autojump_clock: MockClock) -> None:
    """That the latest attempt has ended would be a reason to start the next."""
    track = Track()
    with pytest.raises(ZeroDivisionError):
        await track.run(Script("bug", 0, ZeroDivisionError()), Script("b", 0))
    assert track.started == [("bug", 0)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_interruptions_come_out_bare(autojump_clock: MockClock, error: BaseException) -> None:
    track = Track()
    with pytest.raises(type(error)) as caught:
        await track.run(Script("a"), Script("b", 0.1, error), Script("c"))
    assert caught.value is error
    assert track.open == set()


async def test_a_group_raised_by_an_attempt_is_unwrapped(autojump_clock: MockClock) -> None:
    """An attempt that uses a nursery of its own and forgets to unwrap it does not make callers catch groups."""

    async def attempt(script: Script, me: Attempt) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        await race(Candidates([Script("a"), Script("b")]), attempt, delay=0.25, discard=print)


async def test_a_bug_during_a_cancellation_comes_out_bare(autojump_clock: MockClock) -> None:
    async def attempt(script: Script, me: Attempt) -> str:
        try:
            await trio.sleep_forever()
        finally:
            if script.name == "b":
                raise LookupError("while cleaning up")

    with pytest.raises(LookupError, match="cleaning up"), trio.move_on_after(0.6):
        await race(Candidates([Script("a"), Script("b"), Script("c")]), attempt, delay=0.25, discard=print)


async def test_failures_may_be_other_classes(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(Script("a", 0, RuntimeError("a")), Script("b", 0), failures=(OSError, RuntimeError))
    assert won(outcome) == "b"
    assert [type(failure.error) for failure in outcome.failures] == [RuntimeError]


# Errors


async def test_errors_are_kept_in_order_of_start(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(refused("a", 0.7), refused("b", 0.1), refused("c", 0.2), refused("d", 0))
    assert outcome.won is None
    assert [failure.candidate.name for failure in outcome.failures] == ["a", "b", "c", "d"]
    assert [failure.index for failure in outcome.failures] == [0, 1, 2, 3]
    assert all(failure.error is failure.candidate.error for failure in outcome.failures)


async def test_nothing_to_try(autojump_clock: MockClock) -> None:
    assert await Track().run() == Outcome(None, [], 0)


@pytest.mark.case("anyio#809")
@pytest.mark.parametrize("count", [1, 3])
async def test_errors_die_with_their_last_reference(autojump_clock: MockClock, count: int) -> None:
    class Error(OSError):
        pass

    async def attempt(number: int, me: Attempt) -> str:
        await trio.lowlevel.checkpoint()
        raise Error(number)

    gc.collect()
    gc.disable()
    try:
        outcome = await race(Candidates(range(count)), attempt, delay=0.25, discard=print)
        witnesses = [weakref.ref(failure.error) for failure in outcome.failures]
        assert len(witnesses) == count
        assert all(witness() is not None for witness in witnesses)
        del outcome
        assert all(witness() is None for witness in witnesses)
    finally:
        gc.enable()


@pytest.mark.case("anyio#809")
async def test_an_interruption_dies_with_its_last_reference(autojump_clock: MockClock) -> None:
    class Bug(Exception):
        pass

    async def attempt(number: int, me: Attempt) -> str:
        await trio.sleep(number)
        raise Bug

    gc.collect()
    gc.disable()
    try:
        try:
            await race(Candidates(range(3)), attempt, delay=0.25, discard=print)
        except Bug as error:
            witness = weakref.ref(error)
        await wait_all_tasks_blocked()
        assert witness() is None
    finally:
        gc.enable()


# Bounds


async def test_the_oldest_silent_one_is_dropped(autojump_clock: MockClock) -> None:
    track = Track()
    scripts = [Script(f"mute {n}") for n in range(4)]
    outcome = await track.run(*scripts, Script("good", 0), max_in_flight=3)
    assert won(outcome) == "good"
    assert [moment for _, moment in track.started] == [0, 0.25, 0.5, 0.75, 1.0]
    assert [(failure.candidate.name, type(failure.error)) for failure in outcome.failures] == [
        ("mute 0", TimeoutError),
        ("mute 1", TimeoutError),
    ]
    assert "0.8 s" in str(outcome.failures[0].error)
    assert track.most_open == 3


async def test_one_that_showed_life_is_not_dropped_first(autojump_clock: MockClock) -> None:
    track = Track()
    await track.run(
        Script("alive", progress=(0.1,)), Script("mute 1"), Script("mute 2"), Script("c", 0), max_in_flight=3
    )
    assert track.ended[0] == "mute 1"


async def test_one_is_dropped_even_if_all_showed_life(autojump_clock: MockClock) -> None:
    """Twelve servers that accept and say nothing do not hide the thirteenth."""
    track = Track()
    mute = [Script(f"mute {n}", progress=(0.01,)) for n in range(12)]
    outcome = await track.run(*mute, Script("good", 0))
    assert won(outcome) == "good"
    assert [failure.candidate.name for failure in outcome.failures] == ["mute 0"]
    assert track.most_open == 12


async def test_the_next_waits_until_the_dropped_one_is_closed(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(
        Script("stubborn", 1, stubborn=True), Script("mute"), Script("c", 0), max_in_flight=2, delay=0.25
    )
    assert won(outcome) == "stubborn"  # it was dropped, and arrived all the same
    assert track.most_open == 2


async def test_twenty_in_all(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(*[refused(f"{n}") for n in range(5000)])
    assert outcome.won is None
    assert outcome.started == len(outcome.failures) == 20
    assert track.now() == 0


async def test_twenty_in_all_and_then_the_last_ones_are_waited_for(autojump_clock: MockClock) -> None:
    track = Track()
    outcome = await track.run(Script("slow", 60), *[refused(f"{n}") for n in range(30)])
    assert won(outcome) == "slow"
    assert outcome.started == 20


# Candidates that come later


async def test_a_late_candidate_starts_at_its_time(autojump_clock: MockClock) -> None:
    track = Track()
    candidates = Candidates([Script("a")], complete=False)

    async def feed() -> None:
        await trio.sleep(0.1)
        candidates.replace([Script("b", 0)])
        await trio.sleep_forever()

    outcome = await track.run(candidates=candidates, feed=feed)
    assert won(outcome) == "b"
    assert track.started == [("a", 0), ("b", 0.25)]


async def test_a_late_candidate_starts_at_once_if_its_time_is_over(autojump_clock: MockClock) -> None:
    track = Track()
    candidates = Candidates([Script("a")], complete=False)

    async def feed() -> None:
        await trio.sleep(0.4)
        candidates.replace([Script("b", 0)])

    await track.run(candidates=candidates, feed=feed)
    assert track.started == [("a", 0), ("b", 0.4)]


async def test_when_all_have_failed_late_ones_are_waited_for(autojump_clock: MockClock) -> None:
    track = Track()
    candidates = Candidates([refused("a")], complete=False)

    async def feed() -> None:
        await trio.sleep(3)
        candidates.replace([refused("b", 0.1)])
        await trio.sleep(4)

    outcome = await track.run(candidates=candidates, feed=feed)
    assert outcome.won is None
    assert track.started == [("a", 0), ("b", 3)]
    assert track.now() == 7


async def test_candidates_may_change_places_or_disappear(autojump_clock: MockClock) -> None:
    """RFC 8305 section 6: a started attempt goes on though its address has disappeared, an unstarted one is removed."""
    track = Track()
    scripts = [Script("a", 0.8), Script("b"), Script("c"), Script("d")]
    candidates = Candidates(scripts, complete=False)

    async def feed() -> None:
        await trio.sleep(0.1)
        candidates.replace([scripts[3], scripts[1]])

    outcome = await track.run(candidates=candidates, feed=feed)
    assert track.started == [("a", 0), ("d", 0.25), ("b", 0.5)]
    assert won(outcome) == "a"
    assert candidates.tried == [scripts[0], scripts[3], scripts[1]]


async def test_a_failing_feed_comes_out_bare(autojump_clock: MockClock) -> None:
    track = Track()
    candidates = Candidates([Script("a")], complete=False)

    async def feed() -> None:
        await trio.sleep(0.1)
        raise LookupError("feed")

    with pytest.raises(LookupError, match="feed"):
        await track.run(candidates=candidates, feed=feed)
    assert track.open == set()


async def test_one_candidate_needs_no_task(autojump_clock: MockClock) -> None:
    tasks: list[trio.lowlevel.Task] = []

    async def attempt(name: str, me: Attempt) -> str:
        tasks.append(trio.lowlevel.current_task())
        await trio.sleep(0.4)
        me.progressed()
        await trio.sleep(0.4)
        return name

    outcome = await race(Candidates(["only"]), attempt, delay=0.25, discard=print)
    assert outcome.won is not None
    assert outcome.won.result == "only"
    assert tasks == [trio.lowlevel.current_task()]


# Any race


def expected(lasts: list[tuple[int, bool]], delay: int) -> tuple[list[int], int | None]:
    """When each attempt starts if nobody has won by then, and when the race is won, by a model with no tasks."""
    starts: list[int] = []
    moment = 0
    for seconds, succeeds in lasts:
        starts.append(moment)
        moment += delay if succeeds else min(delay, seconds)
    ends = [start + seconds for start, (seconds, succeeds) in zip(starts, lasts, strict=True) if succeeds]
    return starts, min(ends, default=None)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 5),
    st.none() | st.integers(0, 30),
)
def test_any_race_goes_as_the_model_says(lasts: list[tuple[int, bool]], delay: int, cancel_at: int | None) -> None:
    async def main() -> None:
        track = Track()
        scripts = [
            Script(str(n), seconds, None if succeeds else OSError(n)) for n, (seconds, succeeds) in enumerate(lasts)
        ]
        starts, won_at = expected(lasts, delay)
        outcome = None
        with trio.move_on_after(math.inf if cancel_at is None else cancel_at + 0.5) as scope:
            outcome = await track.run(*scripts, delay=delay)
        end = track.now()
        assert [moment for _, moment in track.started] == starts[: len(track.started)]
        assert all(moment >= end for moment in starts[len(track.started) :])
        if outcome is None:
            assert scope.cancelled_caught
            assert track.open == set()
            assert won_at is None or won_at > end
        elif won_at is None:
            assert outcome.won is None
            assert [failure.index for failure in outcome.failures] == list(range(len(lasts)))
        else:
            assert outcome.won is not None
            assert end == won_at == starts[outcome.won.index] + lasts[outcome.won.index][0]

    trio.run(main, clock=MockClock(autojump_threshold=0))
